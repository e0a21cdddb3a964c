# SPDX-License-Identifier: Apache-2.0
"""Rigid transforms (SE(3)) as (4, 4) float64 matrices, metres.

`map_from_camera` maps camera-frame points into the map frame. Quaternions are (x, y, z, w), as in ROS and TUM files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation, Slerp


def invert(transform: np.ndarray) -> np.ndarray:
    """Invert a transform: b_from_a of a_from_b, or of a stack (..., 4, 4) of them."""
    transform = np.asarray(transform, np.float64)
    rotation_t = np.swapaxes(transform[..., :3, :3], -1, -2)
    inverse = np.zeros_like(transform)
    inverse[..., :3, :3] = rotation_t
    inverse[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation_t, transform[..., :3, 3])
    inverse[..., 3, 3] = 1.0
    return inverse


def pose_error(estimated: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Return the distance of two camera centres in metres and the angle between their orientations in degrees."""
    translation_m = float(np.linalg.norm(np.asarray(estimated)[:3, 3] - np.asarray(truth)[:3, 3]))
    sines, cosine = _sines_and_cosine(np.asarray(truth)[:3, :3].T @ np.asarray(estimated)[:3, :3])
    # Not arccos of the trace: it is inexact for small angles, and undefined if rounding puts the cosine above 1.
    return translation_m, math.degrees(math.atan2(math.hypot(*sines), cosine))


def skew(vector: np.ndarray) -> np.ndarray:
    """Return the (3, 3) matrix of the cross product: skew(a) @ b = a x b."""
    x, y, z = vector
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])


def pixel_rays(pixels: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Return the rays (N, 3) of unit depth of pixels (N, 2) of a pinhole camera with intrinsics k (3, 3)."""
    return np.column_stack([pixels, np.ones(len(pixels))]) @ np.linalg.inv(k).T


def is_pose(transform: np.ndarray, tolerance: float = 1e-3) -> bool:
    """Return whether this is a finite rigid transform (4, 4); tolerance bounds every entry of R R^T - I."""
    transform = np.asarray(transform)
    if transform.shape != (4, 4) or not np.isfinite(transform).all():
        return False
    rotation = transform[:3, :3]
    return bool(np.abs(transform[3] - (0, 0, 0, 1)).max() <= tolerance
                and np.abs(rotation @ rotation.T - np.eye(3)).max() <= tolerance
                and np.linalg.det(rotation) > 0)


def nearest_pose(transform: np.ndarray) -> np.ndarray:
    """Return the closest exactly rigid transform to one that is rigid up to rounding (as read from a text file)."""
    u, _, vt = np.linalg.svd(np.asarray(transform, np.float64)[:3, :3])
    pose = np.eye(4)
    pose[:3, :3] = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    pose[:3, 3] = np.asarray(transform)[:3, 3]
    return pose


def rotation_to_quaternion(rotation: np.ndarray) -> np.ndarray:
    """Convert a rotation (3, 3) to the unit quaternion (x, y, z, w) with w >= 0."""
    quaternion: np.ndarray = Rotation.from_matrix(rotation).as_quat()
    return -quaternion if quaternion[3] < 0 else quaternion


def pose_from_quaternion(translation: np.ndarray, quaternion_xyzw: np.ndarray) -> np.ndarray:
    """Return a pose (4, 4). The quaternion need not be normalized. Raises ValueError if it is zero or not finite."""
    quaternion = np.asarray(quaternion_xyzw, np.float64)
    norm = float(np.linalg.norm(quaternion))
    if not np.isfinite(norm) or norm < 1e-9:
        raise ValueError(f"Quaternion {quaternion} has no direction.")
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_quat(quaternion / norm).as_matrix()
    pose[:3, 3] = translation
    return pose


def interpolate_poses(stamp_s: float, stamps_s: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Interpolate poses (N, 4, 4) at ascending stamps_s (N,) to stamp_s: linear in position, slerp in rotation.

    Raises ValueError outside [stamps_s[0], stamps_s[-1]]: poses are never extrapolated.
    """
    stamps_s, poses = np.asarray(stamps_s, np.float64), np.asarray(poses, np.float64)
    if not len(stamps_s) or not stamps_s[0] <= stamp_s <= stamps_s[-1]:
        raise ValueError(f"No pose at {stamp_s}: outside the stamps of the path.")
    after = int(np.searchsorted(stamps_s, stamp_s))
    if stamps_s[after] == stamp_s:
        return np.array(poses[after])
    pair, times = poses[after - 1:after + 1], stamps_s[after - 1:after + 1]
    fraction = (stamp_s - times[0]) / (times[1] - times[0])
    pose = np.eye(4)
    pose[:3, :3] = Slerp([0.0, 1.0], Rotation.from_matrix(pair[:, :3, :3]))(fraction).as_matrix()
    pose[:3, 3] = (1 - fraction) * pair[0, :3, 3] + fraction * pair[1, :3, 3]
    return pose


def look_at(position: np.ndarray, target: np.ndarray, up: Sequence[float] | np.ndarray = (0.0, 0.0, 1.0)) -> np.ndarray:
    """Return map_from_camera of a camera at `position` that looks at `target`, with `up` pointing up in the image.

    Camera axes are OpenCV's (x right, y down, z forward). Raises ValueError if up is parallel to the viewing direction.
    """
    position = np.asarray(position, np.float64)
    forward = np.asarray(target, np.float64) - position
    right = np.cross(forward, up)
    if np.linalg.norm(right) <= 1e-9 * np.linalg.norm(forward) * np.linalg.norm(up):
        raise ValueError("look_at needs a target away from the position and an up that is not parallel to the view.")
    forward, right = forward / np.linalg.norm(forward), right / np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.column_stack([right, np.cross(forward, right), forward])
    pose[:3, 3] = position
    return pose


def pose_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return pose a minus pose b as (6,) in the order of covariances: metres, then radians about the fixed axes."""
    difference = a[:3, :3] @ b[:3, :3].T
    sines, cosine = _sines_and_cosine(difference)
    if cosine < -0.9:           # the sines tell little about the axis
        turn = Rotation.from_matrix(difference).as_rotvec()
    else:
        sine = math.hypot(*sines)
        turn = np.array(sines) * (math.atan2(sine, cosine) / sine if sine > 1e-12 else 1.0)
    return np.concatenate([a[:3, 3] - b[:3, 3], turn])


def _sines_and_cosine(rotation: np.ndarray) -> tuple[tuple[float, float, float], float]:
    """Return the axis of a rotation (3, 3) times the sine of its angle, and the cosine; scipy's class takes a hundred
    microseconds for a rotation."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation.tolist()
    return (0.5 * (zy - yz), 0.5 * (xz - zx), 0.5 * (yx - xy)), 0.5 * (xx + yy + zz - 1.0)
