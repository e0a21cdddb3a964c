"""The pose solver on simulated correspondences."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from aceg_ros.camera import Camera
from aceg_ros.pose_solver import solve_pose

CAMERA = Camera(640, 480, 520.0, 480.0, 317.0, 242.0)


def test_exact_recovery() -> None:
    rng = np.random.default_rng(1)
    map_from_camera = np.eye(4)
    map_from_camera[:3, :3] = Rotation.random(random_state=1).as_matrix()
    map_from_camera[:3, 3] = rng.normal(size=3)
    pixels = rng.uniform((0, 0), (640, 480), (500, 2))
    depth = rng.uniform(0.5, 5.0, (500, 1))
    points = (CAMERA.unproject(pixels) * depth) @ map_from_camera[:3, :3].T + map_from_camera[:3, 3]
    estimate = solve_pose(pixels, points, CAMERA)
    assert estimate.accepted
    assert np.abs(estimate.map_from_camera - map_from_camera).max() < 1e-6
