# SPDX-License-Identifier: Apache-2.0
"""The files of a COLMAP model: cameras and images, as text or binary. Points, rigs and frames are not read."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from aceg_ros.camera import Camera
from aceg_ros.datasets.files import read_text
from aceg_ros.errors import UserError

_Parsed = TypeVar("_Parsed")

# parameters -> (fx, fy, cx, cy), model of `Camera`, distortion
_Conversion = Callable[[Sequence[float]], tuple[tuple[float, ...], str, tuple[float, ...]]]
_MODELS: dict[str, _Conversion] = {
    "SIMPLE_PINHOLE": lambda p: ((p[0], p[0], p[1], p[2]), "pinhole", ()),
    "PINHOLE": lambda p: (tuple(p[:4]), "pinhole", ()),
    "SIMPLE_RADIAL": lambda p: ((p[0], p[0], p[1], p[2]), "plumb_bob", (p[3], 0.0, 0.0, 0.0)),
    "RADIAL": lambda p: ((p[0], p[0], p[1], p[2]), "plumb_bob", (p[3], p[4], 0.0, 0.0)),
    "OPENCV": lambda p: (tuple(p[:4]), "plumb_bob", tuple(p[4:])),
    "OPENCV_FISHEYE": lambda p: (tuple(p[:4]), "equidistant", tuple(p[4:])),
    "FULL_OPENCV": lambda p: (tuple(p[:4]), "rational_polynomial", tuple(p[4:])),
    "SIMPLE_RADIAL_FISHEYE": lambda p: ((p[0], p[0], p[1], p[2]), "equidistant", (p[3], 0.0, 0.0, 0.0)),
    "RADIAL_FISHEYE": lambda p: ((p[0], p[0], p[1], p[2]), "equidistant", (p[3], p[4], 0.0, 0.0)),
    "SIMPLE_FISHEYE": lambda p: ((p[0], p[0], p[1], p[2]), "equidistant", (0.0, 0.0, 0.0, 0.0)),
    "FISHEYE": lambda p: (tuple(p[:4]), "equidistant", (0.0, 0.0, 0.0, 0.0)),
}
# Names and numbers of parameters. Binary files store the index into this list. It includes unsupported models, so that
# they can be passed over, and rejected by name.
_PARAMETERS = {
    "SIMPLE_PINHOLE": 3, "PINHOLE": 4, "SIMPLE_RADIAL": 4, "RADIAL": 5, "OPENCV": 8, "OPENCV_FISHEYE": 8,
    "FULL_OPENCV": 12, "FOV": 5, "SIMPLE_RADIAL_FISHEYE": 4, "RADIAL_FISHEYE": 5, "THIN_PRISM_FISHEYE": 12,
    "RAD_TAN_THIN_PRISM_FISHEYE": 16, "SIMPLE_DIVISION": 4, "DIVISION": 5, "SIMPLE_FISHEYE": 3, "FISHEYE": 4, "EUCM": 6,
    "EQUIRECTANGULAR": 2,
}


@dataclass(frozen=True, kw_only=True)
class ColmapImage:
    """One image of the model: its name, camera, and camera_from_world as quaternion (w, x, y, z) and translation."""

    name: str
    camera_id: int
    quaternion_wxyz: tuple[float, ...]
    translation: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ColmapModel:
    """What was read of a model. cameras: by their number, or why one cannot be used. images_file: where the images are
    listed."""

    cameras: dict[int, Camera | UserError]
    images: list[ColmapImage]
    images_file: Path


def is_model(folder: Path) -> bool:
    """Whether the folder holds a model, by names alone."""
    return _suffix(folder) is not None


def read_model(folder: Path) -> ColmapModel:
    """Read a model. Raises UserError if its files are damaged, or none of its images has a camera that is supported."""
    suffix = _suffix(folder)
    cameras_file, images_file = folder / f"cameras{suffix}", folder / f"images{suffix}"
    cameras = _parsed(cameras_file, _read_cameras_binary if suffix == ".bin" else _read_cameras_text)
    images = _parsed(images_file, _read_images_binary if suffix == ".bin" else _read_images_text)
    used = [cameras.get(image.camera_id) for image in images]
    if used and all(isinstance(camera, UserError) for camera in used):
        raise UserError(f"File {cameras_file}: {used[0]}")
    return ColmapModel(cameras=cameras, images=images, images_file=images_file)


def count_images(folder: Path) -> int:
    """The number of images of a model; 0 if it cannot be read."""
    try:
        if _suffix(folder) == ".bin":
            with open(folder / "images.bin", "rb") as stream:
                return _unpack(stream, "Q")[0]
        return len(_read_images_text(folder / "images.txt"))
    except (OSError, ValueError, ArithmeticError, UserError):
        return 0


def _suffix(folder: Path) -> str | None:
    return next((suffix for suffix in (".bin", ".txt")
                 if (folder / f"cameras{suffix}").is_file() and (folder / f"images{suffix}").is_file()), None)


def _parsed(file: Path, read: Callable[[Path], _Parsed]) -> _Parsed:
    try:
        return read(file)
    except UserError as error:
        raise UserError(f"File {file}: {error}") from None
    except (OSError, ValueError, IndexError, ArithmeticError) as error:
        raise UserError(f"File {file} is damaged: {error}.") from None


def _camera(model: str, width: int, height: int, parameters: Sequence[float]) -> Camera | UserError:
    """The camera, or why it cannot be used: only images of that camera are lost."""
    if model not in _MODELS:
        return UserError(f"Camera model {model} is not supported: undistort the model with COLMAP's"
                         " image_undistorter, or use one of " + ", ".join(_MODELS) + ".")
    if len(parameters) != _PARAMETERS[model]:
        raise ValueError(f"a {model} camera has {len(parameters)} parameters instead of {_PARAMETERS[model]}")
    (fx, fy, cx, cy), ros_model, distortion = _MODELS[model](parameters)
    try:
        return Camera(width=width, height=height, fx=fx, fy=fy, cx=cx - 0.5, cy=cy - 0.5, model=ros_model,
                      distortion=distortion)
    except UserError as error:
        return error


def _read_cameras_text(file: Path) -> dict[int, Camera | UserError]:
    cameras = {}
    for line in _lines(file):
        if line:
            key, model, width, height, *parameters = line.split()
            cameras[int(key)] = _camera(model, int(width), int(height), [float(word) for word in parameters])
    return cameras


def _read_images_text(file: Path) -> list[ColmapImage]:
    """Two lines an image: its pose, and its 2D points, which may be an empty line; or all images without points."""
    records: list[ColmapImage] = []
    points_due, first_without, any_points = False, "", False
    for line in _lines(file):
        if points_due and _is_points(line):
            points_due, any_points = False, any_points or bool(line)
        elif line and _is_points(line):
            raise ValueError(f"the two lines of an image do not fit together at {line[:60]!r}")
        elif line:
            first_without = first_without or (line if points_due else "")
            records.append(_image_of_line(line))
            points_due = True
    if first_without and any_points:
        raise ValueError(f"the two lines of an image do not fit together at {first_without[:60]!r}")
    return records


def _image_of_line(line: str) -> ColmapImage:
    words = line.split(maxsplit=9)
    try:
        pose = tuple(float(word) for word in words[1:8])
        return ColmapImage(name=words[9].strip(), camera_id=int(words[8]), quaternion_wxyz=pose[:4],
                           translation=pose[4:])
    except (IndexError, ValueError):
        raise ValueError(f"the two lines of an image do not fit together at {line[:60]!r}") from None


def _is_points(line: str) -> bool:
    """Whether a line lists 2D points: x, y and the number of a 3D point of each."""
    words = line.split()
    try:
        return len(words) % 3 == 0 and all(float(word) is not None for word in words)
    except ValueError:
        return False


def _lines(file: Path) -> list[str]:
    """The lines without comments, stripped."""
    return [line for line in map(str.strip, read_text(file).split("\n")) if not line.startswith("#")]


def _read_cameras_binary(file: Path) -> dict[int, Camera | UserError]:
    cameras = {}
    names = tuple(_PARAMETERS)
    with open(file, "rb") as stream:
        for _ in range(_unpack(stream, "Q")[0]):
            key, model_id, width, height = _unpack(stream, "iiQQ")
            if not 0 <= model_id < len(names):
                raise UserError(f"Camera model number {model_id} is not supported: it is none of COLMAP's, or newer"
                                " than this program. Undistort the model with COLMAP's image_undistorter.")
            parameters = _unpack(stream, f"{_PARAMETERS[names[model_id]]}d")
            cameras[key] = _camera(names[model_id], width, height, parameters)
    return cameras


def _read_images_binary(file: Path) -> list[ColmapImage]:
    records = []
    with open(file, "rb") as stream:
        for _ in range(_unpack(stream, "Q")[0]):
            _, *pose, camera_id = _unpack(stream, "i7di")
            name = bytearray()
            while (letter := _unpack(stream, "c")[0]) != b"\0":
                name += letter
            points = _unpack(stream, "Q")[0]
            stream.seek(points * 24, 1)         # x, y and the id of the 3D point
            records.append(ColmapImage(name=name.decode(), camera_id=camera_id, quaternion_wxyz=tuple(pose[:4]),
                                       translation=tuple(pose[4:])))
    return records


def _unpack(stream: BinaryIO, layout: str) -> tuple:
    """The next values of a little-endian stream."""
    layout = "<" + layout
    data = stream.read(struct.calcsize(layout))
    if len(data) < struct.calcsize(layout):
        raise ValueError("it ends too early")
    return struct.unpack(layout, data)
