"""The camera of a ROS CameraInfo, whichever library made the message of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from aceg_ros.camera import Camera
from aceg_ros.datasets.camera_file import camera_from_ros_numbers
from aceg_ros.errors import UserError


def camera_from_info(info: Any, rectified: bool = False) -> Camera:
    """The camera of the picture that goes with a CameraInfo: region of interest and binning are taken into account,
    K and D are those of the full sensor. rectified: the picture is free of distortion, its camera is in P.

    info: a message of rclpy, or of rosbags (of ROS 1 as well, where fields are upper case). Raises UserError.
    """
    k, model, d = _field(info, "k"), info.distortion_model, _field(info, "d")
    if rectified:
        p = np.reshape(_field(info, "p"), (3, 4))
        k, model, d = p[:, :3].ravel().tolist(), "plumb_bob", ()
    if not k[0] or not k[4]:
        raise UserError(f"camera_info has a zero {'P' if rectified else 'K'}: the camera is not calibrated.")
    camera = camera_from_ros_numbers(info.width, info.height, k, model, d)
    roi = info.roi
    if roi.width and roi.height and (roi.width, roi.height) != (info.width, info.height):
        if roi.x_offset + roi.width > info.width or roi.y_offset + roi.height > info.height:
            raise UserError("The region of interest of camera_info reaches beyond the sensor.")
        camera = camera.cropped(roi.x_offset, roi.y_offset, roi.width, roi.height)
    columns, rows = max(info.binning_x, 1), max(info.binning_y, 1)
    if (columns, rows) != (1, 1):
        width, height = camera.width // columns, camera.height // rows
        if not width or not height:
            raise UserError(f"A binning of {columns}x{rows} leaves nothing of the image.")
        camera = camera.cropped(0, 0, width * columns, height * rows).resized(width, height)
    return camera


def _field(info: Any, name: str) -> Sequence[float]:
    return getattr(info, name) if hasattr(info, name) else getattr(info, name.upper())
