# SPDX-License-Identifier: Apache-2.0
"""The pose solver on simulated correspondences: recovery, weights and masks, covariance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from simulated_views import (
    BACKENDS,
    CAMERA,
    accepted_parts,
    assert_rejected,
    error,
    grid,
    random_pose,
    solve,
    to_map,
    view,
)

from aceg_ros.estimate import Status
from aceg_ros.pose import ransac
from aceg_ros.pose.config import GateConfig, SolverConfig
from aceg_ros.pose.correspondences import CameraFromMap


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(5))
def test_exact_points_give_the_exact_pose(backend: str, seed: int) -> None:
    pixels, points, pose = view(seed)
    estimate = solve(pixels, points, SolverConfig(backend=backend))
    assert np.abs(error(estimate, pose)).max() <= 1e-6
    assert estimate.inliers == len(pixels) and estimate.inlier_ratio == 1.0
    assert set(estimate.stage_ms) == {"ransac", "refine", "gates"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("outliers", [0.0, 0.3, 0.6, 0.8])
def test_noise_and_outliers(backend: str, outliers: float) -> None:
    for seed in range(10):
        pixels, points, pose = view(seed, 4000, noise_px=2.0, outliers=outliers)
        off = error(solve(pixels, points, SolverConfig(backend=backend)), pose)
        assert np.linalg.norm(off[:3]) < 0.05 and np.linalg.norm(off[3:]) < np.radians(1.0)


def test_nine_outliers_in_ten_are_right_or_rejected() -> None:
    accepted = 0
    for seed in range(10):
        pixels, points, pose = view(seed, 4800, noise_px=2.0, outliers=0.88)
        estimate = solve(pixels, points)
        if estimate.accepted:
            accepted += 1
            assert np.linalg.norm(error(estimate, pose)[:3]) < 0.1
    assert accepted >= 8


def test_same_seed_same_pose() -> None:
    pixels, points, _ = view(3, noise_px=3.0, outliers=0.4)
    for backend in BACKENDS:
        first, second = (solve(pixels, points, SolverConfig(backend=backend), seed=7) for _ in range(2))
        for one, other in zip(accepted_parts(first), accepted_parts(second), strict=True):
            assert np.array_equal(one, other)


def test_masked_points_are_never_used() -> None:
    pixels, points, pose = view(4, noise_px=1.0)
    mask = np.random.default_rng(0).random(len(pixels)) < 0.5
    clean = solve(pixels, points, mask=mask)
    points[~mask] = np.random.default_rng(1).normal(size=(int((~mask).sum()), 3)) * 1e3
    spoilt = solve(pixels, points, mask=mask)
    assert np.array_equal(accepted_parts(clean)[0], accepted_parts(spoilt)[0])
    assert mask[accepted_parts(spoilt)[2]].all() and spoilt.inlier_ratio > 0.99
    assert np.linalg.norm(error(spoilt, pose)[:3]) < 0.02


def test_inlier_indices_are_the_callers() -> None:
    pixels, points, _ = view(5)
    points[::2] = np.nan
    points[1::4] += np.random.default_rng(5).uniform(0.5, 3.0, points[1::4].shape)
    _, _, inliers = accepted_parts(solve(pixels, points))
    assert np.isin(np.arange(3, len(pixels), 4), inliers).all()
    assert not np.isin(np.arange(0, len(pixels), 2), inliers).any()


def test_weights_decide_between_two_poses() -> None:
    """Two poses explain half of the points each: the one with the trusted points wins."""
    pixels, here, pose_here = view(6)
    _, _, pose_there = view(7)
    there = to_map(pixels, np.random.default_rng(8).uniform(1.0, 5.0, len(pixels)), pose_there)
    even = np.arange(len(pixels)) % 2 == 0
    points = np.where(even[:, None], here, there)
    for trusted, pose in ((even, pose_here), (~even, pose_there)):
        estimate = solve(pixels, points, weights=np.where(trusted, 1.0, 0.05))
        assert np.abs(error(estimate, pose)).max() < 0.01


def test_weights_reduce_the_error() -> None:
    rng = np.random.default_rng(9)
    plain, weighted = [], []
    for seed in range(20):
        pixels, points, pose = view(seed, 1000)
        sigma = np.where(rng.random(1000) < 0.5, 0.3, 6.0)
        noisy = pixels + rng.normal(size=pixels.shape) * sigma[:, None]
        plain.append(np.linalg.norm(error(solve(noisy, points), pose)))
        weighted.append(np.linalg.norm(error(solve(noisy, points, weights=sigma**-2.0), pose)))
    assert np.median(weighted) < 0.8 * np.median(plain)


def test_covariance_matches_monte_carlo() -> None:
    """Translation, rotation and their coupling, at a pose that is neither upright nor at the origin."""
    pixels, points, pose = view(11, 1500)
    rng = np.random.default_rng(12)
    gates = GateConfig(residual_correlation=0.0)
    errors, predicted = [], []
    for trial in range(250):
        estimate = solve(pixels + rng.normal(size=pixels.shape) * 1.5, points, gates=gates, seed=trial)
        errors.append(error(estimate, pose))
        predicted.append(accepted_parts(estimate)[1])
    mean = np.mean(predicted, axis=0)
    measured = np.cov(np.array(errors).T)
    # Whitened by the prediction, the errors must have unit covariance, cross terms included (250 draws: +-0.09).
    root = np.linalg.inv(np.linalg.cholesky(mean))
    assert np.abs(root @ measured @ root.T - np.eye(6)).max() < 0.4
    assert np.trace(root @ measured @ root.T) / 6.0 == pytest.approx(1.0, abs=0.2)


def test_covariance_grows_with_correlated_errors() -> None:
    pixels, pose = grid(), random_pose(13)
    rng = np.random.default_rng(14)
    points = to_map(pixels, rng.uniform(1.0, 5.0, len(pixels)), pose)
    smooth = np.stack([gaussian_filter(rng.normal(size=(60, 80)), 6.0) for _ in range(2)], -1).reshape(-1, 2)
    smooth *= 2.0 / smooth.std()
    independent = rng.normal(size=smooth.shape) * 2.0
    traces = [np.trace(accepted_parts(solve(pixels + noise, points))[1]) for noise in (independent, smooth)]
    assert traces[1] > 30.0 * traces[0]


def test_no_consensus(monkeypatch: pytest.MonkeyPatch) -> None:
    not_finite = CameraFromMap(rotation=np.full((3, 3), np.nan), translation=np.zeros(3))
    for result in (None, not_finite):
        monkeypatch.setitem(ransac.RANSAC, "poselib", lambda *_, result=result: result)
        assert_rejected(Status.NO_CONSENSUS, *view(9)[:2])


def test_programming_errors_are_raised() -> None:
    pixels, points, _ = view(10, 50)
    with pytest.raises(ValueError, match="pixels"):
        solve(pixels[:-1], points)
    with pytest.raises(ValueError, match="weights"):
        solve(pixels, points, weights=np.ones(3))
    with pytest.raises(ValueError, match="rectified"):
        solve(pixels, points, camera=replace(CAMERA, model="plumb_bob", distortion=(0.1, 0.0, 0.0, 0.0)))
    with pytest.raises(ValueError, match="backend"):
        SolverConfig(backend="magic")
