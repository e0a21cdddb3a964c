# SPDX-License-Identifier: Apache-2.0
"""Every rejection of a pose, on simulated correspondences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from simulated_views import (
    BACKENDS,
    CAMERA,
    accepted_parts,
    assert_rejected,
    error,
    grid,
    random_pose,
    repeated,
    smooth_field,
    solve,
    to_map,
    view,
)

from aceg_ros.estimate import Status
from aceg_ros.pose.config import GateConfig, SolverConfig
from aceg_ros.pose.gates import check_inlier_count


def test_too_few_usable_correspondences() -> None:
    pixels, points, _ = view(0, 100)
    assert_rejected(Status.TOO_FEW_CORRESPONDENCES, np.empty((0, 2)), np.empty((0, 3)))
    assert_rejected(Status.TOO_FEW_CORRESPONDENCES, pixels[:5], points[:5])
    assert_rejected(Status.TOO_FEW_CORRESPONDENCES, pixels, np.full_like(points, np.nan))
    assert_rejected(Status.TOO_FEW_CORRESPONDENCES, pixels, np.full_like(points, np.inf))
    assert_rejected(Status.TOO_FEW_CORRESPONDENCES, pixels, np.full_like(points, 1e30))
    assert_rejected(Status.TOO_FEW_CORRESPONDENCES, np.full_like(pixels, np.nan), points)
    assert_rejected(Status.TOO_FEW_CORRESPONDENCES, pixels, points, mask=np.zeros(100, bool))
    assert_rejected(Status.TOO_FEW_CORRESPONDENCES, pixels, points, weights=np.zeros(100))
    assert_rejected(Status.TOO_FEW_CORRESPONDENCES, pixels, points, weights=np.full(100, np.nan))


def test_some_bad_values_do_no_harm() -> None:
    pixels, points, pose = view(1)
    for row, value in enumerate((np.nan, np.inf, -np.inf, 1e200, 1e7)):
        points[row, row % 3] = value
        pixels[row + 10, row % 2] = value
    weights = np.ones(len(pixels))
    weights[20:24] = np.nan, np.inf, -1.0, 0.0
    estimate = solve(pixels, points, weights=weights)
    assert np.abs(error(estimate, pose)).max() <= 1e-6
    assert not np.isin(np.r_[0:5, 10:15, 20:24], accepted_parts(estimate)[2]).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_pure_noise(backend: str) -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        for count in (20, 200, 4800):
            assert_rejected((Status.TOO_FEW_INLIERS, Status.LOW_INLIER_RATIO, Status.NO_CONSENSUS,
                             Status.CHANCE_CONSENSUS, Status.UNCERTAIN_POSE, Status.POOR_SPREAD,
                             Status.DEGENERATE_POINTS),
                            rng.uniform((0, 0), (640, 480), (count, 2)), rng.uniform(-2.0, 2.0, (count, 3)),
                            SolverConfig(backend=backend))


def test_smooth_unrelated_points() -> None:
    accepted = [solve(grid(), smooth_field(seed, width), seed=seed).accepted
                for seed in range(25) for width in (1.5, 3.0, 6.0, 12.0)]
    assert sum(accepted) <= 1


def test_clustered_unrelated_points() -> None:
    for seed in range(10):
        points = 0.2 * smooth_field(seed, 2.0) + np.array([1.0, 2.0, 3.0])
        assert not solve(grid(), points, seed=seed).accepted


def test_true_room_mirrored() -> None:
    """The geometry of a real room, left and right swapped: the hardest wrong input of all."""
    pixels = grid()
    for seed in range(10):
        rng = np.random.default_rng(seed)
        depth = 2.5 + gaussian_filter(rng.normal(size=(60, 80)), 6.0).ravel() * 8.0
        points = to_map(pixels, np.clip(depth, 0.8, 6.0), random_pose(seed))
        mirrored = points.reshape(60, 80, 3)[:, ::-1].reshape(-1, 3)
        noisy = mirrored + rng.normal(size=mirrored.shape) * 0.03
        estimate = solve(pixels, noisy, seed=seed)
        assert not estimate.accepted, estimate.message


def test_chance_consensus_is_named() -> None:
    """A gain no frame can reach stands in for a frame that does as well when mirrored."""
    pixels, points, _ = view(2, 4800, noise_px=1.0, outliers=0.75)
    gates = GateConfig(min_mirror_gain=1e3, confident_inlier_ratio=0.9)
    assert_rejected(Status.CHANCE_CONSENSUS, pixels, points, gates=gates)


def test_residuals_without_a_peak() -> None:
    """Agreement no tighter than chance: residuals spread far beyond the threshold."""
    pixels, points, _ = view(2, 4800, noise_px=16.0)
    estimate = assert_rejected(Status.CHANCE_CONSENSUS, pixels, points)
    assert "no peak" in estimate.message


def test_a_tenth_of_few_correspondences_is_not_enough() -> None:
    """Two poses that were wrong by 6.6 m had 43 and 40 inliers of 360 (docs/benchmarks/2026-11-26-encoder.md)."""
    for inlier_count, correspondence_count, enough in ((43, 360, False), (50, 360, True),
                                                       (500, 4800, False), (525, 4800, True)):
        rejection = check_inlier_count(inlier_count, correspondence_count, GateConfig(), 10.0)
        if enough:
            assert rejection is None
        else:
            assert rejection is not None and rejection.status is Status.LOW_INLIER_RATIO


def test_low_inlier_ratio_and_count() -> None:
    pixels, points, _ = view(2, 3000, outliers=0.7)
    assert_rejected(Status.LOW_INLIER_RATIO, pixels, points, gates=GateConfig(min_inlier_ratio=0.5))
    assert_rejected(Status.TOO_FEW_INLIERS, pixels, points, gates=GateConfig(min_inliers=2500))


def test_inliers_in_one_corner() -> None:
    pixels, points, _ = view(3, 4800)
    corner = (pixels[:, 0] < 200) & (pixels[:, 1] < 150)
    gates = GateConfig(min_inlier_ratio=0.05)
    assert_rejected(Status.POOR_SPREAD, pixels[corner], points[corner], gates=gates)
    points[~corner] = np.random.default_rng(0).uniform(-3, 3, (int((~corner).sum()), 3))
    assert_rejected((Status.POOR_SPREAD, Status.LOW_INLIER_RATIO), pixels, points, gates=gates)


def test_points_in_one_spot_or_on_a_line() -> None:
    pixels = grid()
    degenerate = (Status.DEGENERATE_POINTS, Status.NO_CONSENSUS, Status.TOO_FEW_INLIERS, Status.LOW_INLIER_RATIO,
                  Status.UNCERTAIN_POSE, Status.POOR_SPREAD)
    rng = np.random.default_rng(0)
    for backend in BACKENDS:
        config = SolverConfig(backend=backend)
        assert_rejected(degenerate, pixels, np.ones((4800, 3)), config)
        assert_rejected(degenerate, pixels, np.ones((4800, 3)) + rng.normal(size=(4800, 3)) * 1e-4, config)
        along = np.outer(rng.uniform(-1, 1, 4800), [1.0, 2.0, 0.5])
        assert_rejected(degenerate, pixels, along, config)
        assert_rejected(degenerate, pixels, along + rng.normal(size=along.shape) * 1e-3, config)
    # A true view of a line (a lamp post): every correspondence fits, the pose turns about the post.
    pixels = np.column_stack([np.linspace(20, 620, 500), np.linspace(10, 470, 500)])
    points = to_map(pixels, np.full(500, 2.0), random_pose(1))
    assert_rejected(degenerate, pixels, points)
    assert_rejected(Status.DEGENERATE_POINTS, pixels, points,
                    gates=GateConfig(min_spread_blocks=1, max_position_std_per_depth=np.inf,
                                     max_rotation_std_rad=np.inf))


def test_duplicates_count_once() -> None:
    """Ten distinct correspondences, each 400 times."""
    pixels, points, _ = view(4, 4, noise_px=1.0)
    assert_rejected((Status.POOR_SPREAD, Status.DEGENERATE_POINTS, Status.UNCERTAIN_POSE),
                    np.repeat(pixels, 400, axis=0), np.repeat(points, 400, axis=0))


@pytest.mark.parametrize("tilt_deg", [20.0, 45.0])
def test_planar_wall_is_a_scene(tilt_deg: float) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        pixels, pose = grid(), random_pose(seed)
        slope = np.tan(np.radians(tilt_deg))
        depth = 3.0 / (1.0 - slope * (pixels[:, 0] - CAMERA.cx) / CAMERA.fx * 0.9)
        points = to_map(pixels + rng.normal(size=pixels.shape), depth, pose)
        off = error(solve(pixels, points), pose)
        assert np.linalg.norm(off[:3]) < 0.05 and np.linalg.norm(off[3:]) < np.radians(1.0)


def test_small_far_plane_with_a_second_pose() -> None:
    """A poster seen from afar fits two poses."""
    rng = np.random.default_rng(5)
    narrow = replace(CAMERA, fx=9000.0, fy=9000.0)
    flat = np.column_stack([rng.uniform(-0.5, 0.5, (2000, 2)), np.zeros(2000)])
    turn = Rotation.from_euler("y", 35, degrees=True).as_matrix()
    seen = flat @ turn.T + np.array([0.0, 0.0, 20.0])
    pixels = narrow.project(seen) + rng.normal(size=(2000, 2)) * 2.0
    estimate = solve(pixels, flat, camera=narrow)
    assert estimate.status in (Status.DEGENERATE_POINTS, Status.UNCERTAIN_POSE), estimate.message


def test_points_behind_the_camera() -> None:
    pixels, pose = grid(), random_pose(6)
    points = to_map(pixels, -np.random.default_rng(0).uniform(1.0, 5.0, 4800), pose)
    assert_rejected((Status.LOW_INLIER_RATIO, Status.CHANCE_CONSENSUS, Status.TOO_FEW_INLIERS), pixels, points)
    assert_rejected(Status.CHANCE_CONSENSUS, pixels, points, gates=GateConfig(min_inlier_ratio=0.0), seed=1)


def test_far_points_do_not_determine_the_position() -> None:
    """A skyline determines the heading, not the position; the covariance says so, and the gate rejects."""
    pixels, pose = grid(), random_pose(7)
    rng = np.random.default_rng(1)
    rays = to_map(pixels, np.ones(4800), pose) - pose[:3, 3]
    points = pose[:3, 3] + rays / np.linalg.norm(rays, axis=1, keepdims=True) * 1e4
    noisy = pixels + rng.normal(size=pixels.shape) * 3.0
    assert_rejected(Status.UNCERTAIN_POSE, noisy, points)
    estimate = solve(noisy, points, gates=GateConfig(max_position_std_m=np.inf))
    assert np.linalg.norm(error(estimate, pose)[:3]) < 4.0 * np.sqrt(np.trace(accepted_parts(estimate)[1][:3, :3]))


def test_uncertain_pose() -> None:
    pixels, points, _ = view(8, 500, noise_px=3.0)
    assert_rejected(Status.UNCERTAIN_POSE, pixels, points, gates=GateConfig(max_position_std_per_depth=1e-6))


def test_a_scene_that_repeats_itself_is_ambiguous() -> None:
    for seed in range(10):
        pixels, points, _ = repeated(seed, 0.16)
        estimate = assert_rejected(Status.AMBIGUOUS_POSE, pixels, points)
        assert "another one" in estimate.message


def test_a_few_copies_do_not_make_a_scene_ambiguous() -> None:
    for seed in range(10):
        pixels, points, pose = repeated(seed, 0.02)
        assert np.abs(error(solve(pixels, points), pose)).max() < 0.05
