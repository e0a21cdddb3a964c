# SPDX-License-Identifier: Apache-2.0
"""The encoder of ACE (Brachmann et al., CVPR 2023): grey image -> features at stride 8.

Implemented from the publication; computes the same as the authors' network with their weights (test_parity_ace.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.encoders.feature_map import FeatureMap


@dataclass(frozen=True, kw_only=True)
class AceEncoderConfig:
    """Published constants.

    short_side_px: size of the input images. grey: weights of R, G, B. mean, deviation: normalisation of grey values.
    """

    short_side_px: int = 480
    grey: tuple[float, float, float] = (0.2989, 0.587, 0.114)
    mean: float = 0.4
    deviation: float = 0.25


class AceNet(nn.Module):
    """(B, 3, H, W) RGB in [0, 1] -> (B, dim, H / 8, W / 8); dim is 512 in the release."""

    stride = 8

    def __init__(self, dim: int = 512, config: AceEncoderConfig | None = None):
        super().__init__()
        self.dim, self.config = dim, config or AceEncoderConfig()
        self.conv1 = nn.Conv2d(1, 32, 3, 1, 1)
        self.conv2 = nn.Conv2d(32, 64, 3, 2, 1)
        self.conv3 = nn.Conv2d(64, 128, 3, 2, 1)
        self.conv4 = nn.Conv2d(128, 256, 3, 2, 1)
        self.res1_conv1 = nn.Conv2d(256, 256, 3, 1, 1)
        self.res1_conv2 = nn.Conv2d(256, 256, 1)
        self.res1_conv3 = nn.Conv2d(256, 256, 3, 1, 1)
        self.res2_conv1 = nn.Conv2d(256, 512, 3, 1, 1)
        self.res2_conv2 = nn.Conv2d(512, 512, 1)
        self.res2_conv3 = nn.Conv2d(512, dim, 3, 1, 1)
        self.res2_skip = nn.Conv2d(256, dim, 1)

    @classmethod
    def from_state(cls, state: dict[str, Tensor], config: AceEncoderConfig | None = None) -> AceNet:
        """Build the network from a state dict; its width is read from `res2_conv3`."""
        net = cls(state["res2_conv3.weight"].shape[0], config)
        net.load_state_dict(state)
        return net

    def forward(self, images: Tensor) -> FeatureMap:
        config = self.config
        weights = torch.tensor(config.grey, device=images.device, dtype=images.dtype)
        grey = (images * weights[:, None, None]).sum(1, keepdim=True)
        return FeatureMap(self.features((grey - config.mean) / config.deviation), None)

    def features(self, grey: Tensor) -> Tensor:
        """Return the features (B, dim, h, w) of normalised grey images (B, 1, H, W)."""
        x = grey
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = functional.relu(conv(x))
        y = x
        for conv in (self.res1_conv1, self.res1_conv2, self.res1_conv3):
            y = functional.relu(conv(y))
        x = x + y
        y = x
        for conv in (self.res2_conv1, self.res2_conv2, self.res2_conv3):
            y = functional.relu(conv(y))
        return self.res2_skip(x) + y
