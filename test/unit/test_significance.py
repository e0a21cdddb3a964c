# SPDX-License-Identifier: Apache-2.0
"""Significance: matches at random are not significant, right ones are, and the threshold follows their noise."""

import numpy as np
import pytest
from scipy.stats import binom

from aceg_ros.camera import Camera
from aceg_ros.pose.correspondences import Correspondences
from aceg_ros.pose.significance import MINIMAL_SAMPLE, compute_significance

CAMERA = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=319.5, cy=239.5)
RADIUS_PX = 12.0


def spread(count: int, rng: np.random.Generator):
    """Usable correspondences all over the image."""
    pixels = rng.uniform((0, 0), (639, 479), (count, 2))
    return Correspondences(pixels=pixels, points=np.ones((count, 3)), camera=CAMERA).usable


def in_disc(count: int, rng: np.random.Generator) -> np.ndarray:
    """Squared distances of points that are uniform in the search window."""
    return RADIUS_PX**2 * rng.random(count)


def test_random_matches_are_as_many_as_chance_gives():
    rng = np.random.default_rng(0)
    values = [compute_significance(spread(200, rng), in_disc(200, rng), RADIUS_PX).log10_nfa for _ in range(200)]
    assert min(values) > -2.0


@pytest.mark.parametrize("noise_px", [0.5, 1.0, 2.0])
def test_the_threshold_follows_the_noise(noise_px):
    rng = np.random.default_rng(0)
    squared = np.r_[np.square(rng.normal(0, noise_px, (150, 2))).sum(1), in_disc(150, rng)]
    found = compute_significance(spread(300, rng), squared, RADIUS_PX)
    assert found.log10_nfa < -20
    assert 1.3 * noise_px < found.threshold_px < 3.5 * noise_px


def test_it_is_the_binomial_tail_times_the_number_of_samples():
    rng = np.random.default_rng(0)
    data = spread(40, rng)
    squared = np.r_[np.full(15, 0.25), np.full(25, 11.0**2)]
    found = compute_significance(data, squared, RADIUS_PX)
    expected = MINIMAL_SAMPLE * np.log10(40) + np.log10(binom.sf(15 - MINIMAL_SAMPLE - 1, 40 - MINIMAL_SAMPLE,
                                                                  (1.0 / RADIUS_PX)**2))
    assert found.threshold_px == 1.0
    assert found.log10_nfa == pytest.approx(expected, abs=0.2)


def test_matches_in_one_corner_count_little():
    rng = np.random.default_rng(0)
    count = 100
    corner = Correspondences(pixels=rng.uniform(0, 60, (count, 2)), points=np.ones((count, 3)), camera=CAMERA).usable
    everywhere = spread(count, rng)
    squared = np.full(count, 0.25)
    assert compute_significance(corner, squared, RADIUS_PX).log10_nfa > -15
    assert compute_significance(everywhere, squared, RADIUS_PX).log10_nfa < -100
