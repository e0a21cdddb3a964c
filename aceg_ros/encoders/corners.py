# SPDX-License-Identifier: Apache-2.0
"""Keypoints for encoders that predict none: the strongest corner in each cell, with the descriptor sampled there.

The centre of a cell of 8 pixels is up to 4 px away from what the cell shows, and it shows something else in every
image. Corners (Shi and Tomasi, Good Features to Track, CVPR 1994) are found again in other images.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aceg_ros.encoders.feature_map import FeatureMap

SMOOTHING_PX, WINDOW_PX = 1.0, 5        # Gaussian before the gradients, window of the structure tensor
WEAK_SHARE = 0.25                       # of the median strength: corners of this strength count half
OFF_PEAK = 0.3                          # factor for cells whose strongest pixel is on the slope of a neighbour's corner


def with_corners(images: Tensor, found: FeatureMap, stride: int) -> FeatureMap:
    """Move the descriptors of cells to the strongest corners in them.

    Args:
        images: (B, 3, H, W) in [0, 1], the input that `found` was extracted from.
        found: features (B, C, h, w) at the centres of cells.
        stride: size of a cell, in pixels.

    Returns:
        The feature map with keypoints, descriptors sampled there bilinearly, and reliabilities lowered where a cell
        has no corner of its own.
    """
    height, width = found.features.shape[2:]
    keypoints, quality = [], []
    for image in images:
        points, peaks = find_corners(_grey(image), stride)
        keypoints.append(points)
        quality.append(peaks)
    positions = torch.from_numpy(np.stack(keypoints)).to(images.device)
    quality_map = torch.from_numpy(np.stack(quality)).to(images.device)
    reliability = quality_map if found.reliability is None else found.reliability * quality_map
    return FeatureMap(sample(found.features, positions, stride), reliability,
                      positions.permute(0, 3, 1, 2)[:, :, :height, :width])


def find_corners(grey: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the strongest corner of each cell of a grey image (H, W) float32.

    Returns:
        Positions (h, w, 2) in pixels, sub-pixel by a parabola through the neighbouring strengths, and their quality
        (h, w) in [0, 1], float32 each.
    """
    smooth = cv2.GaussianBlur(grey, (0, 0), SMOOTHING_PX)
    strength = cv2.cornerMinEigenVal(smooth, WINDOW_PX)
    rows, columns = (side // stride for side in strength.shape)
    blocks = strength[:rows * stride, :columns * stride].reshape(rows, stride, columns, stride).transpose(0, 2, 1, 3)
    best = blocks.reshape(rows, columns, -1).argmax(2)
    row = np.arange(rows)[:, None] * stride + best // stride
    column = np.arange(columns)[None] * stride + best % stride
    padded = np.pad(strength, 1, mode="edge")
    peak = padded[row + 1, column + 1]
    up, down = padded[row, column + 1], padded[row + 2, column + 1]
    left, right = padded[row + 1, column], padded[row + 1, column + 2]
    is_peak = (peak >= np.maximum(np.maximum(up, down), np.maximum(left, right)))
    position = np.stack([column + _parabola(left, peak, right), row + _parabola(up, peak, down)], -1)
    quality = peak / (peak + WEAK_SHARE * max(float(np.median(peak)), 1e-12)) * np.where(is_peak, 1.0, OFF_PEAK)
    return position.astype(np.float32), quality.astype(np.float32)


def sample(features: Tensor, positions: Tensor, stride: int) -> Tensor:
    """Sample features (B, C, h, w), unit vectors times a constant, bilinearly at pixels (B, h', w', 2).

    The lengths of the descriptors stay the same. Returns (B, C, h', w').
    """
    height, width = features.shape[2:]
    size = torch.tensor([width, height], device=features.device) * stride
    sampled = functional.grid_sample(features, (2.0 * positions + 1.0) / size - 1.0, mode="bilinear",
                                     padding_mode="border", align_corners=False)
    return functional.normalize(sampled, dim=1) * features.shape[1] ** 0.5


def _parabola(before: np.ndarray, peak: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the offsets in [-0.5, 0.5] of the vertices of parabolas through three values at -1, 0 and 1."""
    curvature = before - 2.0 * peak + after
    offset = 0.5 * (before - after) / np.where(curvature < -1e-20, curvature, -1e-20)
    return np.where(curvature < -1e-20, np.clip(offset, -0.5, 0.5), 0.0)


def _grey(image: Tensor) -> np.ndarray:
    """Return the brightness (H, W) float32 of an image (3, H, W) on the CPU."""
    red, green, blue = image.cpu()
    return (0.299 * red + 0.587 * green + 0.114 * blue).numpy().astype(np.float32)
