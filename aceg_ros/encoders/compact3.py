# SPDX-License-Identifier: Apache-2.0
"""Our third encoder: as `compact2`, a keypoint with a 128-D unit descriptor and a reliability in each cell of 8x8 px.

It is larger at coarse resolutions, where capacity is cheap, and the descriptor of a keypoint sees two things: the
context of its cell, sampled at the keypoint, and the fine detail around it, 8x8 pixels that move with the keypoint.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.encoders.compact import DIM, STRIDE, CompactConfig, Residual, conv_block, padded, upsample
from aceg_ros.encoders.compact2 import as_map, bilinear_rows, find_keypoints, standardise_rows, unfold_pixels
from aceg_ros.encoders.feature_map import FeatureMap
from aceg_ros.encoders.preprocess import patch_centres

HALF, QUARTER, EIGHTH, SIXTEENTH, THIRTYSECOND = 16, 32, 80, 160, 256     # channels at 1/2 ... 1/32 of the resolution
PATCH = 4                                                                 # side of the fine detail, at 1/2


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

    def __init__(self, config: CompactConfig | None = None) -> None:
        super().__init__()
        self.config = config or CompactConfig()
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
        return FeatureMap(self._features(raw, keypoints.flatten(2).transpose(1, 2)), reliability, keypoints)

    def find(self, raw: RawOutput) -> tuple[Tensor, Tensor]:
        """Return the keypoints (B, 2, h, w) of an output, and their reliabilities (B, h, w)."""
        keypoints, log_share = find_keypoints(raw.peaks.float())
        return keypoints, torch.sigmoid(self.rate_keypoints(raw, log_share))

    def rate_keypoints(self, raw: RawOutput, log_share: Tensor) -> Tensor:
        """Return logits (B, h, w) of the reliability of keypoints, given the logarithms of their shares in their
        cells."""
        return raw.reliability.float() + self.rate_peak.float() * log_share

    def at_centres(self, images: Tensor) -> FeatureMap:
        """Compute features and reliabilities at the centres of cells, and no keypoints."""
        raw = self.raw_output(images)
        batch, _, height, width = raw.context.shape
        cells = torch.arange(height * width, device=images.device)
        centres = patch_centres(cells % width, cells // width, STRIDE)
        return FeatureMap(self._features(raw, centres.expand(batch, -1, -1)), torch.sigmoid(raw.reliability.float()))

    def keypoint_layers(self) -> list[nn.Module]:
        """Return the layers that place and rate keypoints: descriptors at given pixels do not depend on them."""
        return [self.refine_peaks, self.peaks, self.peaks_context, self.rate]

    def raw_output(self, images: Tensor) -> RawOutput:
        """Compute everything that does not depend on the choice of keypoints."""
        rows, columns = images.shape[2] // STRIDE, images.shape[3] // STRIDE
        fine = self.fine(padded(standardise_rows(images, self.config)))
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

    def _features(self, raw: RawOutput, pixels: Tensor) -> Tensor:
        """Return features (B, 128, h, w) at a pixel of each cell (B, h w, 2)."""
        return as_map(self.describe_pixels(raw, pixels).float(), raw.context.shape[2], raw.context.shape[3])


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
