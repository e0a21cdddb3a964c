# SPDX-License-Identifier: Apache-2.0
"""Converts a ROS camera_info to a `Camera`: messages of rclpy and of rosbags, and YAML files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aceg_ros.camera import Camera
from aceg_ros.errors import UserError

# Other names of the same models; Camera knows ROS' own.
_MODELS = {"": "plumb_bob", "brown_conrady": "plumb_bob", "radtan": "plumb_bob", "radial_tangential": "plumb_bob",
           "rational": "rational_polynomial", "fisheye": "equidistant", "kannala_brandt": "equidistant",
           "kannala_brandt4": "equidistant"}
_OPENCV_COUNTS = (5, 8, 12, 14)     # and 4: what OpenCV takes, each a prefix of the next
_RECTIFIED = re.compile(r"(?:^|[/_])rect(?:ified)?(?:[/_]|$)")


def is_rectified_topic(topic: str) -> bool:
    """Whether images are free of distortion by their topic's name, as image_proc's image_rect and image_rect_color are.

    image_proc publishes no camera_info with them: P of the raw images' camera_info is their camera.
    """
    return _RECTIFIED.search(topic) is not None and "image_raw" not in topic


@dataclass(frozen=True, kw_only=True)
class CameraInfoFields:
    """The fields of sensor_msgs/CameraInfo as plain numbers.

    width, height: size of the full sensor, which k (3x3, row-major), d and p (3x4, row-major) refer to. roi: x_offset,
    y_offset, width and height of the region of interest; all 0 for the full sensor. binning: numbers of columns and of
    rows that are combined into one; 0 counts as 1.
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
        """Read a message of rclpy or of rosbags (also of ROS 1, which names the matrices in upper case)."""
        def matrix(name: str) -> Sequence[float]:
            return getattr(message, name) if hasattr(message, name) else getattr(message, name.upper())

        roi = message.roi
        return cls(width=message.width, height=message.height, k=matrix("k"), d=matrix("d"), p=matrix("p"),
                   distortion_model=message.distortion_model, binning=(message.binning_x, message.binning_y),
                   roi=(roi.x_offset, roi.y_offset, roi.width, roi.height))

    @classmethod
    def from_yaml(cls, content: Mapping[str, Any]) -> CameraInfoFields:
        """Read a file of camera_calibration, or output of `ros2 topic echo`. Raises KeyError if a key is missing."""
        def values(*names: str) -> Any:
            return next((content[name] for name in names if content.get(name) is not None), ())

        model = str(content.get("distortion_model") or "")
        roi = content.get("roi") or {}
        x, y, width, height = (int(roi.get(name, 0)) for name in ("x_offset", "y_offset", "width", "height"))
        columns, rows = (int(content.get(f"binning_{axis}") or 0) for axis in "xy")
        if "camera_matrix" in content:
            d, p = (content.get(name) or {"data": ()} for name in ("distortion_coefficients", "projection_matrix"))
            sensor = content["image_width"], content["image_height"]
            k, d, p = content["camera_matrix"]["data"], d["data"], p["data"]
        else:
            sensor = content["width"], content["height"]
            k, d, p = values("k", "K") or content["k"], values("d", "D"), values("p", "P")
        return cls(width=int(sensor[0]), height=int(sensor[1]), k=k, d=d, p=p, distortion_model=model,
                   roi=(x, y, width, height), binning=(columns, rows))

    def camera(self, rectified: bool | None = None) -> Camera:
        """Return the camera of the image that belongs to this camera_info.

        Args:
            rectified: Whether the image is already rectified; its camera is then given by p. None: it is taken as
                rectified if d is zero and p differs from k.

        Raises:
            UserError: If the numbers cannot belong to a camera, or to one that is supported.
        """
        distortion = tuple(float(value) for value in self.d)
        has_p = len(self.p) == 12 and bool(self.p[0] and self.p[5])
        if rectified is None:
            check_matrix(self.k, "K")
            is_fisheye = _model_name(self.distortion_model) == "equidistant"
            rectified = has_p and not any(distortion) and not is_fisheye and _differ(self.k, self._p_as_k())
        model = self.distortion_model
        if rectified and (has_p or any(distortion)):        # without either, the camera is in K
            fx, fy, cx, cy = check_matrix(self._p_as_k(), "P")
            model, distortion = "", ()
        else:
            fx, fy, cx, cy = check_matrix(self.k, "K")
        model, distortion = _lens(model, distortion)
        camera = Camera(width=int(self.width), height=int(self.height), fx=fx, fy=fy, cx=cx, cy=cy, model=model,
                        distortion=distortion)
        return self._binned(self._region(camera))

    def _p_as_k(self) -> list[float]:
        """The left 3x3 of P, row by row."""
        p = [float(value) for value in self.p]
        if len(p) != 12:
            raise UserError(f"The projection matrix P of camera_info has {len(p)} numbers instead of 12.")
        return [*p[0:3], *p[4:7], *p[8:11]]

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


def camera_from_info(message: Any, rectified: bool | None = None) -> Camera:
    """Return the camera of the image that belongs to a CameraInfo message. Raises UserError; see `CameraInfoFields`."""
    return CameraInfoFields.from_message(message).camera(rectified)


def check_matrix(k: Sequence[float], name: str) -> tuple[float, float, float, float]:
    """Return fx, fy, cx, cy of a row-major camera matrix. Raises UserError, with its name, if it has other entries."""
    if len(k) != 9:
        raise UserError(f"The camera matrix {name} has {len(k)} numbers instead of 9.")
    fx, skew, cx, zero, fy, cy, *bottom = (float(value) for value in k)
    if not fx or not fy:
        raise UserError(f"camera_info has a zero {name}: the camera is not calibrated.")
    if abs(skew) > 1e-6 * abs(fx):
        raise UserError(f"The camera matrix {name} has a skew of {skew:g} (its second number), which is not supported:"
                        " calibrate without skew.")
    if zero or bottom[0] or bottom[1] or bottom[2] not in (0.0, 1.0):
        raise UserError(f"The camera matrix {name} is not [fx 0 cx; 0 fy cy; 0 0 1], row by row.")
    return fx, fy, cx, cy


def _differ(k: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two camera matrices differ by more than a thousandth of the focal length."""
    return len(k) == 9 and bool(np.abs(np.subtract(k, other)).max() > 1e-3 * abs(other[0]))


def _model_name(model: str) -> str:
    name = model.strip().lower().replace(" ", "_").replace("-", "_")
    return _MODELS.get(name, name)


def _lens(model: str, distortion: tuple[float, ...]) -> tuple[str, tuple[float, ...]]:
    """Return model and coefficients in the form that `Camera` takes; trailing zero coefficients are left out."""
    name = _model_name(model)
    needed = max((number for number, value in enumerate(distortion, start=1) if value), default=0)
    if name == "equidistant":
        return name, distortion if needed > 4 else distortion[:4]
    if not needed:
        return "pinhole", ()
    if name not in ("plumb_bob", "rational_polynomial"):
        raise UserError(f"The distortion model '{model}' is not supported: use plumb_bob, rational_polynomial or"
                        " equidistant, or rectified images (image_proc's image_rect).")
    count = len(distortion)
    if count not in (4, 5):
        count = next((taken for taken in _OPENCV_COUNTS if needed <= taken <= count), 0)
    if not count:
        raise UserError(f"The distortion model {name} has 4, 5, 8, 12 or 14 coefficients, not {len(distortion)}.")
    return "plumb_bob" if count <= 5 else "rational_polynomial", distortion[:count]
