# SPDX-License-Identifier: Apache-2.0
"""Tracks of exact views of random points: they come back from noisy pixels and wrong matches."""

import numpy as np
import pytest

from aceg_ros.geometry import look_at
from aceg_ros.mapping.build_database import select_observations
from aceg_ros.mapping.tracks import Observations, build_tracks

POINTS, VIEWS = 120, 8
INTRINSICS = np.array([400.0, 400.0, 320.0, 240.0])


def views_of(points: np.ndarray, noise_px: float, rng: np.random.Generator) -> Observations:
    """All points in all views: keypoint v * POINTS + p is point p in view v."""
    poses = np.stack([look_at(np.array([x, -3.0, 0.2 * x]), np.zeros(3)) for x in np.linspace(-1.5, 1.5, VIEWS)])
    local = np.einsum("vij,vpj->vpi", poses[:, :3, :3].transpose(0, 2, 1), points - poses[:, None, :3, 3])
    pixels = local[..., :2] / local[..., 2:] * INTRINSICS[:2] + INTRINSICS[2:]
    pixels += rng.normal(0, noise_px, pixels.shape)
    return Observations(images=np.repeat(np.arange(VIEWS), len(points)), pixels=pixels.reshape(-1, 2), poses=poses,
                        intrinsics=np.tile(INTRINSICS, (VIEWS, 1)))


def matches_of(rng: np.random.Generator, wrong_share: float) -> np.ndarray:
    """Matches of all points in views that are up to two apart, some of them with another point."""
    found = []
    for a in range(VIEWS):
        for b in range(a + 1, min(a + 3, VIEWS)):
            other = np.arange(POINTS)
            wrong = rng.random(POINTS) < wrong_share
            other[wrong] = rng.integers(0, POINTS, wrong.sum())
            found.append(np.column_stack([a * POINTS + np.arange(POINTS), b * POINTS + other]))
    return np.concatenate(found)


@pytest.fixture
def points():
    return np.random.default_rng(1).uniform(-1, 1, (POINTS, 3))


@pytest.mark.parametrize("wrong_share", [0.0, 0.2])
def test_points_come_back_although_some_matches_are_wrong(points, wrong_share):
    rng = np.random.default_rng(0)
    tracks = build_tracks(views_of(points, 0.5, rng), matches_of(rng, wrong_share), 3.0)
    truth = np.tile(np.arange(POINTS), VIEWS)
    members = tracks.track >= 0
    error = np.linalg.norm(tracks.points[tracks.track[members]] - points[truth[members]], axis=1)
    assert members.mean() > (0.99 if wrong_share == 0 else 0.85)
    assert np.median(error) < 0.01
    assert (error < 0.05).mean() > 0.97
    assert np.nanmax(tracks.errors_px) < 3.0
    assert np.isnan(tracks.errors_px[~members]).all()


def test_no_track_has_an_image_twice(points):
    rng = np.random.default_rng(0)
    observations = views_of(points, 0.5, rng)
    tracks = build_tracks(observations, matches_of(rng, 0.3), 3.0)
    members = tracks.track >= 0
    pairs = tracks.track[members] * VIEWS + observations.images[members]
    assert len(np.unique(pairs)) == len(pairs)
    assert np.bincount(tracks.track[members]).min() >= 3


def test_two_views_or_no_parallax_make_no_track(points):
    rng = np.random.default_rng(0)
    observations = views_of(points, 0.0, rng)
    two = np.column_stack([np.arange(POINTS), POINTS + np.arange(POINTS)])
    assert len(build_tracks(observations, two, 3.0).points) == 0
    still = Observations(images=observations.images, pixels=np.tile(observations.pixels[:POINTS], (VIEWS, 1)),
                         poses=np.tile(observations.poses[:1], (VIEWS, 1, 1)), intrinsics=observations.intrinsics)
    assert len(build_tracks(still, matches_of(rng, 0.0), 3.0).points) == 0
    assert len(build_tracks(observations, np.zeros((0, 2), np.int64), 3.0).points) == 0


def test_observations_are_kept_where_they_add_landmarks():
    """Ten images of the same five points and one of five others: with room for four images, the other one is kept."""
    images = np.repeat(np.arange(11), 5)
    track = np.r_[np.tile(np.arange(5), 10), np.arange(5, 10)]
    chosen = select_observations(images, track, 20)
    assert len(chosen) == 20
    assert set(images[chosen]) >= {10}
    assert np.array_equal(select_observations(images, track, 1000), np.arange(55))
