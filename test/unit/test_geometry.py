# SPDX-License-Identifier: Apache-2.0
"""Rigid transforms: definitions, round trips, limits."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from aceg_ros.geometry import (
    interpolate_poses,
    invert,
    is_pose,
    look_at,
    nearest_pose,
    pose_difference,
    pose_error,
    pose_from_quaternion,
    rotation_to_quaternion,
)


def random_pose(rng: np.random.Generator) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.random(random_state=rng).as_matrix()
    pose[:3, 3] = rng.uniform(-5, 5, 3)
    return pose


@pytest.fixture
def poses() -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.array([random_pose(rng) for _ in range(20)])


def test_invert_undoes_one_and_many(poses):
    np.testing.assert_allclose(invert(poses) @ poses, np.broadcast_to(np.eye(4), poses.shape), atol=1e-12)
    np.testing.assert_allclose(invert(poses[3]), np.linalg.inv(poses[3]), atol=1e-12)


@pytest.mark.parametrize("angle_deg", [0.0, 1e-7, 1e-3, 1.0, 90.0, 179.999, 180.0])
def test_pose_error_is_distance_and_angle(poses, angle_deg):
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec(np.radians(angle_deg) * np.array([0.6, 0.0, 0.8])).as_matrix()
    estimated = poses[0] @ turn
    estimated[:3, 3] += (0.03, 0.0, -0.04)
    translation_m, rotation_deg = pose_error(estimated, poses[0])
    assert translation_m == pytest.approx(0.05)
    assert rotation_deg == pytest.approx(angle_deg, abs=1e-9 if angle_deg < 170 else 1e-5)


@pytest.mark.parametrize("angle_deg", [0.0, 1e-7, 1.0, 90.0, 150.0, 160.0, 179.999])
def test_pose_difference_is_a_translation_and_a_rotation_vector(poses, angle_deg):
    turned, vector = poses[0].copy(), np.radians(angle_deg) * np.array([0.6, 0.0, -0.8])
    turned[:3, :3] = Rotation.from_rotvec(vector).as_matrix() @ poses[0][:3, :3]
    turned[:3, 3] += (0.03, 0.0, -0.04)
    assert pose_difference(turned, poses[0]) == pytest.approx([0.03, 0.0, -0.04, *vector], rel=1e-9, abs=1e-12)


def test_is_pose_accepts_rigid_and_rounded(poses):
    assert all(is_pose(pose) for pose in poses)
    assert is_pose(poses[0].round(5))


def test_is_pose_rejects_everything_else():
    scaled, mirrored, not_a_number, bottom = (np.eye(4) for _ in range(4))
    scaled[:3, :3] *= 1.01
    mirrored[0, 0] = -1
    not_a_number[0, 3] = np.nan
    bottom[3, 0] = 0.1
    assert not any(is_pose(matrix) for matrix in (scaled, mirrored, not_a_number, bottom, np.eye(3), np.zeros((4, 4))))


def test_nearest_pose_is_rigid_and_close(poses):
    for pose in poses:
        repaired = nearest_pose(pose.round(4))
        assert is_pose(repaired, tolerance=1e-12)
        np.testing.assert_allclose(repaired, pose, atol=2e-4)


def test_quaternions_are_xyzw_with_positive_w(poses):
    np.testing.assert_allclose(rotation_to_quaternion(Rotation.from_euler("z", 90, degrees=True).as_matrix()),
                               (0, 0, np.sqrt(0.5), np.sqrt(0.5)), atol=1e-12)
    for pose in poses:
        quaternion = rotation_to_quaternion(pose[:3, :3])
        assert quaternion[3] >= 0
        np.testing.assert_allclose(pose_from_quaternion(pose[:3, 3], -2 * quaternion), pose, atol=1e-12)


@pytest.mark.parametrize("quaternion", [(0, 0, 0, 0), (np.nan, 0, 0, 1), (np.inf, 0, 0, 0)])
def test_quaternion_without_direction_is_rejected(quaternion):
    with pytest.raises(ValueError):
        pose_from_quaternion(np.zeros(3), np.array(quaternion))


def test_interpolation_moves_and_turns_evenly():
    start, end = np.eye(4), np.eye(4)
    end[:3, :3] = Rotation.from_euler("y", 80, degrees=True).as_matrix()
    end[:3, 3] = (4, 0, -8)
    stamps_s, path = np.array([10.0, 12.0, 13.0]), np.array([start, end, start])
    middle = interpolate_poses(10.5, stamps_s, path)
    np.testing.assert_allclose(middle[:3, 3], (1, 0, -2))
    np.testing.assert_allclose(middle[:3, :3], Rotation.from_euler("y", 20, degrees=True).as_matrix(), atol=1e-12)
    for stamp_s, pose in zip(stamps_s, path, strict=True):
        np.testing.assert_array_equal(interpolate_poses(stamp_s, stamps_s, path), pose)


@pytest.mark.parametrize("stamp_s", [9.999, 13.001, np.nan])
def test_interpolation_never_extrapolates(stamp_s):
    with pytest.raises(ValueError):
        interpolate_poses(stamp_s, np.array([10.0, 13.0]), np.array([np.eye(4), np.eye(4)]))


def test_look_at_puts_target_ahead_and_up_up():
    position, target = np.array([1.0, 2.0, 1.5]), np.array([4.0, -2.0, 0.5])
    pose = look_at(position, target)
    assert is_pose(pose, tolerance=1e-12)
    distance = np.linalg.norm(target - position)
    np.testing.assert_allclose(invert(pose) @ (*target, 1), (0, 0, distance, 1), atol=1e-12)
    above = invert(pose) @ (*target[:2], target[2] + 0.2, 1)
    assert above[0] == pytest.approx(0, abs=1e-12) and above[1] < 0          # y points down in the image


@pytest.mark.parametrize("target", [(0, 0, 5), (0, 0, 0)])
def test_look_at_without_direction_is_rejected(target):
    with pytest.raises(ValueError):
        look_at(np.zeros(3), np.array(target), up=(0, 0, 1))
