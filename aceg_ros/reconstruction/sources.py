# SPDX-License-Identifier: Apache-2.0
"""Images without poses, one by one: from a video, a folder or a bag."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from aceg_ros.camera import Camera
from aceg_ros.datasets.bag.options import BagOptions
from aceg_ros.datasets.bag.reader import list_entries
from aceg_ros.datasets.bag.recording import can_read as is_bag
from aceg_ros.datasets.files import list_images, load_image
from aceg_ros.datasets.scene import natural_order
from aceg_ros.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
FULL_FRAME_MM = 36.0                        # width that EXIF's focal length for 35 mm film refers to
_FOCAL_35MM, _EXIF_IFD = 0xA405, 0x8769


@dataclass(frozen=True, kw_only=True)
class UnposedImage:
    """An image (H, W, 3) uint8 RGB, upright. camera: known intrinsics, without distortion; None: unknown. focal_px: the
    approximate focal length that its file states, 0 for none."""

    image: np.ndarray = field(repr=False)
    name: str
    stamp_s: float
    camera: Camera | None = None
    focal_px: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Images in the order in which they were taken. is_video: neighbours overlap; else they may be in any order."""

    path: Path
    count: int
    is_video: bool
    every: int = 1
    bag_options: BagOptions | None = None

    def __iter__(self) -> Iterator[UnposedImage]:
        """Yield the images that can be read."""
        if self.path.suffix.lower() in VIDEO_SUFFIXES:
            yield from _video_frames(self.path, self.every)
        elif is_bag(self.path):
            yield from _bag_images(self.path, self.every, self.bag_options or BagOptions())
        else:
            yield from _folder_images(self.path, self.every)


def is_unposed(path: Path) -> bool:
    """Return whether a path is a video, or a folder of images without poses."""
    if path.is_file():
        return path.suffix.lower() in VIDEO_SUFFIXES
    return path.is_dir() and not is_bag(path) and bool(_images_of(path)) and not any(
        (path / name).exists() for name in ("poses", "calibration", "transforms.json", "sparse", "rgb.txt"))


def open_images(path: Path | str, every: int = 1, bag_options: BagOptions | None = None) -> ImageSource:
    """Open a video, a folder of images or a bag. Raises UserError if there are no images."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"There is no file or folder {path}.")
    if path.suffix.lower() in VIDEO_SUFFIXES:
        capture = _open_video(path)
        count = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        capture.release()
        return ImageSource(path=path, count=-(-count // every), is_video=True, every=every)
    if is_bag(path):
        options = replace(bag_options or BagOptions(), posed=False)
        count = len(list_entries(path, options)[::every])
        return ImageSource(path=path, count=count, is_video=True, every=every, bag_options=options)
    files = _images_of(path) if path.is_dir() else []
    if not files:
        raise UserError(f"{path} is neither a video ({', '.join(VIDEO_SUFFIXES)}) nor a folder of images nor a bag.")
    return ImageSource(path=path, count=len(files[::every]), is_video=False, every=every)


def _images_of(path: Path) -> list[Path]:
    """Return the images in a folder, or in its folder rgb/ or images/, in natural order."""
    for folder in (path, path / "rgb", path / "images"):
        found = list_images(folder) if folder.is_dir() else []
        if found:
            return sorted(found, key=natural_order)
    return []


def _open_video(path: Path) -> cv2.VideoCapture:
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise UserError(f"The video {path} cannot be opened: it is damaged, or its codec is not known to OpenCV.")
    return capture


def _video_frames(path: Path, every: int) -> Iterator[UnposedImage]:
    """Yield the frames, upright: OpenCV turns them as the file states."""
    capture = _open_video(path)
    rate = capture.get(cv2.CAP_PROP_FPS) or 30.0
    number = 0
    try:
        while capture.grab():
            if number % every == 0:
                read, image = capture.retrieve()
                if read:
                    yield UnposedImage(image=np.ascontiguousarray(image[..., ::-1]), name=f"{number:06d}",
                                       stamp_s=number / rate)
            number += 1
    finally:
        capture.release()
    if not number:
        raise UserError(f"The video {path} has no frames that can be decoded.")


def _folder_images(path: Path, every: int) -> Iterator[UnposedImage]:
    for number, file in enumerate(_images_of(path)[::every]):
        try:
            image, focal_px = _upright(file)
        except UserError:
            continue
        yield UnposedImage(image=image, name=file.stem, stamp_s=float(number), focal_px=focal_px)


def _upright(file: Path) -> tuple[np.ndarray, float]:
    """Return an image turned as its EXIF orientation says, and the focal length in pixels that EXIF states, 0 for
    none."""
    image, focal_px = load_image(file), 0.0
    try:
        with Image.open(file) as opened:
            exif = opened.getexif()
            focal_mm = float(exif.get_ifd(_EXIF_IFD).get(_FOCAL_35MM, 0) or 0)
            if int(exif.get(0x0112, 1)) != 1:
                image = np.array(ImageOps.exif_transpose(opened).convert("RGB"))
        focal_px = focal_mm / FULL_FRAME_MM * max(image.shape[:2])
    except Exception:               # of any kind, on damaged EXIF: then nothing is known
        pass
    return image, focal_px


def _bag_images(path: Path, every: int, options: BagOptions) -> Iterator[UnposedImage]:
    """Yield the images with the intrinsics of their camera_info, without distortion."""
    for entry in list_entries(path, options)[::every]:
        try:
            frame, _ = entry.load().rectified()
        except UserError:
            continue
        yield UnposedImage(image=frame.image, name=entry.name, stamp_s=frame.stamp_s, camera=frame.camera)
