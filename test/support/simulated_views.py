# SPDX-License-Identifier: Apache-2.0
"""Simulated 2D-3D correspondences, right and wrong, and the error of a pose estimated from them."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from aceg_ros.camera import Camera
from aceg_ros.estimate import PoseEstimate, Status
from aceg_ros.pose.config import GateConfig, SolverConfig
from aceg_ros.pose.correspondences import Correspondences
from aceg_ros.pose.verify import estimate_verified_pose

CAMERA = Camera(width=640, height=480, fx=520.0, fy=470.0, cx=317.0, cy=242.0)
BACKENDS = ("poselib", "opencv")


def solve(pixels: np.ndarray, points: np.ndarray, solver: SolverConfig | None = None, *,
          gates: GateConfig | None = None, camera: Camera = CAMERA, weights: np.ndarray | None = None,
          mask: np.ndarray | None = None, seed: int = 0) -> PoseEstimate:
    """Estimate and verify a pose."""
    correspondences = Correspondences(pixels=pixels, points=points, camera=camera, weights=weights, mask=mask)
    return estimate_verified_pose(correspondences, solver, gates, seed=seed)


def random_pose(seed: int) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    pose[:3, 3] = np.random.default_rng(seed).normal(size=3) * 3.0
    return pose


def to_map(pixels: np.ndarray, depth: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Map points that a camera at `pose` sees at `pixels`, `depth` metres along its axis."""
    rays = np.column_stack([(pixels[:, 0] - CAMERA.cx) / CAMERA.fx, (pixels[:, 1] - CAMERA.cy) / CAMERA.fy,
                            np.ones(len(pixels))])
    return rays * depth[:, None] @ pose[:3, :3].T + pose[:3, 3]


def view(seed: int, count: int = 2000, noise_px: float = 0.0, outliers: float = 0.0
         ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, points and pose of a view into a room; outliers: share of points thrown anywhere in it."""
    rng = np.random.default_rng(seed)
    pose = random_pose(seed)
    pixels = rng.uniform((0.0, 0.0), (640.0, 480.0), (count, 2))
    points = to_map(pixels + rng.normal(size=pixels.shape) * noise_px, rng.uniform(1.0, 5.0, count), pose)
    wrong = rng.random(count) < outliers
    points[wrong] = points.mean(0) + rng.uniform(-3.0, 3.0, (int(wrong.sum()), 3))
    return pixels, points, pose


def repeated(seed: int, copies: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A view of which a sixth is right; `copies` of the patches are matched to the same things four metres away."""
    pixels, points, pose = view(seed, 1000, noise_px=1.0, outliers=0.82)
    elsewhere = np.random.default_rng(seed + 1).random(len(points)) < copies
    _, truth, _ = view(seed, 1000, noise_px=1.0)
    points[elsewhere] = truth[elsewhere] + (4.0, 0.0, 0.0)
    return pixels, points, pose


def grid() -> np.ndarray:
    """Patch centres of a stride-8 encoder, row by row: (4800, 2)."""
    row, column = np.mgrid[:60, :80]
    return np.column_stack([column.ravel(), row.ravel()]) * 8.0 + 3.5


def smooth_field(seed: int, width: float) -> np.ndarray:
    """What a network predicts for an image of another scene: smooth, correlated, within the volume of the map."""
    rng = np.random.default_rng(seed)
    field = np.stack([gaussian_filter(rng.normal(size=(180, 240)), width)[60:120, 80:160] for _ in range(3)], -1)
    return (field / field.std()).reshape(-1, 3) + rng.normal(size=(4800, 3)) * 0.02


def accepted_parts(estimate: PoseEstimate) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pose, covariance and inlier indices of an accepted estimate."""
    assert estimate.accepted, estimate.message
    assert estimate.map_from_camera is not None and estimate.covariance is not None
    assert estimate.inlier_indices is not None
    return estimate.map_from_camera, estimate.covariance, estimate.inlier_indices


def error(estimate: PoseEstimate, pose: np.ndarray) -> np.ndarray:
    """Position and rotation error, both (3,) in the map frame, concatenated."""
    found, _, _ = accepted_parts(estimate)
    turn = Rotation.from_matrix(pose[:3, :3] @ found[:3, :3].T).as_rotvec()
    return np.r_[pose[:3, 3] - found[:3, 3], turn]


def assert_rejected(status: Status | tuple[Status, ...], pixels: np.ndarray, points: np.ndarray,
                    solver: SolverConfig | None = None, **options: object) -> PoseEstimate:
    """Assert that `solve` rejects with (one of) the status, with no pose, and with a number in its message."""
    estimate = solve(pixels, points, solver, **options)  # type: ignore[arg-type]
    assert not estimate.accepted and estimate.map_from_camera is None and estimate.covariance is None
    assert estimate.status in (status if isinstance(status, tuple) else (status,)), estimate.message
    assert any(letter.isdigit() for letter in estimate.message), estimate.message
    return estimate
