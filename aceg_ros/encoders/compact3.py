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

from aceg_ros.encoders.compact import DIM, STRIDE, CompactConfig, Residual, conv_block, upsample
from aceg_ros.encoders.compact2 import bilinear_rows, find_keypoints, standardise_rows, unfold_pixels
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
        self.fine = nn.Sequential(conv_block(3, HALF, 4, 2), Residual(HALF))
        self.quarter = nn.Sequential(conv_block(HALF, QUARTER, 4, 2), Residual(QUARTER))
        self.eighth = nn.Sequential(conv_block(QUARTER, EIGHTH, 2, 2), Residual(EIGHTH))
        self.sixteenth = nn.Sequential(conv_block(EIGHTH, SIXTEENTH, 2, 2), Residual(SIXTEENTH))
        self.thirtysecond = nn.Sequential(conv_block(SIXTEENTH, THIRTYSECOND, 2, 2), Residual(THIRTYSECOND),
                                          Residual(THIRTYSECOND))
        self.to_sixteenth = nn.Conv2d(THIRTYSECOND, SIXTEENTH, 1)
        self.fuse_sixteenth = Residual(SIXTEENTH)
        self.to_eighth = nn.Conv2d(SIXTEENTH, EIGHTH, 1)
        self.fuse_eighth = Residual(EIGHTH)
        self.to_context = nn.Conv2d(EIGHTH, DIM, 1)
        self.detail = nn.Linear(PATCH * PATCH * HALF, DIM)
        self.describe = nn.Linear(DIM, DIM)
        self.rate = nn.Conv2d(EIGHTH, 1, 1)
        self.refine_peaks = Residual(HALF)
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
        x = standardise_rows(images, self.config)
        height, width = x.shape[2:]
        rows, columns = height // STRIDE, width // STRIDE
        if height % 32 or width % 32:
            x = functional.pad(x, (0, -width % 32, 0, -height % 32), mode="replicate")
        fine = self.fine(x)
        eighth = self.eighth(self.quarter(fine))
        sixteenth = self.sixteenth(eighth)
        sixteenth = self.fuse_sixteenth(sixteenth + upsample(self.to_sixteenth(self.thirtysecond(sixteenth))))
        fused = self.fuse_eighth(eighth + upsample(self.to_eighth(sixteenth)))
        peaks = unfold_pixels(self.peaks(self.refine_peaks(fine)), 2) + unfold_pixels(self.peaks_context(fused), STRIDE)
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
