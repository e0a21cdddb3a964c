# SPDX-License-Identifier: Apache-2.0
"""The covariance where most landmarks are far away, and wrong ones among the few near ones determine the position."""

from __future__ import annotations

import numpy as np

from aceg_ros.camera import Camera
from aceg_ros.pose.correspondences import CameraFromMap, Consensus, Correspondences
from aceg_ros.pose.covariance import bounded_influence, pose_covariance
from aceg_ros.pose.refinement import refine

CAMERA = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=320.0, cy=240.0)
TRUTH = CameraFromMap(rotation=np.eye(3), translation=np.zeros(3))


def far_and_near(seed: int, shift_m: float) -> Correspondences:
    """200 landmarks at 30 to 60 m with 1 px of noise, and 4 at 2 m whose pixels agree with a shifted camera."""
    rng = np.random.default_rng(seed)
    pixels = rng.uniform((20, 20), (620, 460), (204, 2))
    depth = np.append(rng.uniform(30, 60, 200), np.full(4, 2.0))
    points = np.column_stack([(pixels - (CAMERA.cx, CAMERA.cy)) / CAMERA.fx, np.ones(204)]) * depth[:, None]
    points[200:, 2] += shift_m
    pixels[:200] += rng.normal(0, 1, (200, 2))
    return Correspondences(pixels=pixels, points=points, camera=CAMERA)


def position_and_std(seed: int, shift_m: float, max_leverage: float | None) -> tuple[float, float]:
    data = far_and_near(seed, shift_m).usable
    pose = refine(data, TRUTH, (6.0, 3.0, 1.5), 10)
    covariance = pose_covariance(Consensus.from_pose(data, pose, 2.0), 1.5, max_leverage=max_leverage)
    return pose.map_from_camera[2, 3], np.sqrt(covariance[2, 2])


def test_wrong_near_landmarks_do_not_make_the_position_certain():
    ratios = {}
    for max_leverage in (None, 0.1):
        found = [position_and_std(seed, 0.02, max_leverage) for seed in range(10)]
        ratios[max_leverage] = np.array([abs(error_m) / std_m for error_m, std_m in found])
    assert np.median(ratios[None]) > 3.5
    assert ratios[0.1].max() < 2.5


def test_landmarks_at_all_depths_are_not_affected():
    rng = np.random.default_rng(0)
    pixels = rng.uniform((20, 20), (620, 460), (300, 2))
    points = np.column_stack([(pixels - (CAMERA.cx, CAMERA.cy)) / CAMERA.fx, np.ones(300)])
    points *= rng.uniform(2, 6, (300, 1))
    data = Correspondences(pixels=pixels + rng.normal(0, 1, (300, 2)), points=points, camera=CAMERA).usable
    weights = bounded_influence(np.ones(300), data.linearize(TRUTH), 0.1)
    assert weights.min() > 0.5 and (weights == 1.0).mean() > 0.95
