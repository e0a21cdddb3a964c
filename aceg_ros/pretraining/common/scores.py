# SPDX-License-Identifier: Apache-2.0
"""Scores on held-out images."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from aceg_ros.camera import Camera
from aceg_ros.geometry import invert, pose_error
from aceg_ros.mapping.losses import View
from aceg_ros.pose.correspondences import Correspondences
from aceg_ros.pose.verify import estimate_verified_pose


def is_localized(points: Tensor, view: View, mask: Tensor | None = None) -> bool:
    """Return whether the pose estimated from the patches of one image is within 10 cm and 5 degrees.

    Args:
        points: (B, 3) scene coordinates that a network predicts for the patches.
        view: pixels and cameras of the patches, all of the same image.
        mask: (B,) patches that the solver may use; None: all.
    """
    fx, fy, cx, cy = view.intrinsics[0].tolist()
    camera = Camera(width=round(2 * cx) + 1, height=round(2 * cy) + 1, fx=fx, fy=fy, cx=cx, cy=cy)
    estimate = estimate_verified_pose(Correspondences(
        pixels=view.pixels.cpu().numpy(), points=points.cpu().numpy(), camera=camera,
        mask=None if mask is None else mask.cpu().numpy()))
    if estimate.map_from_camera is None:
        return False
    truth = invert(np.vstack([view.camera_from_map[0].cpu().numpy(), (0, 0, 0, 1)]).astype(float))
    metres, degrees = pose_error(estimate.map_from_camera, truth)
    return bool(metres < 0.1 and degrees < 5)
