"""transforms.json of nerfstudio and instant-ngp: SCENE/transforms.json (or transforms_train.json), or the file itself.

Poses (transform_matrix) are camera-to-world with OpenGL camera axes (x right, y up, z backward); the world frame stays
as it is in the file. Intrinsics (fl_x, fl_y, cx, cy, w, h, k1 ... or camera_angle_x) are given once for all frames and
may be overridden in a frame. The centre of the first pixel is (0.5, 0.5), as in COLMAP.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets.camera_file import scaled_camera
from aceg_ros.datasets.files import checked_pose, load_image, read_text
from aceg_ros.datasets.scene import FRAME_PERIOD_S, natural_order
from aceg_ros.errors import UserError

NAME = "transforms.json"
EXPECTED_FILES = "transforms.json"

OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])

_PERSPECTIVE = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")


@dataclass(frozen=True, kw_only=True)
class TransformsEntry:
    """One frame. values: those of the frame, and those of the whole file that it does not override."""

    source: Path
    values: Mapping[str, Any]
    stamp_s: float

    @property
    def name(self) -> str:
        return str(self.values.get("file_path", "frame without file_path"))

    def load(self) -> Frame:
        try:
            matrix = np.array(self.values["transform_matrix"], np.float64)
        except (KeyError, TypeError, ValueError):
            raise UserError(f"Frame {self.name} in {self.source} has no transform_matrix of numbers.") from None
        if matrix.shape == (3, 4):
            matrix = np.vstack([matrix, (0.0, 0.0, 0.0, 1.0)])
        pose = checked_pose(matrix, f"Pose of {self.name} in {self.source}") @ OPENGL_FROM_OPENCV
        image = load_image(self._image())
        height, width = image.shape[:2]
        try:
            camera = _camera(self.values, width, height)
        except UserError as error:
            raise UserError(f"Camera of {self.name} in {self.source}: {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"Camera of {self.name} in {self.source} is incomplete or not numbers: {error}.") from None
        camera = scaled_camera(camera, width, height, f"Camera of {self.name} in {self.source}")
        return Frame(image=image, camera=camera, stamp_s=self.stamp_s, map_from_camera=pose, name=self.name)

    def _image(self) -> Path:
        image = self.source.parent / self.name
        if image.is_file():
            return image
        with_suffix = (image.with_name(image.name + suffix) for suffix in (".png", ".jpg", ".jpeg", ".JPG"))
        return next((candidate for candidate in with_suffix if candidate.is_file()), image)


def can_read(path: Path) -> bool:
    return _json_file(path) is not None


def list_entries(path: Path) -> list[TransformsEntry]:
    source = _json_file(path)
    assert source is not None, "list_entries follows can_read"
    try:
        content = json.loads(read_text(source))
    except ValueError as error:
        raise UserError(f"File {source} is not valid JSON: {error}.") from None
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise UserError(f"File {source} holds no list of frames.")
    shared = {key: value for key, value in content.items() if key != "frames"}
    frames = sorted(frames, key=lambda frame: natural_order(str(frame.get("file_path", ""))))
    return [TransformsEntry(source=source, values={**shared, **frame}, stamp_s=index * FRAME_PERIOD_S)
            for index, frame in enumerate(frames)]


def _json_file(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix == ".json" else None
    return next((path / name for name in ("transforms.json", "transforms_train.json") if (path / name).is_file()), None)


def _camera(values: Mapping[str, Any], width: int, height: int) -> Camera:
    """Return the camera of an image. width, height: of the stored image, used if the file gives no size."""
    def number(key: str, default: float) -> float:
        return float(values.get(key, default))

    width, height = int(number("w", width)), int(number("h", height))
    if "fl_x" in values:
        fx = float(values["fl_x"])
    elif "camera_angle_x" in values:
        fx = 0.5 * width / math.tan(0.5 * float(values["camera_angle_x"]))
    else:
        raise UserError("it has neither fl_x nor camera_angle_x.")
    fy = number("fl_y", fx)
    cx, cy = number("cx", width / 2) - 0.5, number("cy", height / 2) - 0.5
    k1, k2, k3, k4, p1, p2 = (number(key, 0.0) for key in ("k1", "k2", "k3", "k4", "p1", "p2"))

    model = str(values.get("camera_model", "OPENCV"))
    if model == "OPENCV_FISHEYE" or values.get("is_fisheye"):
        return Camera(width=width, height=height, fx=fx, fy=fy, cx=cx, cy=cy, model="equidistant",
                      distortion=(k1, k2, k3, k4))
    if model not in _PERSPECTIVE:
        raise UserError(f"camera_model {model} is not supported: use OPENCV, OPENCV_FISHEYE or PINHOLE.")
    if k4:
        raise UserError("k4 is only defined for fisheye lenses.")
    if not any((k1, k2, p1, p2, k3)):
        return Camera(width=width, height=height, fx=fx, fy=fy, cx=cx, cy=cy)
    return Camera(width=width, height=height, fx=fx, fy=fy, cx=cx, cy=cy, model="plumb_bob",
                  distortion=(k1, k2, p1, p2, k3))
