# SPDX-License-Identifier: Apache-2.0
"""SACReg's encoding, loss and decoding against values computed by hand from the formulas of the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from aceg_ros.networks.coordinate_encoding import (
    ENCODING_DIM,
    coordinate_loss,
    decode_coordinates,
    encode_coordinates,
    frequencies,
    normalise_pairs,
)


def test_periods_run_from_351_m_to_half_a_metre():
    periods = 2 * math.pi / frequencies()
    assert float(periods[0]) == pytest.approx(350.954, abs=1e-3)
    assert float(periods[-1]) == pytest.approx(0.50069, abs=1e-4)
    assert torch.allclose(periods[:-1] / periods[1:], torch.full((5,), 3.7079736887249526, dtype=torch.float64))


def test_encoding_of_a_point_by_hand():
    encoded = encode_coordinates(torch.tensor([0.0, 1.0, -10.0]))
    assert encoded.shape == (3, 6, 2) and encoded.numel() == ENCODING_DIM == 36
    assert torch.equal(encoded[0], torch.tensor([[1.0, 0.0]] * 6))
    # y = 1: f_1 = 0.0179031703, f_2 = 0.0663844843, f_6 = 12.549176
    assert encoded[1, 0].tolist() == pytest.approx([0.99983974, 0.01790221], abs=1e-6)
    assert encoded[1, 1].tolist() == pytest.approx([0.99779736, 0.06633573], abs=1e-6)
    # z = -10: f_1 z = -0.179031703
    assert encoded[2, 0].tolist() == pytest.approx([0.98401662, -0.17807683], abs=1e-6)


def test_far_from_the_origin_half_a_centimetre_still_shows():
    here, there = encode_coordinates(torch.tensor([[998.0, 0, 0], [998.005, 0, 0]], dtype=torch.float64))
    turned = math.atan2(float(there[0, 5, 1]), float(there[0, 5, 0])) - math.atan2(float(here[0, 5, 1]),
                                                                                  float(here[0, 5, 0]))
    assert turned == pytest.approx(0.005 * 0.017903170262351338 * 3.7079736887249526**5, abs=1e-5)


def test_pairs_are_normalised():
    pairs = torch.zeros(1, 3, 6, 2)
    pairs[0, 0, 0] = torch.tensor([3.0, 4.0])
    assert normalise_pairs(pairs)[0, 0, 0].tolist() == pytest.approx([0.6, 0.8])
    assert torch.equal(normalise_pairs(pairs)[0, 1], torch.zeros(6, 2))


def test_loss_by_hand():
    points = torch.zeros(1, 3)
    exact = encode_coordinates(points) * 7.0                       # of any length
    assert float(coordinate_loss(exact, torch.tensor([2.0]), points)) == pytest.approx(-math.log(2.0))
    turned = exact.clone()
    turned[0, 0, 0] = torch.tensor([0.0, 5.0])                     # one of 18 pairs turned by 90 degrees: |1| + |1|
    assert float(coordinate_loss(turned, torch.tensor([0.5]), points)) == pytest.approx(0.5 * 2 / 36 + math.log(2.0))


def test_the_best_confidence_is_one_over_the_error():
    points, confidence = torch.zeros(1, 3), torch.tensor([3.0], requires_grad=True)
    encoding = encode_coordinates(torch.tensor([[0.05, 0.0, 0.0]]))
    error = float((encoding - encode_coordinates(points)).abs().mean())
    coordinate_loss(encoding, confidence, points).sum().backward()
    assert float(confidence.grad) == pytest.approx(error - 1 / 3.0)


@pytest.mark.parametrize("centre, extent", [(0.0, 2.0), (-740.0, 12.0), (900.0, 300.0)])
def test_decoding_inverts_encoding(centre: float, extent: float):
    rng = np.random.default_rng(0)
    points = torch.from_numpy(centre + extent * rng.uniform(-0.5, 0.5, (200, 3)))
    low, high = torch.full((3,), centre - extent / 2), torch.full((3,), centre + extent / 2)
    decoded = decode_coordinates(encode_coordinates(points) * 0.3, low, high)
    assert float((decoded - points).abs().max()) < 1e-3


def test_decoding_stays_in_the_range_of_the_points():
    decoded = decode_coordinates(encode_coordinates(torch.tensor([[5.0, -5.0, 0.5]])), torch.zeros(3), torch.ones(3))
    assert ((decoded >= 0) & (decoded <= 1)).all() and float(decoded[0, 2]) == pytest.approx(0.5, abs=1e-3)


def test_decoding_finds_the_global_minimum_under_noise():
    """A wrong period of the finest pair costs half a metre: the coarser ones must choose it."""
    generator = torch.Generator().manual_seed(0)
    points = 20.0 * torch.rand(300, 3, generator=generator) - 10.0
    noisy = encode_coordinates(points) + 0.1 * torch.randn(300, 3, 6, 2, generator=generator)
    decoded = decode_coordinates(noisy, torch.full((3,), -10.0), torch.full((3,), 10.0))
    error = (decoded - points).abs()
    assert float(error.median()) < 0.01 and float((error > 0.25).float().mean()) < 0.01
    probes = torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    squared = (normalise_pairs(noisy)[:50, 0, None] - encode_coordinates(probes[:, None])[None, :, 0]).square()
    best = probes[squared.sum((-1, -2)).argmin(1)]
    assert float((decoded[:50, 0] - best).abs().max()) < 2e-3
