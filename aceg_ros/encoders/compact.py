# SPDX-License-Identifier: Apache-2.0
"""Our own encoder for robots without a GPU: RGB -> 128-D unit features at stride 8, with a reliability each.

Most of the computation is at 1/16 and 1/32 of the resolution, where it enlarges the receptive field cheaply; two fusion
steps return to 1/8. Images are standardised per channel first, which removes exposure and colour temperature. 1.3 GMAC
for 640x480, 1.45 M parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.encoders.feature_map import FeatureMap

STRIDE, DIM = 8, 128
QUARTER, EIGHTH, SIXTEENTH, THIRTYSECOND = 32, 64, 96, 160          # channels at 1/4, 1/8, 1/16, 1/32 of the resolution


@dataclass(frozen=True, kw_only=True)
class CompactConfig:
    """Constants that the weights were trained with.

    short_side_px: size of the input images. statistics_step: mean and standard deviation are computed from every n-th
    pixel of every n-th row. min_deviation: lower bound of a channel's standard deviation, for values in [0, 1].
    """

    short_side_px: int = 480
    statistics_step: int = 4
    min_deviation: float = 0.02


def conv_block(dim_in: int, dim_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU. Even kernels keep the centres of cells at the centres of pixel blocks."""
    padding = (kernel - stride + 1) // 2
    return nn.Sequential(nn.Conv2d(dim_in, dim_out, kernel, stride, padding, bias=False), nn.BatchNorm2d(dim_out),
                         nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Two convolutions whose result is added to their input."""

    def __init__(self, dim: int):
        super().__init__()
        self.first = conv_block(dim, dim, 3)
        self.second = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(self.first(x)), inplace=True)


class CompactNet(nn.Module):
    """(B, 3, H, W) in [0, 1], H and W multiples of 8 -> `FeatureMap` at stride 8; features are unit vectors times
    sqrt(128)."""

    dim, stride = DIM, STRIDE

    def __init__(self, config: CompactConfig | None = None) -> None:
        super().__init__()
        self.config = config or CompactConfig()
        self.quarter = nn.Sequential(conv_block(3, QUARTER, 4, 4), conv_block(QUARTER, QUARTER, 3))
        self.eighth = nn.Sequential(conv_block(QUARTER, EIGHTH, 2, 2), conv_block(EIGHTH, EIGHTH, 3))
        self.sixteenth = nn.Sequential(conv_block(EIGHTH, SIXTEENTH, 2, 2), Residual(SIXTEENTH))
        self.thirtysecond = nn.Sequential(conv_block(SIXTEENTH, THIRTYSECOND, 2, 2), Residual(THIRTYSECOND),
                                          Residual(THIRTYSECOND))
        self.to_sixteenth = nn.Conv2d(THIRTYSECOND, SIXTEENTH, 1)
        self.fuse_sixteenth = Residual(SIXTEENTH)
        self.to_eighth = nn.Conv2d(SIXTEENTH, EIGHTH, 1)
        self.fuse_eighth = conv_block(EIGHTH, DIM, 1)
        self.describe = nn.Conv2d(DIM, DIM, 1)
        self.rate = nn.Conv2d(DIM, 1, 1)

    def forward(self, images: Tensor) -> FeatureMap:
        features, logit = self.raw(images)
        return FeatureMap(functional.normalize(features, dim=1) * DIM**0.5, torch.sigmoid(logit.float()))

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return unnormalised features (B, 128, h, w) and the logits (B, h, w) of their reliability."""
        height, width = images.shape[2:]
        eighth = self.eighth(self.quarter(padded(standardise(images, self.config))))
        sixteenth = self.sixteenth(eighth)
        context = self.to_sixteenth(self.thirtysecond(sixteenth))
        sixteenth = self.fuse_sixteenth(sixteenth + upsample(context))
        fused = self.fuse_eighth(eighth + upsample(self.to_eighth(sixteenth)))
        fused = fused[:, :, :height // STRIDE, :width // STRIDE]
        return self.describe(fused), self.rate(fused)[:, 0]


def standardise(images: Tensor, config: CompactConfig) -> Tensor:
    """Scale to zero mean and unit deviation per image and channel, measured on a subsample of the pixels."""
    sampled = slice(config.statistics_step // 2, None, config.statistics_step)
    variance, mean = torch.var_mean(images[:, :, sampled, sampled], (2, 3), keepdim=True)
    return (images - mean) * (1.0 / variance.sqrt().clamp(min=config.min_deviation))


def padded(x: Tensor) -> Tensor:
    """Repeat the right and the lower border until both sides are multiples of 32, which the coarsest layers need."""
    height, width = x.shape[2:]
    return functional.pad(x, (0, -width % 32, 0, -height % 32), mode="replicate") if height % 32 or width % 32 else x


def upsample(x: Tensor) -> Tensor:
    """Double the resolution, bilinearly."""
    return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


Net = TypeVar("Net", bound=nn.Module)


def fuse_batch_norm(net: Net) -> Net:
    """Fold every batch norm into its convolution, in place: the same function with fewer memory accesses."""
    net.eval()
    for module in net.modules():
        if isinstance(module, nn.Sequential):
            for index in range(len(module) - 1):
                conv, norm = module[index], module[index + 1]
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    module[index] = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
                    module[index + 1] = nn.Identity()
    return net
