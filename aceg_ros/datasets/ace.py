# SPDX-License-Identifier: Apache-2.0
"""ACE folders: rgb/, poses/, calibration/ and optionally depth/, one file per frame, paired by name.

rgb/NAME.jpg|png        the image
poses/NAME.txt          4x4 map_from_camera, OpenCV axes, metres
calibration/NAME.txt    3x3 K of the stored image (centre of the first pixel = (0, 0)), or one focal length in
                        pixels: then the principal point is the centre of the image. No lens distortion.
depth/NAME.png          16-bit millimetres, 0 = unknown, of what the image shows; of another size, it is resampled
A trailing .color, .rgb, .image, .pose, .calibration or .depth is not part of NAME (file names as in 7-Scenes).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aceg_ros.camera import Frame
from aceg_ros.datasets.camera_file import camera_from_matrix_file
from aceg_ros.datasets.files import list_images, load_image, load_registered_depth, read_pose
from aceg_ros.datasets.scene import FRAME_PERIOD_S, natural_order
from aceg_ros.errors import UserError

NAME = "ACE folder"
EXPECTED_FILES = "rgb/ with poses/ and calibration/"

_IMAGE_SETTINGS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 1},      # recorded while driving: fast rather than small
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}
_ROLES = (".color", ".rgb", ".image", ".pose", ".calibration", ".depth")


@dataclass(frozen=True, kw_only=True)
class AceEntry:
    """The files of one frame. depth: None if it has no depth image."""

    image: Path
    pose: Path
    calibration: Path
    depth: Path | None
    stamp_s: float

    @property
    def name(self) -> str:
        return self.image.name

    def load(self) -> Frame:
        pose = read_pose(self.pose)
        image = load_image(self.image)
        height, width = image.shape[:2]
        camera = camera_from_matrix_file(self.calibration, width, height)
        depth_m, problem = None, ""
        if self.depth is not None:
            depth_m, problem = load_registered_depth(self.depth, width, height)
        return Frame(image=image, camera=camera, stamp_s=self.stamp_s, map_from_camera=pose, name=self.name,
                     depth_m=depth_m, depth_problem=problem)


def can_read(path: Path) -> bool:
    return (path / "rgb").is_dir() and ((path / "poses").is_dir() or (path / "calibration").is_dir())


def list_entries(path: Path) -> list[AceEntry]:
    images = sorted(list_images(path / "rgb"), key=natural_order)
    poses, calibrations, depths = (_by_key(path / folder) for folder in ("poses", "calibration", "depth"))
    return [AceEntry(image=image, pose=poses.get(_key(image), path / "poses" / f"{_key(image)}.txt"),
                     calibration=calibrations.get(_key(image), path / "calibration" / f"{_key(image)}.txt"),
                     depth=depths.get(_key(image)), stamp_s=index * FRAME_PERIOD_S)
            for index, image in enumerate(images)]


def write_ace_scene(path: Path | str, frames: Iterable[Frame], image_format: str = "png") -> int:
    """Write posed frames as an ACE folder, one by one.

    Distorted images are rectified, because the format has no distortion. The image of a frame is written last and
    atomically, so an interrupted recording can be read up to the last complete frame.

    Args:
        path: The folder. It must not contain a recording yet.
        frames: Frames with poses.
        image_format: "png", or "jpg" (quality 95).

    Returns:
        The number of frames written.

    Raises:
        UserError: If the folder contains a recording, a frame has no pose, or the image format is unknown.
    """
    path = Path(path)
    if image_format not in _IMAGE_SETTINGS:
        raise UserError(f"Images cannot be recorded as '{image_format}': use {' or '.join(_IMAGE_SETTINGS)}.")
    check_new_recording(path)
    for folder in ("rgb", "poses", "calibration"):
        (path / folder).mkdir(parents=True, exist_ok=True)
    count = 0
    for frame in frames:
        _write_frame(path, f"{count:06d}", frame, image_format)
        count += 1
    return count


def check_new_recording(path: Path) -> None:
    """Raise UserError if a folder contains a recording already."""
    rgb = path / "rgb"
    if rgb.is_dir() and list_images(rgb):
        raise UserError(f"Folder {path} already holds a recording: choose another or delete it.")


def _write_frame(path: Path, name: str, frame: Frame, image_format: str) -> None:
    if frame.map_from_camera is None:
        raise UserError(f"Frame {frame.name or name} has no pose and cannot be recorded.")
    np.savetxt(path / "poses" / f"{name}.txt", frame.map_from_camera, fmt="%.17g")
    frame, _ = frame.rectified()
    np.savetxt(path / "calibration" / f"{name}.txt", frame.camera.K, fmt="%.17g")
    if frame.depth_m is not None:
        (path / "depth").mkdir(exist_ok=True)
        millimetres = np.round(np.nan_to_num(frame.depth_m.astype(np.float64), posinf=0.0, neginf=0.0) * 1000.0)
        millimetres[(millimetres < 0) | (millimetres >= 65535)] = 0
        Image.fromarray(millimetres.astype(np.uint16)).save(path / "depth" / f"{name}.png")
    image = path / "rgb" / f"{name}.{image_format}"
    unfinished = image.with_suffix(".part")         # not atomic_file, which would wait for the disk at every frame
    with open(unfinished, "wb") as file:
        Image.fromarray(frame.image).save(file, **_IMAGE_SETTINGS[image_format])
    os.replace(unfinished, image)


def _key(path: Path) -> str:
    stem = path.stem
    for role in _ROLES:
        stem = stem.removesuffix(role)
    return stem


def _by_key(folder: Path) -> dict[str, Path]:
    return {_key(file): file for file in folder.iterdir()} if folder.is_dir() else {}
