# SPDX-License-Identifier: Apache-2.0
"""Fixed changes of query pictures: pose and camera follow the geometric ones."""

import numpy as np
import pytest

from aceg_ros.benchmarks.corruptions import CORRUPTIONS
from aceg_ros.camera import Camera, Frame
from aceg_ros.geometry import is_pose, look_at

CAMERA = Camera(width=320, height=240, fx=260.0, fy=250.0, cx=158.0, cy=121.0)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_map_point_is_seen_where_its_pixel_went(name):
    rng = np.random.default_rng(0)
    pose = look_at(np.array([1.0, 2.0, 1.5]), np.array([4.0, 3.0, 1.0]))
    image = rng.integers(0, 255, (240, 320, 3), np.uint8)
    changed = CORRUPTIONS[name](Frame(image=image, camera=CAMERA, stamp_s=0.0, map_from_camera=pose))
    assert changed.frame.image.shape == image.shape and changed.frame.image.dtype == np.uint8
    assert is_pose(changed.frame.map_from_camera)
    assert name == "none" or (changed.frame.image != image).mean() > 0.3
    local = np.array([[0.1, -0.2, 3.0], [-0.4, 0.3, 2.0]])
    points = local @ pose[:3, :3].T + pose[:3, 3]
    seen = (points - changed.frame.map_from_camera[:3, 3]) @ changed.frame.map_from_camera[:3, :3]
    went = np.column_stack([CAMERA.project(local), np.ones(2)]) @ changed.pixels_from_original.T
    assert np.allclose(changed.frame.camera.project(seen), went[:, :2] / went[:, 2:], atol=1e-6)
