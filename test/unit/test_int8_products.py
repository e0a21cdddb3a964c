# SPDX-License-Identifier: Apache-2.0
"""Products of 8-bit integers and their maxima against plain ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from aceg_ros.utils.device import multiplies_int8
from aceg_ros.utils.int8_products import (
    STORED_SCALE,
    Int8Vectors,
    mean_descriptors,
    mutual_greatest,
    two_greatest,
)

DIM = 64
SIZES = [(1, 1), (1, 3), (7, 40), (130, 31), (300, 5000), (1500, 700), (20, 70_000)]


def unit(count: int, seed: int) -> torch.Tensor:
    return functional.normalize(torch.randn((count, DIM), generator=torch.Generator().manual_seed(seed)), dim=1)


def stored(count: int) -> torch.Tensor:
    return (unit(count, 1) * STORED_SCALE).round().to(torch.int8)


def plain(vectors: Int8Vectors, others: torch.Tensor) -> np.ndarray:
    """Exact similarities (N, M) of the rounded vectors."""
    products = vectors.rows[:vectors.count].double() @ functional.normalize(others.double(), dim=1).T
    return (products / vectors.scale).numpy()


@pytest.mark.parametrize(("count", "others"), SIZES)
def test_the_two_greatest_of_each_vector(count, others):
    vectors, rows = Int8Vectors.of(unit(count, 0)), stored(others)
    found, expected = two_greatest(vectors, rows), plain(vectors, rows)
    assert np.abs(found.similarity - expected.max(1)).max() < 1e-5
    assert np.abs(expected[np.arange(count), found.row] - expected.max(1)).max() < 1e-5
    if others > 1:
        assert np.abs(found.second - np.sort(expected, 1)[:, -2]).max() < 1e-5


@pytest.mark.parametrize(("count", "others"), SIZES)
def test_the_greatest_of_each_vector_and_of_what_it_found(count, others):
    vectors, rows = Int8Vectors.of(unit(count, 0)), stored(others)
    expected = plain(vectors, rows)
    similarity, row, returned = mutual_greatest(vectors, rows)
    assert np.abs(similarity - expected.max(1)).max() < 1e-5
    assert np.abs(expected[np.arange(count), row] - expected.max(1)).max() < 1e-5
    assert np.abs(returned - expected.max(0)[row]).max() < 1e-5
    is_mutual = expected.argmax(0)[row] == np.arange(count)
    assert np.array_equal(returned == similarity, is_mutual)        # to the last digit


def test_rounding_changes_similarities_by_less_than_a_hundredth():
    vectors, rows = Int8Vectors.of(unit(50, 0)), stored(90)
    exact = unit(50, 0) @ functional.normalize(rows.float(), dim=1).T
    assert np.abs(plain(vectors, rows) - exact.numpy()).max() < 0.01
    axes = Int8Vectors.of(torch.eye(DIM))
    assert np.abs(two_greatest(axes, (torch.eye(DIM) * 90).to(torch.int8)).similarity - 1.0).max() < 1e-5


def test_of_nothing_nothing_is_found():
    assert len(two_greatest(Int8Vectors.of(unit(0, 0)), stored(10)).row) == 0


def test_means_of_groups_have_unit_length():
    rows, groups = stored(200), np.random.default_rng(0).integers(0, 30, 150)
    chosen = np.random.default_rng(1).integers(0, 200, 150)
    means = mean_descriptors(rows.numpy(), chosen, groups, 31)
    for group in range(30):
        expected = functional.normalize(rows[chosen[groups == group]].float().sum(0), dim=0) * STORED_SCALE
        assert np.abs(means[group] - expected.numpy()).max() < 0.51
    assert (means[30] == 0).all()


def test_a_device_other_than_a_processor_is_given_floats():
    assert not multiplies_int8(torch.device("cuda"))
