# SPDX-License-Identifier: Apache-2.0
"""7-Scenes: a sequence folder, a scene folder with its sequences, or one of its split files.

seq-01/             frame-000000.color.png|jpg, .pose.txt (4x4 map_from_camera, metres), .depth.png (millimetres)
chess/              the sequences that TrainSplit.txt names, or all seq-* folders if there is no split file
chess/TestSplit.txt the sequences that it names ("sequence3" = seq-03)

Colour camera: color-intrinsics.txt or camera-intrinsics.txt (3x3 K) of the sequence or scene folder, otherwise
f = 525, centre (320, 240) at 640x480, the usual assumption (measured on one scene: 522.7 x 519.2, centre 318.0, 243.0).
A camera-intrinsics.txt with f = 585, as fusion software ships it, is for the depth camera and is not used for colour.

Depth: the original depth images were taken by the depth camera (f = 585, centre (320, 240)) and are not registered to
colour. They are resampled here to the colour intrinsics. The baseline of 2.5 cm and the small rotation between the two
cameras are not known well enough to correct, and the original poses are those of the depth camera. So the depth gives
the scale, but is not accurate to a centimetre.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets.camera_file import camera_from_matrix_file
from aceg_ros.datasets.files import list_images, load_depth, load_image, read_pose, read_text
from aceg_ros.datasets.scene import FRAME_PERIOD_S, natural_order
from aceg_ros.errors import UserError

NAME = "7-Scenes"
EXPECTED_FILES = "frame-*.color.png, seq-*/ or TrainSplit.txt"

COLOUR_CAMERA = Camera(width=640, height=480, fx=525.0, fy=525.0, cx=320.0, cy=240.0)
DEPTH_CAMERA = Camera(width=640, height=480, fx=585.0, fy=585.0, cx=320.0, cy=240.0)


@dataclass(frozen=True, kw_only=True)
class SevenScenesEntry:
    """The colour image of a frame; its pose and depth are files beside it."""

    image: Path
    stamp_s: float

    @property
    def name(self) -> str:
        return f"{self.image.parent.name}/{self.image.name}"

    def load(self) -> Frame:
        stem = self.image.name.split(".")[0]
        pose = read_pose(self.image.with_name(f"{stem}.pose.txt"))
        image = load_image(self.image)
        height, width = image.shape[:2]
        camera = _colour_camera(self.image.parent, width, height)
        depth = self.image.with_name(f"{stem}.depth.png")
        depth_m = _registered(load_depth(depth), camera) if depth.exists() else None
        return Frame(image=image, camera=camera, stamp_s=self.stamp_s, map_from_camera=pose, name=self.name,
                     depth_m=depth_m)


def can_read(path: Path) -> bool:
    if path.is_file():
        return re.fullmatch(r"(Train|Test)Split\.txt", path.name) is not None
    return (path / "TrainSplit.txt").is_file() or any(path.glob("frame-*.color.*")) or any(path.glob("seq-*/frame-*"))


def list_entries(path: Path) -> list[SevenScenesEntry]:
    images = [image for sequence in _sequences(path)
              for image in sorted(list_images(sequence), key=natural_order) if ".color." in image.name]
    return [SevenScenesEntry(image=image, stamp_s=index * FRAME_PERIOD_S) for index, image in enumerate(images)]


def _sequences(path: Path) -> Iterator[Path]:
    if path.is_dir() and any(path.glob("frame-*.color.*")):
        yield path
        return
    split = path if path.is_file() else path / "TrainSplit.txt"
    if not split.exists():
        yield from sorted((folder for folder in path.glob("seq-*") if folder.is_dir()), key=natural_order)
        return
    for number in re.findall(r"\d+", read_text(split)):
        sequence = split.parent / f"seq-{int(number):02d}"
        if not sequence.is_dir():
            raise UserError(f"Folder {sequence}, which {split} names, is missing.")
        yield sequence


def _colour_camera(sequence: Path, width: int, height: int) -> Camera:
    for folder in (sequence, sequence.parent):
        for name in ("color-intrinsics.txt", "camera-intrinsics.txt"):
            if (folder / name).is_file():
                camera = camera_from_matrix_file(folder / name, width, height)
                if name.startswith("color") or camera.fx != DEPTH_CAMERA.fx:
                    return camera
    return COLOUR_CAMERA.resized(width, height)


def _registered(depth_m: np.ndarray, camera: Camera) -> np.ndarray:
    """Resample a depth image to the intrinsics of the colour camera, at the pose of the depth camera."""
    height, width = depth_m.shape
    depth_from_colour = DEPTH_CAMERA.resized(width, height).K @ np.linalg.inv(camera.K)
    return cv2.warpPerspective(depth_m, depth_from_colour, (camera.width, camera.height),
                               flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)
