"""COLMAP models, text or binary, in SCENE, SCENE/sparse or SCENE/sparse/0, with the image files in SCENE/images.

SCENE may also be the model folder itself. Only the model's cameras and images are read, so models with rigs work too.
COLMAP stores world-to-camera poses, and the centre of its first pixel is (0.5, 0.5).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets.camera_file import scaled_camera
from aceg_ros.datasets.files import checked_pose, list_images, load_image, read_text
from aceg_ros.datasets.scene import FRAME_PERIOD_S, natural_order
from aceg_ros.errors import UserError
from aceg_ros.geometry import invert, pose_from_quaternion

NAME = "COLMAP model"
EXPECTED_FILES = "cameras.bin/.txt with images.bin/.txt here, in sparse/ or in sparse/0/"

_Parsed = TypeVar("_Parsed")

# name -> number of parameters, and parameters -> (fx, fy, cx, cy), model of `Camera`, distortion
_Conversion = Callable[[Sequence[float]], tuple[tuple[float, ...], str, tuple[float, ...]]]
_MODELS: dict[str, tuple[int, _Conversion]] = {
    "SIMPLE_PINHOLE": (3, lambda p: ((p[0], p[0], p[1], p[2]), "pinhole", ())),
    "PINHOLE": (4, lambda p: (tuple(p[:4]), "pinhole", ())),
    "SIMPLE_RADIAL": (4, lambda p: ((p[0], p[0], p[1], p[2]), "plumb_bob", (p[3], 0.0, 0.0, 0.0))),
    "RADIAL": (5, lambda p: ((p[0], p[0], p[1], p[2]), "plumb_bob", (p[3], p[4], 0.0, 0.0))),
    "OPENCV": (8, lambda p: (tuple(p[:4]), "plumb_bob", tuple(p[4:]))),
    "OPENCV_FISHEYE": (8, lambda p: (tuple(p[:4]), "equidistant", tuple(p[4:]))),
    "FULL_OPENCV": (12, lambda p: (tuple(p[:4]), "rational_polynomial", tuple(p[4:]))),
    "SIMPLE_RADIAL_FISHEYE": (4, lambda p: ((p[0], p[0], p[1], p[2]), "equidistant", (p[3], 0.0, 0.0, 0.0))),
    "RADIAL_FISHEYE": (5, lambda p: ((p[0], p[0], p[1], p[2]), "equidistant", (p[3], p[4], 0.0, 0.0))),
}
# Binary files store an index into this list. It includes unsupported models, so that they can be rejected by name.
_MODEL_IDS = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE", "FULL_OPENCV", "FOV",
              "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "THIN_PRISM_FISHEYE")


@dataclass(frozen=True, kw_only=True)
class ColmapImage:
    """One image of the model: its name, camera, and camera_from_world as quaternion (w, x, y, z) and translation."""

    name: str
    camera_id: int
    quaternion_wxyz: tuple[float, ...]
    translation: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ColmapEntry:
    """One image to read. camera: None if the model does not list it. source: the file that `record` was read from."""

    image: Path
    record: ColmapImage
    camera: Camera | None
    source: Path
    stamp_s: float

    @property
    def name(self) -> str:
        return self.record.name

    def load(self) -> Frame:
        if self.camera is None:
            raise UserError(f"Camera {self.record.camera_id} of image {self.name} in {self.source} is missing.")
        w, x, y, z = self.record.quaternion_wxyz
        source = f"Pose of {self.name} in {self.source}"
        try:
            camera_from_map = pose_from_quaternion(np.array(self.record.translation), np.array([x, y, z, w]))
        except ValueError:
            raise UserError(f"{source} has a quaternion that is not finite or zero.") from None
        pose = invert(checked_pose(camera_from_map, source))
        image = load_image(self.image)
        height, width = image.shape[:2]
        camera = scaled_camera(self.camera, width, height, f"The camera of {self.name} in {self.source}")
        return Frame(image=image, camera=camera, stamp_s=self.stamp_s, map_from_camera=pose, name=self.name)


def can_read(path: Path) -> bool:
    return _model_folder(path) is not None


def list_entries(path: Path) -> list[ColmapEntry]:
    model = _model_folder(path)
    assert model is not None, "list_entries follows can_read"
    suffix = ".bin" if (model / "images.bin").is_file() else ".txt"
    cameras_file, images_file = model / f"cameras{suffix}", model / f"images{suffix}"
    cameras = _parsed(cameras_file, _read_cameras_binary if suffix == ".bin" else _read_cameras_text)
    records = _parsed(images_file, _read_images_binary if suffix == ".bin" else _read_images_text)
    records.sort(key=lambda record: natural_order(record.name))
    images = _image_folder(path, model)
    return [ColmapEntry(image=images / record.name, record=record, camera=cameras.get(record.camera_id),
                        source=images_file, stamp_s=index * FRAME_PERIOD_S) for index, record in enumerate(records)]


def _parsed(file: Path, read: Callable[[Path], _Parsed]) -> _Parsed:
    try:
        return read(file)
    except UserError as error:
        raise UserError(f"File {file}: {error}") from None
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"File {file} is damaged: {error}.") from None


def _model_folder(path: Path) -> Path | None:
    for folder in (path / "sparse" / "0", path / "sparse", path):
        for suffix in (".bin", ".txt"):
            if (folder / f"cameras{suffix}").is_file() and (folder / f"images{suffix}").is_file():
                return folder
    return None


def _image_folder(path: Path, model: Path) -> Path:
    """Return the folder images/ beside or above the model, or the scene itself if the images are in it."""
    for folder in (path, model, model.resolve().parent, model.resolve().parent.parent):
        if (folder / "images").is_dir():
            return folder / "images"
    return path if list_images(path) else path / "images"


def _camera(model: str, width: int, height: int, parameters: Sequence[float]) -> Camera:
    if model not in _MODELS:
        raise UserError(f"Camera model {model} is not supported: undistort the model with COLMAP's "
                        "image_undistorter, or use one of " + ", ".join(_MODELS) + ".")
    count, convert = _MODELS[model]
    if len(parameters) != count:
        raise ValueError(f"a {model} camera has {len(parameters)} parameters instead of {count}")
    (fx, fy, cx, cy), ros_model, distortion = convert(parameters)
    return Camera(width=width, height=height, fx=fx, fy=fy, cx=cx - 0.5, cy=cy - 0.5, model=ros_model,
                  distortion=distortion)


def _read_cameras_text(file: Path) -> dict[int, Camera]:
    cameras = {}
    for line in read_text(file).splitlines():
        if line.strip() and not line.startswith("#"):
            key, model, width, height, *parameters = line.split()
            cameras[int(key)] = _camera(model, int(width), int(height), [float(word) for word in parameters])
    return cameras


def _read_images_text(file: Path) -> list[ColmapImage]:
    # Two lines an image: the pose, and its 2D points, which may be an empty line.
    lines = [line for line in read_text(file).splitlines() if not line.startswith("#")]
    while lines and not lines[0].strip():
        lines.pop(0)
    records = []
    for line, points in zip_longest(lines[::2], lines[1::2], fillvalue=""):
        if not line.strip() and not points.strip():
            continue                            # blank lines at the end
        words = line.split(maxsplit=9)
        if len(words) < 10 or len(points.split()) % 3:
            raise ValueError(f"the two lines of an image do not fit together at {line[:60]!r}")
        pose = tuple(float(word) for word in words[1:8])
        records.append(ColmapImage(name=words[9].strip(), camera_id=int(words[8]), quaternion_wxyz=pose[:4],
                                   translation=pose[4:]))
    return records


def _read_cameras_binary(file: Path) -> dict[int, Camera]:
    cameras = {}
    with open(file, "rb") as stream:
        for _ in range(_unpack(stream, "Q")[0]):
            key, model_id, width, height = _unpack(stream, "iiQQ")
            model = _MODEL_IDS[model_id] if 0 <= model_id < len(_MODEL_IDS) else f"number {model_id}"
            count = _MODELS[model][0] if model in _MODELS else 0
            cameras[key] = _camera(model, width, height, _unpack(stream, f"{count}d"))
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
    """Read the next values of a little-endian stream."""
    layout = "<" + layout
    data = stream.read(struct.calcsize(layout))
    if len(data) < struct.calcsize(layout):
        raise ValueError("it ends too early")
    return struct.unpack(layout, data)
