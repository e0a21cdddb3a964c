# SPDX-License-Identifier: Apache-2.0
"""Verification of a pose from anywhere against 2D-3D correspondences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from simulated_views import CAMERA, accepted_parts, grid, repeated, smooth_field, solve, view

from aceg_ros.estimate import Status
from aceg_ros.pose.config import GateConfig, SolverConfig
from aceg_ros.pose.correspondences import Correspondences
from aceg_ros.pose.gates import Rejection
from aceg_ros.pose.solver import Hypothesis, estimate_pose
from aceg_ros.pose.verify import estimate_verified_pose, verify_pose


def noisy_view(seed: int) -> tuple[Correspondences, np.ndarray]:
    pixels, points, pose = view(seed, 3000, noise_px=2.0, outliers=0.4)
    return Correspondences(pixels=pixels, points=points, camera=CAMERA), pose


def moved(pose: np.ndarray, metres: float, degrees: float) -> np.ndarray:
    wrong = pose.copy()
    wrong[:3, 3] += (metres, 0.0, 0.0)
    wrong[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix() @ pose[:3, :3]
    return wrong


@pytest.mark.parametrize("seed", range(5))
def test_verification_of_a_hypothesis_is_the_combined_call(seed: int) -> None:
    for correspondences in (noisy_view(seed)[0], Correspondences(
            pixels=repeated(seed, 0.16)[0], points=repeated(seed, 0.16)[1], camera=CAMERA)):
        hypothesis = estimate_pose(correspondences, seed=seed)
        assert isinstance(hypothesis, Hypothesis) and set(hypothesis.stage_ms) == {"ransac", "refine"}
        apart = verify_pose(hypothesis, correspondences, seed=seed)
        combined = estimate_verified_pose(correspondences, seed=seed)
        assert apart.status is combined.status and apart.message == combined.message
        assert set(apart.stage_ms) == set(combined.stage_ms) == {"ransac", "refine", "gates"}
        np.testing.assert_array_equal(apart.inlier_indices, combined.inlier_indices)
        np.testing.assert_array_equal(hypothesis.inlier_indices, combined.inlier_indices)
        assert (hypothesis.inlier_ratio, hypothesis.reprojection_rms_px) == (apart.inlier_ratio,
                                                                             apart.reprojection_rms_px)
        if combined.accepted:
            np.testing.assert_array_equal(apart.map_from_camera, combined.map_from_camera)
            np.testing.assert_array_equal(apart.covariance, combined.covariance)
    assert not combined.accepted, "the second case is ambiguous"


@pytest.mark.parametrize("seed", range(5))
def test_a_pose_as_a_matrix_is_verified_like_the_hypothesis(seed: int) -> None:
    correspondences, _ = noisy_view(seed)
    pose, covariance, inliers = accepted_parts(estimate_verified_pose(correspondences, seed=seed))
    found, found_covariance, found_inliers = accepted_parts(verify_pose(pose, correspondences, seed=seed))
    np.testing.assert_array_equal(found, pose)
    np.testing.assert_allclose(found_covariance, covariance, rtol=1e-6, atol=1e-6 * np.abs(covariance).max())
    np.testing.assert_array_equal(found_inliers, inliers)


@pytest.mark.parametrize("seed", range(5))
def test_the_true_pose_is_accepted_with_the_covariance_of_the_estimate(seed: int) -> None:
    correspondences, pose = noisy_view(seed)
    estimate = verify_pose(pose, correspondences)
    found, covariance, _ = accepted_parts(estimate)
    np.testing.assert_array_equal(found, pose)
    assert set(estimate.stage_ms) == {"gates"}
    expected = accepted_parts(estimate_verified_pose(correspondences))[1]
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), np.sqrt(np.diag(expected)), rtol=0.2)


@pytest.mark.parametrize("metres, degrees", [(0.5, 0.0), (0.0, 10.0), (3.0, 60.0)])
def test_a_wrong_pose_is_rejected(metres: float, degrees: float) -> None:
    for seed in range(5):
        correspondences, pose = noisy_view(seed)
        assert verify_pose(pose, correspondences).accepted
        estimate = verify_pose(moved(pose, metres, degrees), correspondences)
        assert estimate.status in (Status.TOO_FEW_INLIERS, Status.LOW_INLIER_RATIO, Status.CHANCE_CONSENSUS,
                                   Status.POOR_SPREAD, Status.UNCERTAIN_POSE), estimate.message
        assert estimate.map_from_camera is None and estimate.covariance is None


def test_scrambled_correspondences_are_rejected() -> None:
    for seed in range(5):
        correspondences, pose = noisy_view(seed)
        order = np.random.default_rng(seed).permutation(len(correspondences.points))
        scrambled = Correspondences(pixels=correspondences.pixels, points=correspondences.points[order], camera=CAMERA)
        estimate = verify_pose(pose, scrambled)
        assert estimate.status in (Status.TOO_FEW_INLIERS, Status.LOW_INLIER_RATIO), estimate.message
        assert estimate.map_from_camera is None


def test_the_mirrored_image_and_the_second_pose_are_searched_for_any_pose() -> None:
    """The gates that run RANSAC do so for a pose that came without it."""
    pixels, points, pose = repeated(3, 0.16)
    correspondences = Correspondences(pixels=pixels, points=points, camera=CAMERA)
    assert verify_pose(pose, correspondences).status is Status.AMBIGUOUS_POSE
    pixels, points, pose = view(2, 4800, noise_px=1.0, outliers=0.75)
    correspondences = Correspondences(pixels=pixels, points=points, camera=CAMERA)
    assert verify_pose(pose, correspondences).accepted
    strict = GateConfig(min_mirror_gain=1e3, confident_inlier_ratio=0.9)
    estimate = verify_pose(pose, correspondences, strict)
    assert estimate.status is Status.CHANCE_CONSENSUS and "mirrored" in estimate.message


def test_residuals_need_a_peak_at_any_pose() -> None:
    pixels, points, pose = view(2, 4800, noise_px=16.0)
    estimate = verify_pose(pose, Correspondences(pixels=pixels, points=points, camera=CAMERA))
    assert estimate.status is Status.CHANCE_CONSENSUS and "no peak" in estimate.message


@pytest.mark.parametrize("pose", [np.full((4, 4), np.nan), np.zeros((4, 4)), np.eye(3), 2.0 * np.eye(4)])
def test_what_is_no_pose_is_rejected(pose: np.ndarray) -> None:
    estimate = verify_pose(pose, noisy_view(0)[0])
    assert estimate.status is Status.NO_CONSENSUS and "rigid" in estimate.message


def test_no_usable_correspondences_are_rejected() -> None:
    for options in ({}, {"mask": np.zeros(50, bool)}):
        empty = Correspondences(pixels=np.zeros((50, 2)), points=np.full((50, 3), np.nan), camera=CAMERA, **options)
        assert verify_pose(np.eye(4), empty).status is Status.TOO_FEW_CORRESPONDENCES
        rejection = estimate_pose(empty)
        assert isinstance(rejection, Rejection) and rejection.status is Status.TOO_FEW_CORRESPONDENCES


def test_a_hypothesis_for_unrelated_points_is_rejected_by_verification_only() -> None:
    """RANSAC itself reports a pose for nearly any input."""
    correspondences = Correspondences(pixels=grid(), points=smooth_field(1, 6.0), camera=CAMERA)
    hypothesis = estimate_pose(correspondences)
    assert isinstance(hypothesis, Hypothesis)
    assert not verify_pose(hypothesis, correspondences).accepted


def test_the_inlier_threshold_applies_to_any_pose() -> None:
    correspondences, pose = noisy_view(1)
    counts = [verify_pose(pose, correspondences, solver=SolverConfig(inlier_threshold_px=px)).inliers
              for px in (3.0, 10.0)]
    assert 0 < counts[0] < counts[1]


def test_masked_correspondences_do_not_count() -> None:
    pixels, points, pose = view(6, 2000, noise_px=1.0)
    mask = np.arange(2000) % 2 == 0
    estimate = verify_pose(pose, Correspondences(pixels=pixels, points=points, camera=CAMERA, mask=mask))
    assert mask[accepted_parts(estimate)[2]].all() and estimate.inlier_ratio > 0.99
    assert solve(pixels, points, mask=mask).inliers == pytest.approx(estimate.inliers, abs=3)
