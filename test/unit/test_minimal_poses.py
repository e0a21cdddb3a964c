# SPDX-License-Identifier: Apache-2.0
"""Poses from three correspondences: one of them is the right one, and all explain the three."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from aceg_ros.pose.minimal_poses import next_better_pose, pose_cost, quartic_roots, three_point_poses

SAMPLE = np.arange(3)


def view(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (3, N), their rays (2, N), and camera_from_map (3, 4)."""
    rng = np.random.default_rng(seed)
    rotation, translation = Rotation.random(random_state=seed).as_matrix(), rng.normal(0.0, 2.0, 3)
    rays = rng.uniform(-0.6, 0.6, (2, count))
    local = np.vstack([rays, np.ones(count)]) * rng.uniform(1.0, 8.0, count)
    return rotation.T @ (local - translation[:, None]), rays, np.column_stack([rotation, translation])


@pytest.mark.parametrize("seed", range(50))
def test_one_of_the_poses_is_the_right_one(seed: int) -> None:
    points, rays, pose = view(seed, 3)
    poses, count = three_point_poses(points, rays, SAMPLE)
    assert 1 <= count <= 4
    assert min(np.abs(found - pose).max() for found in poses[:count]) < 1e-6
    for found in poses[:count]:
        projected = found @ np.vstack([points, np.ones(3)])
        assert found[:, :3] @ found[:, :3].T == pytest.approx(np.eye(3), abs=1e-9)
        assert (projected[2] > 0.0).all() and projected[:2] / projected[2] == pytest.approx(rays, abs=1e-4)


def test_points_on_a_line_or_twice_give_no_pose() -> None:
    points, rays, _ = view(0, 3)
    assert three_point_poses(points, rays, np.array([0, 1, 1]))[1] == 0
    points[:, 2] = 2.0 * points[:, 1] - points[:, 0]
    assert three_point_poses(points, rays, SAMPLE)[1] == 0


def test_roots_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        coefficients = rng.normal(size=5)
        expected = np.roots(coefficients)
        roots, count = quartic_roots(tuple(coefficients))
        assert np.sort(roots[:count]) == pytest.approx(np.sort(expected[np.abs(expected.imag) < 1e-9].real), rel=1e-5)


def test_the_cost_is_bounded_for_each_point() -> None:
    points, rays, pose = view(1, 100)
    seen = rays + np.random.default_rng(0).normal(0.0, 0.01, rays.shape)
    points[:, :10] = pose[:, :3].T @ (np.array([[0.0], [0.0], [-2.0]]) - pose[:, 3:])      # behind the camera
    squared = np.square(seen - rays)[:, 10:].sum(0) / 0.01**2
    assert pose_cost(points, seen, pose, 0.01) == pytest.approx(10.0 + np.minimum(squared, 1.0).sum())


def test_samples_are_tried_until_a_pose_is_better() -> None:
    points, rays, pose = view(2, 60)
    points[:, 30:] += 5.0
    samples = np.array([[0, 40, 50], [35, 5, 45], [1, 2, 3], [4, 5, 6]])
    tried, cost, found = next_better_pose(points, rays, samples, 0.01, greatest_cost=40.0)
    assert tried == 3 and cost < 31.0 and found == pytest.approx(pose, abs=1e-6)
    assert next_better_pose(points, rays, samples, 0.01, greatest_cost=20.0)[:2] == (4, 20.0)
