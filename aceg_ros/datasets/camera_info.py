"""Makes a `Camera` of a ROS camera_info: for messages of rclpy and of rosbags, and for YAML files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aceg_ros.camera import Camera
from aceg_ros.errors import UserError

_MODELS = {"": "plumb_bob", "fisheye": "equidistant"}      # other names of the same models


@dataclass(frozen=True, kw_only=True)
class CameraInfoFields:
    """The fields of sensor_msgs/CameraInfo as plain numbers.

    width, height: of the full sensor, which k (3x3, row-major), d and p (3x4, row-major) are for. roi: x_offset,
    y_offset, width and height of the region that is read out; all 0 if it is all of the sensor. binning: columns and
    rows that become one; 0 counts as 1.
    """

    width: int
    height: int
    k: Sequence[float]
    d: Sequence[float] = ()
    distortion_model: str = ""
    p: Sequence[float] = ()
    roi: tuple[int, int, int, int] = (0, 0, 0, 0)
    binning: tuple[int, int] = (0, 0)

    @classmethod
    def from_message(cls, message: Any) -> CameraInfoFields:
        """Read a message of rclpy or of rosbags (also of ROS 1, where the matrices have upper-case names)."""
        def matrix(name: str) -> Sequence[float]:
            return getattr(message, name) if hasattr(message, name) else getattr(message, name.upper())

        roi = message.roi
        return cls(width=message.width, height=message.height, k=matrix("k"), d=matrix("d"), p=matrix("p"),
                   distortion_model=message.distortion_model, binning=(message.binning_x, message.binning_y),
                   roi=(roi.x_offset, roi.y_offset, roi.width, roi.height))

    @classmethod
    def from_yaml(cls, content: Mapping[str, Any]) -> CameraInfoFields:
        """Read a file of camera_calibration, or what `ros2 topic echo` prints. Raises KeyError if a key is missing."""
        model = content.get("distortion_model", "")
        if "camera_matrix" in content:
            return cls(width=content["image_width"], height=content["image_height"],
                       k=content["camera_matrix"]["data"], distortion_model=model,
                       d=content.get("distortion_coefficients", {"data": ()})["data"])
        return cls(width=content["width"], height=content["height"], k=content["k"], distortion_model=model,
                   d=content.get("d", ()))

    def camera(self, rectified: bool = False) -> Camera:
        """Make the camera of the image that goes with this camera_info.

        Args:
            rectified: Whether the image is free of distortion; then its camera is in p.

        Raises:
            UserError: If the numbers cannot belong to a camera.
        """
        k, model, d = self.k, self.distortion_model, self.d
        if rectified:
            k, model, d = np.reshape(self.p, (3, 4))[:, :3].ravel().tolist(), "plumb_bob", ()
        if len(k) != 9:
            raise UserError(f"The camera matrix has {len(k)} numbers instead of 9.")
        if not k[0] or not k[4]:
            raise UserError(f"camera_info has a zero {'P' if rectified else 'K'}: the camera is not calibrated.")
        model, distortion = _lens(model, tuple(float(value) for value in d))
        camera = Camera(width=int(self.width), height=int(self.height), fx=float(k[0]), fy=float(k[4]),
                        cx=float(k[2]), cy=float(k[5]), model=model, distortion=distortion)
        return self._binned(self._region(camera))

    def _region(self, camera: Camera) -> Camera:
        x, y, width, height = self.roi
        if not (width and height) or (width, height) == (self.width, self.height):
            return camera
        if x + width > self.width or y + height > self.height:
            raise UserError("The region of interest of camera_info reaches beyond the sensor.")
        return camera.cropped(x, y, width, height)

    def _binned(self, camera: Camera) -> Camera:
        columns, rows = (max(count, 1) for count in self.binning)
        if (columns, rows) == (1, 1):
            return camera
        width, height = camera.width // columns, camera.height // rows
        if not width or not height:
            raise UserError(f"A binning of {columns}x{rows} leaves nothing of the image.")
        return camera.cropped(0, 0, width * columns, height * rows).resized(width, height)


def camera_from_info(message: Any, rectified: bool = False) -> Camera:
    """Make the camera of the image that goes with a CameraInfo message; see `CameraInfoFields`. Raises UserError."""
    return CameraInfoFields.from_message(message).camera(rectified)


def _lens(model: str, distortion: tuple[float, ...]) -> tuple[str, tuple[float, ...]]:
    """The model and coefficients as `Camera` has them."""
    model = _MODELS.get(model, model)
    if model != "equidistant" and not any(distortion):
        return "pinhole", ()
    if model == "rational_polynomial" and not any(distortion[8:]):
        return model, distortion[:8]                # OpenCV pads with thin-prism and tilt terms
    return model, distortion
