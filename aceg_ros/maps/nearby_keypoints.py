# SPDX-License-Identifier: Apache-2.0
"""Compares observations with the few keypoints around their projections, in compiled code: there, descriptors of pairs
are compared where they are, without gathering them.

Descriptors of a map are int8 and are compared as vectors of unit length.
"""

from __future__ import annotations

import numpy as np

from aceg_ros.utils.compiled import compiled


@compiled
def take_nearby(projections: np.ndarray, stored: np.ndarray, observations: np.ndarray, grid: np.ndarray, stride: int,
                keypoints: np.ndarray, described: np.ndarray, radius_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Let each observation take the most similar keypoint around its projection, and each keypoint keep the most
    similar observation that took it.

    Args:
        projections: (M, 2) pixels.
        stored: (N, C) int8 descriptors of all observations.
        observations: (M,) rows of `stored`.
        grid: (h, w) int32, the keypoint in each cell of the image, -1 where there is none.
        stride: side of the cells, pixels.
        keypoints: (n, 2) pixels.
        described: (n, C) float32 descriptors of the keypoints, of unit length.
        radius_px: how far from a projection its keypoint may be.

    Returns:
        taken: (n,) int64, which of the M observations each keypoint keeps, -1 where none took it.
        similarity: (n,) float32 of the two.
    """
    height, width = grid.shape
    reach = int(np.ceil(radius_px / stride))
    taken = np.full(len(keypoints), -1, np.int64)
    greatest = np.zeros(len(keypoints), np.float32)
    unit = np.empty(stored.shape[1], np.float32)
    for number in range(len(projections)):
        x, y = projections[number, 0], projections[number, 1]
        column = min(max(int((x + 0.5) / stride), 0), width - 1)
        row = min(max(int((y + 0.5) / stride), 0), height - 1)
        is_converted, best, most = False, -1, np.float32(0.0)
        for near_row in range(max(row - reach, 0), min(row + reach + 1, height)):
            for near_column in range(max(column - reach, 0), min(column + reach + 1, width)):
                keypoint = grid[near_row, near_column]
                if keypoint < 0:
                    continue
                if (keypoints[keypoint, 0] - x)**2 + (keypoints[keypoint, 1] - y)**2 >= radius_px**2:
                    continue
                if not is_converted:
                    to_unit_length(stored[observations[number]], unit)
                    is_converted = True
                similarity = dot(unit, described[keypoint])
                if best < 0 or similarity > most:
                    best, most = keypoint, similarity
        if best >= 0 and (taken[best] < 0 or most > greatest[best]):
            taken[best], greatest[best] = number, most
    return taken, greatest


@compiled
def similarity_of_pairs(stored: np.ndarray, rows: np.ndarray, described: np.ndarray, keypoints: np.ndarray
                        ) -> np.ndarray:
    """Return the similarity (P,) float32 of pairs of rows (P,) of stored descriptors (N, C), int8, and keypoints (P,),
    rows of descriptors (n, C) float32 of unit length."""
    similarity = np.empty(len(rows), np.float32)
    unit = np.empty(stored.shape[1], np.float32)
    for pair in range(len(rows)):
        to_unit_length(stored[rows[pair]], unit)
        similarity[pair] = dot(unit, described[keypoints[pair]])
    return similarity


@compiled
def to_unit_length(descriptor: np.ndarray, unit: np.ndarray) -> None:
    """Write a descriptor (C,) int8 as a vector of unit length to `unit` (C,) float32."""
    squared = np.int32(0)
    for entry in range(len(descriptor)):
        squared += np.int32(descriptor[entry]) * np.int32(descriptor[entry])
    scale = np.float32(1.0 / np.sqrt(max(int(squared), 1)))
    for entry in range(len(descriptor)):
        unit[entry] = np.float32(descriptor[entry]) * scale


@compiled
def dot(a: np.ndarray, b: np.ndarray) -> np.float32:
    """Return the product of two vectors (C,) float32."""
    total = np.float32(0.0)
    for entry in range(len(a)):
        total += a[entry] * b[entry]
    return total
