# SPDX-License-Identifier: Apache-2.0
"""transforms.json of nerfstudio and instant-ngp: SCENE/transforms.json (or transforms_train.json), or the file itself.

Poses (transform_matrix) are camera-to-world with OpenGL camera axes (x right, y up, z backward); the world frame stays
as it is in the file (applied_transform is in the poses already). Intrinsics (fl_x, fl_y, cx, cy, w, h, k1 ... or
camera_angle_x, camera_angle_y) are given once for all frames and may be overridden in a frame. The centre of the first
pixel is (0.5, 0.5), as in COLMAP. depth_file_path names a 16-bit PNG of depths along the optical axis, in millimetres
or in units of depth_unit_scale_factor metres.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any

import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets.camera_file import scaled_camera
from aceg_ros.datasets.files import checked_pose, existing_image, load_image, load_registered_depth, read_text
from aceg_ros.datasets.scene import FRAME_PERIOD_S, natural_order
from aceg_ros.errors import UserError

NAME = "transforms.json"
EXPECTED_FILES = "transforms.json"

OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])

# Names of the focal length in x and in y: pixels, field of view in radians, field of view in degrees.
_FOCAL_X, _FOCAL_Y = ("fl_x", "camera_angle_x", "x_fov"), ("fl_y", "camera_angle_y", "y_fov")
_FISHEYE = ("OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "SIMPLE_FISHEYE", "FISHEYE")
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
        except (KeyError, TypeError, ValueError, ArithmeticError):
            raise UserError(f"Frame {self.name} in {self.source} has no transform_matrix of numbers.") from None
        if matrix.shape == (3, 4):
            matrix = np.vstack([matrix, (0.0, 0.0, 0.0, 1.0)])
        pose = checked_pose(matrix, f"Pose of {self.name} in {self.source}") @ OPENGL_FROM_OPENCV
        file = self._file(self.name)
        image = load_image(file)
        height, width = image.shape[:2]
        try:
            camera = _camera(self.values, width, height)
        except UserError as error:
            raise UserError(f"Camera of {self.name} in {self.source}: {error}") from None
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise UserError(f"Camera of {self.name} in {self.source} is incomplete or not numbers: {error}.") from None
        camera = scaled_camera(camera, width, height, f"Camera of {self.name} in {self.source}", image=file)
        depth_m, problem = self._depth(width, height)
        return Frame(image=image, camera=camera, stamp_s=self.stamp_s, map_from_camera=pose, name=self.name,
                     depth_m=depth_m, depth_problem=problem)

    def _depth(self, width: int, height: int) -> tuple[np.ndarray | None, str]:
        """The depth of an image of this size, or None, with a sentence if the file names one that cannot be used."""
        name = self.values.get("depth_file_path")
        if name is None:
            return None, ""
        metres = self.values.get("depth_unit_scale_factor", 0.001)
        if isinstance(metres, bool) or not isinstance(metres, (int, float)) or not 0 < metres < math.inf:
            return None, f"depth_unit_scale_factor in {self.source} is not a positive number: {str(metres)[:60]!r}."
        try:
            return load_registered_depth(self._file(str(name)), width, height, 1.0 / metres)
        except UserError as error:
            return None, str(error)

    def _file(self, name: str) -> Path:
        folder = self.source.parent
        image = existing_image(folder / name)
        parts = Path(name.replace("\\", "/")).parts
        if isfile(image) or len(parts) < 2 or not (parts[0].startswith("/") or parts[0].endswith(":")):
            return image
        # An absolute path of another computer: the end of it may lie beside the file.
        moved = (existing_image(folder.joinpath(*parts[start:])) for start in range(1, len(parts)))
        return next((candidate for candidate in moved if isfile(candidate)), image)


def can_read(path: Path) -> bool:
    return _json_file(path) is not None


def list_entries(path: Path) -> list[TransformsEntry]:
    source = _json_file(path)
    assert source is not None, "list_entries follows can_read"
    try:
        content = json.loads(read_text(source))
    except (ValueError, RecursionError) as error:
        raise UserError(f"File {source} is not valid JSON: {error}.") from None
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise UserError(f"File {source} holds no list of frames.")
    shared = {key: value for key, value in content.items() if key != "frames"}
    frames = sorted(frames, key=lambda frame: natural_order(str(frame.get("file_path", ""))))
    return [TransformsEntry(source=source, values=_merged(shared, frame), stamp_s=index * FRAME_PERIOD_S)
            for index, frame in enumerate(frames)]


def _merged(shared: Mapping[str, Any], frame: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a frame: its own, and those of the file. A focal length of its own replaces that of the file under
    whatever name."""
    overridden = {name for names in (_FOCAL_X, _FOCAL_Y) if any(name in frame for name in names) for name in names}
    return {**{key: value for key, value in shared.items() if key not in overridden}, **frame}


def _json_file(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix == ".json" else None
    return next((path / name for name in ("transforms.json", "transforms_train.json") if (path / name).is_file()), None)


def _camera(values: Mapping[str, Any], width: int, height: int) -> Camera:
    """Return the camera of an image. width, height: of the stored image, used if the file gives no size."""
    def number(key: str, default: float) -> float:
        return float(values.get(key, default))

    width, height = int(number("w", width)), int(number("h", height))
    fx, fy = _focal_length(values, _FOCAL_X, width), _focal_length(values, _FOCAL_Y, height)
    if fx is None and fy is None:
        raise UserError("it has neither fl_x nor camera_angle_x, nor those of y.")
    fx, fy = (fy if fx is None else fx), (fx if fy is None else fy)
    assert fx is not None and fy is not None
    cx, cy = number("cx", width / 2) - 0.5, number("cy", height / 2) - 0.5
    k1, k2, k3, k4, p1, p2 = (number(key, 0.0) for key in ("k1", "k2", "k3", "k4", "p1", "p2"))

    model = str(values.get("camera_model", "OPENCV"))
    if model in _FISHEYE or values.get("is_fisheye"):
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


def _focal_length(values: Mapping[str, Any], names: tuple[str, str, str], side_px: int) -> float | None:
    """The focal length in pixels along one side of the image, None if none is given."""
    pixels, radians, degrees = names
    if pixels in values:
        return float(values[pixels])
    if radians not in values and degrees not in values:
        return None
    angle = float(values[radians]) if radians in values else math.radians(float(values[degrees]))
    return 0.5 * side_px / math.tan(0.5 * angle)
