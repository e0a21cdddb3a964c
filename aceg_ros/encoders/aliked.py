# SPDX-License-Identifier: Apache-2.0
"""ALIKED (Zhao et al., IEEE TIM 2023) as a dense encoder: its descriptor at the centre of every 8x8 patch.

A published local-feature network whose weights can be imported (`aceg import aliked`). It is the baseline and the
teacher of our encoder. Layers and state-dict keys are those of the release; the deformable convolutions use
grid_sample, so that torchvision is not needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.encoders.feature_map import FeatureMap
from aceg_ros.networks.weights_file import load_without_counters


@dataclass(frozen=True, kw_only=True)
class AlikedConfig:
    """short_side_px: size of the input images. stride: distance between descriptors in pixels."""

    short_side_px: int = 480
    stride: int = 8


def sample_pixels(features: Tensor, pixels: Tensor) -> Tensor:
    """Sample a feature image (B, C, H, W) bilinearly at pixels (B, N, 2): (B, C, N), zero outside."""
    size = torch.tensor([features.shape[3] - 1, features.shape[2] - 1], device=features.device)
    normalised = (2.0 * pixels / size - 1.0)[:, :, None]
    return functional.grid_sample(features, normalised, align_corners=True)[..., 0]


class DeformableConv(nn.Module):
    """3x3 convolution whose nine taps are shifted by predicted offsets (dy, dx), at most a quarter of the image."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.offset_conv = nn.Conv2d(dim_in, 18, 3, padding=1)
        self.regular_conv = nn.Conv2d(dim_in, dim_out, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        largest = max(height, width) / 4
        offsets = self.offset_conv(x).float().clamp(-largest, largest).reshape(batch, 9, 2, height, width)
        rows, columns = torch.meshgrid(torch.arange(height, device=x.device), torch.arange(width, device=x.device),
                                       indexing="ij")
        taps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        sampled = []
        for tap, (dy, dx) in enumerate(taps):
            pixels = torch.stack([columns + dx + offsets[:, tap, 1], rows + dy + offsets[:, tap, 0]], -1)
            sampled.append(sample_pixels(x, pixels.reshape(batch, -1, 2)))
        columns_of = torch.stack(sampled, 2).reshape(batch, dim * 9, height * width)
        return (self.regular_conv.weight.flatten(1) @ columns_of).reshape(batch, -1, height, width)


class _Block(nn.Module):
    """Two convolutions with batch norm and SELU; residual if `skip`."""

    def __init__(self, dim_in: int, dim_out: int, deformable: bool, skip: bool):
        super().__init__()
        if deformable:
            self.conv1: nn.Module = DeformableConv(dim_in, dim_out)
            self.conv2: nn.Module = DeformableConv(dim_out, dim_out)
        else:
            self.conv1 = nn.Conv2d(dim_in, dim_out, 3, padding=1, bias=False)
            self.conv2 = nn.Conv2d(dim_out, dim_out, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(dim_out), nn.BatchNorm2d(dim_out)
        self.downsample = nn.Conv2d(dim_in, dim_out, 1) if skip else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.selu(self.bn1(self.conv1(x)))))
        return functional.selu(y if self.downsample is None else y + self.downsample(x))


class _DescriptorHead(nn.Module):
    """Descriptor of a pixel from `positions` deformable samples around it."""

    def __init__(self, dim: int, positions: int):
        super().__init__()
        self.positions = positions
        self.offset_conv = nn.Sequential(nn.Conv2d(dim, 2 * positions, 3), nn.SELU(),
                                         nn.Conv2d(2 * positions, 2 * positions, 1))
        self.sf_conv = nn.Conv2d(dim, dim, 1, bias=False)
        self.agg_weights = nn.Parameter(torch.zeros(positions, dim, dim))

    def forward(self, features: Tensor, pixels: Tensor) -> Tensor:
        """Return unit descriptors (N, dim) of one feature image (dim, H, W) at pixels (N, 2)."""
        dim, height, width = features.shape
        corner = (pixels.long() - 0.5).long()
        corner = torch.minimum(corner.clamp(min=0), torch.tensor([width - 4, height - 4], device=pixels.device))
        around = torch.arange(3, device=pixels.device)
        rows = (corner[:, 1, None] + around)[:, :, None]
        columns = (corner[:, 0, None] + around)[:, None, :]
        patches = features[:, rows, columns].permute(1, 0, 2, 3)
        largest = max(height, width) / 4
        offsets = self.offset_conv(patches).float().clamp(-largest, largest)[:, :, 0, 0]
        positions = pixels[:, None] + offsets.reshape(-1, 2, self.positions).permute(0, 2, 1)
        sampled = sample_pixels(features[None], positions.reshape(1, -1, 2))[0].T
        sampled = functional.selu(functional.linear(sampled, self.sf_conv.weight.flatten(1)))
        described = torch.einsum("npc,pcd->nd", sampled.reshape(-1, self.positions, dim), self.agg_weights)
        return functional.normalize(described, dim=1)


