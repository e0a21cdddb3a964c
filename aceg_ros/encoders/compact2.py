# SPDX-License-Identifier: Apache-2.0
"""Our second encoder: keypoints with 128-D unit descriptors and reliabilities, one in each cell of 8x8 pixels.

The trunk is that of `compact`, whose weights its training began with. In addition it sees fine detail at half of the
resolution, which finds the keypoints and refines the descriptors, and has more layers at 1/4 and 1/8. Descriptors are
sampled at the keypoints.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.encoders.compact import (
    DIM,
    EIGHTH,
    QUARTER,
    STRIDE,
    CompactConfig,
    CompactNet,
    Residual,
    conv_block,
    padded,
    upsample,
)
from aceg_ros.encoders.feature_map import FeatureMap

HALF = 16                               # channels at half of the resolution
WINDOW_RADIUS_PX = 2                    # around the best pixel of a cell, for the sub-pixel position


class RawOutput(NamedTuple):
    """What the network computes before keypoints are chosen.

    features (B, 128, h, w), not normalised, and logits of their reliability (B, h, w), at the centres of cells; peaks
    (B, 8 h, 8 w), logits of pixels to be keypoints.
    """

    features: Tensor
    reliability: Tensor
    peaks: Tensor


class Compact2Net(CompactNet):
    """(B, 3, H, W) in [0, 1], H and W multiples of 8 -> `FeatureMap` at stride 8 with keypoints; features are unit
    vectors times sqrt(128)."""

    def __init__(self, config: CompactConfig | None = None) -> None:
        super().__init__(config or CompactConfig())
        self.fine = nn.Sequential(conv_block(3, HALF, 4, 2), conv_block(HALF, HALF, 3))
        self.refine_fine = Residual(HALF)
        self.fine_to_quarter = nn.Sequential(nn.Conv2d(HALF, QUARTER, 4, 2, 1, bias=False), nn.BatchNorm2d(QUARTER))
        self.refine_quarter = Residual(QUARTER)
        self.refine_eighth = Residual(EIGHTH)
        self.peaks = nn.Conv2d(HALF, 4, 3, padding=1)
        self.peaks_context = nn.Conv2d(DIM, STRIDE * STRIDE, 1)
        self.rate_peak = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> FeatureMap:
        return choose_keypoints(self.raw_output(images), self.rate_peak)

    def at_centres(self, images: Tensor) -> FeatureMap:
        """Compute features and reliabilities at the centres of cells, as `compact` does, and no keypoints."""
        raw = self.raw_output(images)
        features = functional.normalize(raw.features.float(), dim=1) * DIM**0.5
        return FeatureMap(features, torch.sigmoid(raw.reliability.float()))

    def raw_output(self, images: Tensor) -> RawOutput:
        """Compute everything that does not depend on the choice of keypoints."""
        rows, columns = images.shape[2] // STRIDE, images.shape[3] // STRIDE
        x = padded(standardise_rows(images, self.config))
        fine = self.refine_fine(self.fine(x))
        quarter = functional.relu(self.quarter(x) + self.fine_to_quarter(fine), inplace=True)
        eighth = self.eighth(self.refine_quarter(quarter))
        sixteenth = self.sixteenth(eighth)
        context = self.to_sixteenth(self.thirtysecond(sixteenth))
        sixteenth = self.fuse_sixteenth(sixteenth + upsample(context))
        # The sum is not rectified before the refinement: `compact` adds both without a rectifier.
        summed = eighth + upsample(self.to_eighth(sixteenth))
        summed = summed + self.refine_eighth.second(self.refine_eighth.first(summed))
        fused = self.fuse_eighth(summed)
        peaks = unfold_pixels(self.peaks(fine), 2) + unfold_pixels(self.peaks_context(fused), STRIDE)
        fused = fused[:, :, :rows, :columns]
        return RawOutput(self.describe(fused), self.rate(fused)[:, 0],
                         peaks[:, :rows * STRIDE, :columns * STRIDE])


def standardise_rows(images: Tensor, config: CompactConfig) -> Tensor:
    """The same as `standardise`, as one operation on rows of pixels, which is faster on CPUs."""
    batch, channels, height, width = images.shape
    sampled = slice(config.statistics_step // 2, None, config.statistics_step)
    variance, mean = torch.var_mean(images[:, :, sampled, sampled], (2, 3))
    gain = 1.0 / variance.sqrt().clamp(min=config.min_deviation)
    gains, shifts = (factor[:, None].repeat(1, 1, width) for factor in (gain, -mean * gain))
    rows = images.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    return torch.addcmul(shifts, rows, gains).reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def unfold_pixels(x: Tensor, factor: int) -> Tensor:
    """(B, factor^2, h, w) -> (B, factor h, factor w), as `pixel_shuffle`, faster where channels are last in memory."""
    batch, _, height, width = x.shape
    blocks = x.permute(0, 2, 3, 1).reshape(batch, height, width, factor, factor)
    return blocks.permute(0, 1, 3, 2, 4).reshape(batch, height * factor, width * factor)


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


def sample_rows(features: Tensor, keypoints: Tensor) -> Tensor:
    """Sample features (B, C, h, w) bilinearly at keypoints (B, 2, h, w), one in each cell; unit vectors times sqrt(C).

    The same as `corners.sample`, faster on CPUs.
    """
    sampled = bilinear_rows(features, ((keypoints + 0.5) / STRIDE - 0.5).flatten(2).transpose(1, 2))
    return as_map(sampled, features.shape[2], features.shape[3])


def as_map(described: Tensor, height: int, width: int) -> Tensor:
    """Return features (B, C, height, width), unit vectors times sqrt(C), of vectors (B, height width, C)."""
    scaled = functional.normalize(described, dim=2) * described.shape[2]**0.5
    return scaled.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def choose_keypoints(raw: RawOutput, rate_peak: Tensor) -> FeatureMap:
    """Choose the keypoint of each cell, and sample descriptors and reliabilities there."""
    keypoints, log_share = find_keypoints(raw.peaks.float())
    features = sample_rows(raw.features.float(), keypoints)
    logit = raw.reliability.float() + rate_peak.float() * log_share
    return FeatureMap(features, torch.sigmoid(logit), keypoints)


def find_keypoints(peaks: Tensor) -> tuple[Tensor, Tensor]:
    """Find the keypoint of each cell of 8x8 pixels.

    Args:
        peaks: logits (B, H, W) of pixels to be keypoints.

    Returns:
        Keypoints (B, 2, h, w), pixels (x, y): the best pixel of the cell, moved to the mean of the softmax of the
        logits within 2 px of it. The logarithm (B, h, w) of the best pixel's share in the softmax of the cell.
    """
    batch, height, width = peaks.shape
    rows, columns = height // STRIDE, width // STRIDE
    cells = peaks.reshape(batch, rows, STRIDE, columns, STRIDE).permute(0, 1, 3, 2, 4).flatten(3)
    value, best = cells.max(3)
    x = torch.arange(columns, device=peaks.device) * STRIDE + best % STRIDE
    y = torch.arange(rows, device=peaks.device)[:, None] * STRIDE + best // STRIDE
    offset = window_mean(peaks, x.flatten(1), y.flatten(1))
    position = torch.stack([x, y], 1) + offset.transpose(1, 2).reshape(batch, 2, rows, columns)
    return position, value - torch.logsumexp(cells, 3)


def window_mean(peaks: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean offset (B, N, 2) from pixels x, y (B, N) under the softmax of logits (B, H, W) around them."""
    radius = WINDOW_RADIUS_PX
    size = 2 * radius + 1
    padded = functional.pad(peaks[:, None], (radius,) * 4, value=-1e4)[:, 0]
    stride = padded.shape[2]
    step = torch.arange(size, device=peaks.device)
    window = (step[:, None] * stride + step[None]).flatten()
    index = (y * stride + x)[:, :, None] + window
    around = padded.flatten(1).gather(1, index.flatten(1)).reshape(index.shape)
    share = torch.softmax(around, 2)
    # No matrix product: autocast would round it to 16 bits.
    return torch.stack([(share * (offset - radius)).sum(2) for offset in (step.repeat(size),
                                                                          step.repeat_interleave(size))], 2)
