# SPDX-License-Identifier: Apache-2.0
"""Matching within epipolar bands compares only what is in them, and finds what comparing all pairs finds."""

from __future__ import annotations

import numpy as np
import pytest

from aceg_ros.mapping.pair_matching import match_within_bands


def unit_vectors(rng: np.random.Generator, count: int) -> np.ndarray:
    vectors = rng.normal(size=(count, 128))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("band_px", [2.0, 25.0, 1000.0])
def test_matches_are_those_of_all_pairs_within_the_bands(band_px: float) -> None:
    rng = np.random.default_rng(3)
    a, b = unit_vectors(rng, 300), unit_vectors(rng, 260)
    b[:200] = a[:200] + 0.05 * unit_vectors(rng, 200)
    angles, through = rng.uniform(0, 2 * np.pi, 300), rng.uniform(0, (640, 480), (300, 2))
    pixels = np.stack([*rng.uniform(0, (640, 480), (260, 2)).T, np.ones(260)]).astype(np.float32)
    pixels[:2, :150] = through[:150].T                                           # others are not where they should be
    normals = np.column_stack([np.cos(angles), np.sin(angles)])
    lines = np.column_stack([normals, -(normals * through).sum(1)]).astype(np.float32)

    similarity = np.where(np.abs(lines @ pixels) <= band_px, a @ b.T, -2.0)
    best = similarity.argmax(1)
    mutual = [(i, j) for i, j in enumerate(best) if similarity[i, j] > 0 and similarity[:, j].argmax() == i]
    left, right = match_within_bands(a, b, lines, pixels, band_px=np.float32(band_px))
    assert list(zip(left.tolist(), right.tolist(), strict=True)) == mutual
    assert sum(i == j for i, j in mutual) >= 140


def test_no_pair_in_a_band_is_no_match() -> None:
    vectors = unit_vectors(np.random.default_rng(0), 5)
    lines = np.tile(np.array([1.0, 0.0, -900.0], np.float32), (5, 1))
    left, right = match_within_bands(vectors, vectors, lines, np.ones((3, 5), np.float32), band_px=np.float32(2.0))
    assert len(left) == len(right) == 0
