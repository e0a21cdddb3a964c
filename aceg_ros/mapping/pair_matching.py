# SPDX-License-Identifier: Apache-2.0
"""Matches the keypoints of all covisible pairs of mapping images, within bands that follow the noise of their poses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.covisibility import CovisibilityFeatures, select_covisible_images
from aceg_ros.mapping.matching import ExtractedFeatures, epipolar_lines, homogeneous_pixels
from aceg_ros.utils.compiled import compiled
from aceg_ros.utils.device import product_type
from aceg_ros.utils.maxima import column_values, row_maxima

NOISE_PAIRS, NOISE_KEYPOINTS = 40, 800      # pairs, and keypoints of each, that the noise is estimated from
FARTHEST_PX = 48.0                          # matches farther from their epipolar line only tell how many are wrong
WRONG_FROM_PX = 16.0                        # matches from here to FARTHEST_PX count as wrong
MIN_SIMILARITY = 0.7                        # of the matches that the noise is estimated from
MIN_MATCHES = 200
TOLERANCE_NOISES = 4.0                      # tolerance in noises: medians of the distance from the epipolar line
MIN_TOLERANCE_PX, MAX_TOLERANCE_PX = 2.5, 20.0      # wide enough that poses off by decimetres can be refined


def covisible_pairs(images: Sequence[ExtractedFeatures], count: int, stride: int) -> np.ndarray:
    """Return the pairs (P, 2) of images to match: each with up to `count` covisible ones, smaller index first."""
    features = CovisibilityFeatures.stack(images)
    pairs = {(min(index, other), max(index, other)) for index, image in enumerate(images)
             for other in select_covisible_images(image, features, count, stride)}
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


@torch.inference_mode()
def estimate_tolerance_px(images: Sequence[ExtractedFeatures], pairs: np.ndarray, seed: int) -> float:
    """Estimate how far right matches may be from where poses and keypoints put them.

    Poses of robots are off by centimetres, and blurred images repeat their keypoints to five pixels, sharp ones to one.
    The noise is the median distance of right matches from their epipolar lines; wrong ones lie at any distance, so that
    those far away tell how many there are nearby.
    """
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:NOISE_PAIRS]
    found = [_epipolar_distances(images[a], images[b]) for a, b in pairs[chosen]]
    distance = np.concatenate(found) if found else np.zeros(0)
    near = np.sort(distance[distance < WRONG_FROM_PX])
    if len(near) < MIN_MATCHES:
        return MAX_TOLERANCE_PX
    wrong_per_px = ((distance >= WRONG_FROM_PX) & (distance < FARTHEST_PX)).sum() / (FARTHEST_PX - WRONG_FROM_PX)
    right = np.arange(1, len(near) + 1) - wrong_per_px * near
    median = near[min(int(np.searchsorted(right, 0.5 * right[-1])), len(near) - 1)]
    return float(np.clip(TOLERANCE_NOISES * median, MIN_TOLERANCE_PX, MAX_TOLERANCE_PX))


def match_pairs(images: Sequence[ExtractedFeatures], pairs: np.ndarray, tolerance_px: float, *, seed: int,
                budget: MappingBudget) -> np.ndarray:
    """Match the keypoints of all pairs, in random order until the budget is over.

    Returns:
        (M, 2) matches; keypoint k of image i has the number first[i] + k, where first counts the keypoints of the
        images before it.
    """
    first = np.cumsum([0] + [len(image.pixels) for image in images])
    found = [np.zeros((0, 2), np.int64)]
    found += [np.column_stack([first[a] + left, first[b] + right]) for a, b, left, right in
              _matched(images, pairs[np.random.default_rng(seed).permutation(len(pairs))], tolerance_px, budget)]
    return np.concatenate(found)


def _matched(images: Sequence[ExtractedFeatures], pairs: np.ndarray, tolerance_px: float, budget: MappingBudget
             ) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    for done, (a, b) in enumerate(pairs):
        if budget.is_over():
            return
        left, right = match_mutually(images[a], images[b], tolerance_px)
        yield int(a), int(b), left.cpu().numpy(), right.cpu().numpy()
        if done % 16 == 0:
            budget.report(done / len(pairs))


@torch.inference_mode()
def match_mutually(a: ExtractedFeatures, b: ExtractedFeatures, band_px: float | None) -> tuple[Tensor, Tensor]:
    """Return mutual nearest neighbours, indices (M,) in a and (M,) in b, among pairs within band_px of the epipolar
    line; None: among all."""
    if band_px is not None and a.features.device.type == "cpu":
        lines, pixels = _lines_and_pixels(a, b)
        left, right = match_within_bands(_array(a.features), _array(b.features), _array(lines), _array(pixels.T),
                                         band_px=np.float32(band_px))
        return torch.from_numpy(left), torch.from_numpy(right)
    kind = product_type(a.features.device)
    similarity = a.features.to(kind) @ b.features.to(kind).T
    if band_px is not None:
        lines, pixels = _lines_and_pixels(a, b)
        similarity.masked_fill_((lines @ pixels.T).abs_() > band_px, -2.0)
    best, column = row_maxima(similarity)
    matched = (best == column_values(similarity)[column]) & (best > 0.0)
    return matched.nonzero()[:, 0], column[matched]


def _lines_and_pixels(a: ExtractedFeatures, b: ExtractedFeatures) -> tuple[Tensor, Tensor]:
    """Return the epipolar lines (N, 3) of the keypoints of a in b, and the homogeneous pixels (L, 3) of those of b."""
    lines = epipolar_lines(a.rays, a.centre, b.camera_from_map[None], b.intrinsics[None])[0]
    return lines, homogeneous_pixels(b.pixels, b.intrinsics)


def _array(values: Tensor) -> np.ndarray:
    return values.float().contiguous().numpy()


@compiled
def match_within_bands(a: np.ndarray, b: np.ndarray, lines: np.ndarray, pixels: np.ndarray, band_px: np.float32
                       ) -> tuple[np.ndarray, np.ndarray]:
    """Return mutual nearest neighbours, indices (M,) and (M,), of descriptors a (N, C) and b (L, C), float32, among
    pairs within band_px of epipolar lines (N, 3): only these, a few hundredths of all, are compared.

    pixels: (3, L) homogeneous.
    """
    row_best, row = np.zeros(len(a), np.float32), np.full(len(a), -1, np.int64)
    column_best, near = np.zeros(len(b), np.float32), np.empty(len(b), np.int64)
    for i in range(len(a)):
        along_x, along_y, offset = lines[i, 0], lines[i, 1], lines[i, 2]
        count = 0
        for j in range(len(b)):
            near[count] = j
            distance = along_x * pixels[0, j] + along_y * pixels[1, j] + offset * pixels[2, j]
            count += 1 if abs(distance) <= band_px else 0
        for number in range(count):
            j = near[number]
            similarity = np.float32(0.0)
            for entry in range(a.shape[1]):
                similarity += a[i, entry] * b[j, entry]
            column_best[j] = max(column_best[j], similarity)
            if similarity > row_best[i]:
                row_best[i], row[i] = similarity, j
    chosen = np.array([i for i in range(len(a)) if row[i] >= 0 and row_best[i] == column_best[row[i]]], np.int64)
    return chosen, row[chosen]


def _epipolar_distances(a: ExtractedFeatures, b: ExtractedFeatures) -> np.ndarray:
    """Return the distances (M,) in pixels of sure matches from their epipolar lines."""
    a, b = a.best(NOISE_KEYPOINTS), b.best(NOISE_KEYPOINTS)
    left, right = match_mutually(a, b, None)
    sure = (a.features[left] * b.features[right]).sum(1) > MIN_SIMILARITY
    lines, pixels = _lines_and_pixels(a, b)
    return (lines[left[sure]] * pixels[right[sure]]).sum(1).abs().cpu().numpy()