class AlikedNet(nn.Module):
    """(B, 3, H, W) RGB in [0, 1] -> unit descriptors times sqrt(dim), and the score of each patch's best pixel."""

    def __init__(self, channels: tuple[int, int, int], dim: int, positions: int, config: AlikedConfig | None = None):
        super().__init__()
        c1, c2, c3 = channels
        self.dim, self.config = dim, config or AlikedConfig()
        self.stride = self.config.stride
        self.block1 = _Block(3, c1, False, False)
        self.block2 = _Block(c1, c2, False, True)
        self.block3 = _Block(c2, c3, True, True)
        self.block4 = _Block(c3, dim, True, True)
        quarter = dim // 4
        self.conv1 = nn.Conv2d(c1, quarter, 1, bias=False)
        self.conv2 = nn.Conv2d(c2, quarter, 1, bias=False)
        self.conv3 = nn.Conv2d(c3, quarter, 1, bias=False)
        self.conv4 = nn.Conv2d(dim, quarter, 1, bias=False)
        self.score_head = nn.Sequential(
            nn.Conv2d(dim, 8, 1, bias=False), nn.SELU(), nn.Conv2d(8, 4, 3, padding=1, bias=False), nn.SELU(),
            nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.SELU(), nn.Conv2d(4, 1, 3, padding=1, bias=False))
        self.desc_head = _DescriptorHead(dim, positions)

    @classmethod
    def from_state(cls, state: dict[str, Tensor], config: AlikedConfig | None = None) -> AlikedNet:
        """Build the network from a state dict of the release; all sizes are read from it."""
        positions, dim, _ = state["desc_head.agg_weights"].shape
        c1, c2, c3 = (state[f"conv{level}.weight"].shape[1] for level in (1, 2, 3))
        net = cls((c1, c2, c3), dim, positions, config)
        load_without_counters(net, state)
        return net

    def forward(self, images: Tensor) -> FeatureMap:
        stride = self.stride
        height, width = (side // stride for side in images.shape[2:])
        dense = self._dense(images.contiguous())
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        pixels = (torch.stack([columns, rows], -1).reshape(-1, 2).to(images.device) + 0.5) * stride - 0.5
        score = functional.max_pool2d(torch.sigmoid(self.score_head(dense)), stride)[:, 0]
        dense = functional.normalize(dense, dim=1)
        described = torch.stack([self.desc_head(one, pixels) for one in dense])
        features = described.transpose(1, 2).reshape(len(images), self.dim, height, width)
        return FeatureMap(features * self.dim**0.5, score)

    def _dense(self, images: Tensor) -> Tensor:
        """Return features (B, dim, H, W) at full resolution, merged from four scales."""
        height, width = images.shape[2:]
        pad = (-width % 32, -height % 32)
        x = functional.pad(images, (pad[0] // 2, pad[0] - pad[0] // 2, pad[1] // 2, pad[1] - pad[1] // 2), "replicate")
        x1 = self.block1(x)
        x2 = self.block2(functional.avg_pool2d(x1, 2))
        x3 = self.block3(functional.avg_pool2d(x2, 4))
        x4 = self.block4(functional.avg_pool2d(x3, 4))
        parts = [functional.selu(conv(part)) for conv, part in
                 ((self.conv1, x1), (self.conv2, x2), (self.conv3, x3), (self.conv4, x4))]
        parts = [functional.interpolate(part, size=x.shape[2:], mode="bilinear", align_corners=True) for part in parts]
        top, left = pad[1] // 2, pad[0] // 2
        return torch.cat(parts, 1)[:, :, top:top + height, left:left + width]
