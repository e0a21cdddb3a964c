# SPDX-License-Identifier: Apache-2.0
"""Our third encoder: as `compact2`, a keypoint with a 128-D unit descriptor and a reliability in each cell of 8x8 px.

It is larger at coarse resolutions, where capacity is cheap, and the descriptor of a keypoint sees two things: the
context of its cell, sampled at the keypoint, and the fine detail around it, 8x8 pixels that move with the keypoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.encoders.compact import DIM, STRIDE, CompactConfig, _conv, _Residual, _upsample
from aceg_ros.encoders.compact2 import _standardise, _unfold, find_keypoints
from aceg_ros.encoders.feature_map import FeatureMap

HALF, QUARTER, EIGHTH, SIXTEENTH, THIRTYSECOND = 16, 32, 80, 160, 256     # channels at 1/2 ... 1/32 of the resolution
PATCH = 4                                                                 # side of the fine detail, at 1/2


@dataclass(frozen=True, kw_only=True)
class Compact3Config(CompactConfig):
    """Constants that the weights were trained with."""


class RawOutput(NamedTuple):
    """What the network computes before keypoints are chosen.

    context: (B, 128, h, w), of cells of 8x8 pixels. fine: (B, 16, H, W) detail at half of the resolution, which may
    reach beyond the last cells. reliability: logits (B, h, w). peaks: (B, 8 h, 8 w), logits of pixels to be keypoints.
    """

    context: Tensor
    fine: Tensor
    reliability: Tensor
    peaks: Tensor


class Compact3Net(nn.Module):
    """(B, 3, H, W) in [0, 1], H and W multiples of 8 -> `FeatureMap` at stride 8 with keypoints; features are unit
    vectors times sqrt(128)."""

    dim, stride = DIM, STRIDE

    def __init__(self, config: Compact3Config | None = None) -> None:
        super().__init__()
        self.config = config or Compact3Config()
        self.fine = nn.Sequential(_conv(3, HALF, 4, 2), _Residual(HALF))
        self.quarter = nn.Sequential(_conv(HALF, QUARTER, 4, 2), _Residual(QUARTER))
        self.eighth = nn.Sequential(_conv(QUARTER, EIGHTH, 2, 2), _Residual(EIGHTH))
        self.sixteenth = nn.Sequential(_conv(EIGHTH, SIXTEENTH, 2, 2), _Residual(SIXTEENTH))
        self.thirtysecond = nn.Sequential(_conv(SIXTEENTH, THIRTYSECOND, 2, 2), _Residual(THIRTYSECOND),
                                          _Residual(THIRTYSECOND))
        self.to_sixteenth = nn.Conv2d(THIRTYSECOND, SIXTEENTH, 1)
        self.fuse_sixteenth = _Residual(SIXTEENTH)
        self.to_eighth = nn.Conv2d(SIXTEENTH, EIGHTH, 1)
        self.fuse_eighth = _Residual(EIGHTH)
        self.to_context = nn.Conv2d(EIGHTH, DIM, 1)
        self.detail = nn.Linear(PATCH * PATCH * HALF, DIM)
        self.describe = nn.Linear(DIM, DIM)
        self.rate = nn.Conv2d(EIGHTH, 1, 1)
        self.refine_peaks = _Residual(HALF)
        self.peaks = nn.Conv2d(HALF, 4, 3, padding=1)
        self.peaks_context = nn.Conv2d(EIGHTH, STRIDE * STRIDE, 1)
        self.rate_peak = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> FeatureMap:
        raw = self.raw_output(images)
        keypoints, reliability = self.find(raw)
        return FeatureMap(self._features(raw, keypoints), reliability, keypoints)

    def find(self, raw: RawOutput) -> tuple[Tensor, Tensor]:
        """Return the keypoints (B, 2, h, w) of an output, and their reliabilities (B, h, w)."""
        keypoints, log_share = find_keypoints(raw.peaks.float())
        return keypoints, torch.sigmoid(raw.reliability.float() + self.rate_peak.float() * log_share)

    def at_centres(self, images: Tensor) -> FeatureMap:
        """Compute features and reliabilities at the centres of cells, and no keypoints."""
        raw = self.raw_output(images)
        batch, _, height, width = raw.context.shape
        rows, columns = torch.meshgrid(torch.arange(height, device=images.device),
                                       torch.arange(width, device=images.device), indexing="ij")
        centres = (torch.stack([columns, rows]) + 0.5) * STRIDE - 0.5
        features = self._features(raw, centres.expand(batch, -1, -1, -1))
        return FeatureMap(features, torch.sigmoid(raw.reliability.float()))

    def keypoint_layers(self) -> list[nn.Module]:
        """Return the layers that place and rate keypoints: descriptors at given pixels do not depend on them."""
        return [self.refine_peaks, self.peaks, self.peaks_context, self.rate]

    def raw_output(self, images: Tensor) -> RawOutput:
        """Compute everything that does not depend on the choice of keypoints."""
        x = _standardise(images, self.config)
        height, width = x.shape[2:]
        rows, columns = height // STRIDE, width // STRIDE
        if height % 32 or width % 32:
            x = functional.pad(x, (0, -width % 32, 0, -height % 32), mode="replicate")
        fine = self.fine(x)
        eighth = self.eighth(self.quarter(fine))
        sixteenth = self.sixteenth(eighth)
        sixteenth = self.fuse_sixteenth(sixteenth + _upsample(self.to_sixteenth(self.thirtysecond(sixteenth))))
        fused = self.fuse_eighth(eighth + _upsample(self.to_eighth(sixteenth)))
        peaks = _unfold(self.peaks(self.refine_peaks(fine)), 2) + _unfold(self.peaks_context(fused), STRIDE)
        fused = fused[:, :, :rows, :columns]
        return RawOutput(context=self.to_context(fused), fine=fine, reliability=self.rate(fused)[:, 0],
                         peaks=peaks[:, :rows * STRIDE, :columns * STRIDE])

    def describe_pixels(self, raw: RawOutput, pixels: Tensor) -> Tensor:
        """Describe pixels (B, N, 2) of the images, (x, y): vectors (B, N, 128) of any length."""
        seen = bilinear_rows(raw.context, (pixels + 0.5) / STRIDE - 0.5)
        detail = self.detail(patches_around(raw.fine, pixels))
        return self.describe(functional.relu(seen + detail))

    def _features(self, raw: RawOutput, keypoints: Tensor) -> Tensor:
        """Return features (B, 128, h, w) at keypoints (B, 2, h, w)."""
        described = self.describe_pixels(raw, keypoints.flatten(2).transpose(1, 2)).float()
        scaled = functional.normalize(described, dim=2) * DIM**0.5
        return scaled.unflatten(1, keypoints.shape[2:]).permute(0, 3, 1, 2)


def bilinear_rows(grid: Tensor, places: Tensor) -> Tensor:
    """Sample a grid (B, C, h, w) bilinearly at places (B, N, 2), (x, y) in cells, the border repeated: (B, N, C).

    A weighted sum of rows of the grid, which on CPUs is faster than `grid_sample`.
    """
    batch, dim, height, width = grid.shape
    x, y = places[..., 0].clamp(0, width - 1), places[..., 1].clamp(0, height - 1)
    left, top = x.floor().clamp(max=max(width - 2, 0)), y.floor().clamp(max=max(height - 2, 0))
    right, low = x - left, y - top
    first = torch.arange(batch, device=grid.device)[:, None] * (height * width)
    index = first + (top * width + left).long()
    step_x, step_y = min(1, width - 1), width * min(1, height - 1)
    index = torch.stack([index, index + step_x, index + step_y, index + step_x + step_y], 2)
    weights = torch.stack([(1 - right) * (1 - low), right * (1 - low), (1 - right) * low, right * low], 2)
    rows = grid.float().permute(0, 2, 3, 1).reshape(-1, dim)
    summed = functional.embedding_bag(index.reshape(-1, 4), rows, per_sample_weights=weights.reshape(-1, 4).float(),
                                      mode="sum")
    return summed.reshape(batch, -1, dim)


def patches_around(fine: Tensor, pixels: Tensor) -> Tensor:
    """Take the 4x4 places of a map at half of the resolution (B, C, H, W) around each pixel (B, N, 2): (B, N, 16 C)."""
    batch, dim, height, width = fine.shape
    corner = ((pixels + 0.5) / 2 - 0.5 - (PATCH - 1) / 2).round().long()
    x, y = corner[..., 0].clamp(0, width - PATCH), corner[..., 1].clamp(0, height - PATCH)
    first = torch.arange(batch, device=fine.device)[:, None] * (height * width) + y * width + x
    step = torch.arange(PATCH, device=fine.device)
    index = first[..., None] + (step[:, None] * width + step).flatten()
    rows = fine.permute(0, 2, 3, 1).reshape(-1, dim)
    return functional.embedding(index, rows).flatten(2)
