# SPDX-License-Identifier: Apache-2.0
"""COLMAP models, text or binary, in SCENE, SCENE/sparse or SCENE/sparse/0, with the image files in SCENE/images.

SCENE may also be the model folder itself. Of several models (sparse/0, sparse/1 ...) the one with most images is taken;
another is read by its own folder. Only the model's cameras and images are read, so models with rigs work too.
COLMAP stores world-to-camera poses, and the centre of its first pixel is (0.5, 0.5).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets.camera_file import scaled_camera
from aceg_ros.datasets.colmap_model import ColmapImage, count_images, is_model, read_model
from aceg_ros.datasets.files import checked_pose, existing_image, list_images, load_image
from aceg_ros.datasets.scene import FRAME_PERIOD_S, natural_order
from aceg_ros.errors import UserError
from aceg_ros.geometry import invert, pose_from_quaternion

NAME = "COLMAP model"
EXPECTED_FILES = "cameras.bin/.txt with images.bin/.txt here, in sparse/ or in sparse/0/"

_LOG = logging.getLogger("aceg_ros")


@dataclass(frozen=True, kw_only=True)
class ColmapEntry:
    """One image to read. camera: None if the model does not list it, an error if it cannot be used. source: the file
    that `record` was read from."""

    image: Path
    record: ColmapImage
    camera: Camera | UserError | None
    source: Path
    stamp_s: float

    @property
    def name(self) -> str:
        return self.record.name

    def load(self) -> Frame:
        if self.camera is None:
            raise UserError(f"Camera {self.record.camera_id} of image {self.name} in {self.source} is missing.")
        if isinstance(self.camera, UserError):
            raise UserError(f"Camera {self.record.camera_id} of image {self.name} in {self.source}: {self.camera}")
        w, x, y, z = self.record.quaternion_wxyz
        source = f"Pose of {self.name} in {self.source}"
        try:
            camera_from_map = pose_from_quaternion(np.array(self.record.translation), np.array([x, y, z, w]))
        except ValueError:
            raise UserError(f"{source} has a quaternion that is not finite or zero.") from None
        pose = invert(checked_pose(camera_from_map, source))
        file = existing_image(self.image)
        image = load_image(file)
        height, width = image.shape[:2]
        camera = scaled_camera(self.camera, width, height, f"The camera of {self.name} in {self.source}", image=file)
        return Frame(image=image, camera=camera, stamp_s=self.stamp_s, map_from_camera=pose, name=self.name)


def can_read(path: Path) -> bool:
    return next(_model_folders(path), None) is not None


def list_entries(path: Path) -> list[ColmapEntry]:
    folder = _largest_model(list(_model_folders(path)))
    model = read_model(folder)
    records = sorted(model.images, key=lambda record: natural_order(record.name))
    images = _image_folder(path, folder)
    return [ColmapEntry(image=images / record.name, record=record, camera=model.cameras.get(record.camera_id),
                        source=model.images_file, stamp_s=index * FRAME_PERIOD_S)
            for index, record in enumerate(records)]


def _model_folders(path: Path) -> Iterator[Path]:
    """The models of a scene: those in the first folder that has any."""
    for parent in (path / "sparse", path / "colmap" / "sparse", path):
        numbered = [folder for folder in sorted(parent.glob("[0-9]*"), key=natural_order) if is_model(folder)]
        found = numbered or [folder for folder in (parent,) if is_model(folder)]
        if found:
            yield from found
            return


def _largest_model(folders: list[Path]) -> Path:
    """The model with most images, the first of equally large ones."""
    if len(folders) == 1:
        return folders[0]
    counts = {folder: count_images(folder) for folder in folders}
    largest = max(folders, key=lambda folder: counts[folder])
    others = ", ".join(f"{folder} ({counts[folder]})" for folder in folders if folder != largest)
    _LOG.warning("COLMAP left %d models: %s with %d images is read, not %s. Name a model's folder to read that one.",
                 len(folders), largest, counts[largest], others)
    return largest


def _image_folder(path: Path, model: Path) -> Path:
    """The folder images/ beside or above the model, or the scene itself if the images lie in it."""
    for folder in (path, model, *list(model.resolve().parents)[:3]):
        if (folder / "images").is_dir():
            return folder / "images"
    return path if list_images(path) else path / "images"
