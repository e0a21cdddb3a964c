# SPDX-License-Identifier: Apache-2.0
"""Compiled comparisons of observations and keypoints against plain ones."""

from __future__ import annotations

import numpy as np
import pytest

from aceg_ros.maps.nearby_keypoints import similarity_of_pairs, take_nearby

STRIDE, RADIUS_PX = 8, 20.0


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)


class Made:
    """n keypoints, one in a cell of a grid, and M projections, of rows of a map's descriptors."""

    def __init__(self, keypoints: int, projections: int, dim: int = 32):
        rng = np.random.default_rng(0)
        self.grid = np.full((12, 16), -1, np.int32)
        cells = rng.permutation(self.grid.size)[:keypoints]
        self.grid.ravel()[cells] = np.arange(keypoints)
        self.keypoints = (np.column_stack([cells % 16, cells // 16]) * STRIDE
                          + rng.uniform(-0.5, 7.5, (keypoints, 2))).astype(np.float32)
        self.projections = rng.uniform(0, (127, 95), (projections, 2))
        self.stored = rng.integers(-60, 60, (300, dim), np.int8)
        self.rows = rng.integers(0, 300, projections)
        self.described = unit(rng.normal(size=(keypoints, dim))).astype(np.float32)
        self.similarity = unit(self.stored)[self.rows] @ self.described.T.astype(np.float64)

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        return take_nearby(self.projections, self.stored, self.rows, grid=self.grid, stride=STRIDE,
                           keypoints=self.keypoints, described=self.described, radius_px=RADIUS_PX)


def test_each_observation_takes_the_most_similar_keypoint_around_and_each_keypoint_keeps_one():
    made = Made(keypoints=120, projections=400)
    distance = np.linalg.norm(made.projections[:, None] - made.keypoints[None].astype(np.float64), axis=2)
    masked = np.where(distance < RADIUS_PX, made.similarity, -np.inf)
    chosen = masked.argmax(1)
    expected = np.full(120, -1)
    for keypoint in range(120):
        takers = np.flatnonzero((chosen == keypoint) & np.isfinite(masked.max(1)))
        if len(takers):
            expected[keypoint] = takers[masked[takers, keypoint].argmax()]
    taken, similarity = made.take()
    assert np.array_equal(taken, expected) and 60 < (taken >= 0).sum() < 120
    found = np.flatnonzero(taken >= 0)
    assert np.abs(similarity[found] - made.similarity[taken[found], found]).max() < 1e-5


@pytest.mark.parametrize(("keypoints", "projections"), [(0, 10), (10, 0), (0, 0)])
def test_of_nothing_nothing_is_taken(keypoints, projections):
    taken, similarity = Made(keypoints=keypoints, projections=projections).take()
    assert len(taken) == len(similarity) == keypoints and (taken < 0).all()


def test_pairs_are_compared_at_unit_length():
    made = Made(keypoints=120, projections=400)
    pairs = np.random.default_rng(1).integers(0, 120, 400)
    similarity = similarity_of_pairs(made.stored, made.rows, made.described, pairs)
    assert similarity.dtype == np.float32
    assert np.abs(similarity - made.similarity[np.arange(400), pairs]).max() < 1e-5
