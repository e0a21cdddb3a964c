# SPDX-License-Identifier: Apache-2.0
"""Scene coordinates of all cells of an image, as a localizer predicts them."""

from __future__ import annotations

import numpy as np

from aceg_ros.camera import Camera
from aceg_ros.methods.scene_coordinates import SceneCoordinates


def coordinates_of_cells(points: np.ndarray, stride: int, intrinsics: tuple[float, ...]) -> SceneCoordinates:
    """Make them from map points (H, W, 3). intrinsics: fx, fy, cx, cy; the centre of the first pixel is (0, 0)."""
    height, width = points.shape[:2]
    fx, fy, cx, cy = intrinsics
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([columns.ravel(), rows.ravel()], 1) * float(stride) + (stride - 1) / 2
    camera = Camera(width=width * stride, height=height * stride, fx=fx, fy=fy, cx=cx, cy=cy)
    return SceneCoordinates(pixels=pixels, points=points.reshape(-1, 3), camera=camera, mask=None, reliability=None,
                            stage_ms={})
