# SPDX-License-Identifier: Apache-2.0
"""Reads file types that several formats share. Every failure is a UserError that names the file."""

from __future__ import annotations

from os.path import isfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from aceg_ros.datasets.intensity import intensity_range
from aceg_ros.errors import UserError
from aceg_ros.geometry import is_pose, nearest_pose

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def load_image(path: Path | str) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8 RGB: grey is repeated, alpha dropped, 16 bits reduced to 8, stretched if
    they cover a small part of the range (see `intensity_range`).

    An EXIF orientation is not applied: intrinsics belong to the pixels as they are stored.
    """
    image = _decode(Path(path))
    if image.mode.startswith("I"):                  # 16-bit grey; Pillow would clip it at 255
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise UserError(f"Image {path} has more than 16 bits per pixel: convert it to 8 bits.")
        values = grey.astype(np.uint16)
        intensities = intensity_range(values)
        grey = intensities.to_8_bits(values) if intensities.stretched else (values >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    deep = _read_deep_colours(Path(path))
    if deep is not None and (intensities := intensity_range(deep)).stretched:
        return intensities.to_8_bits(deep)
    if image.mode == "F":
        raise UserError(f"Image {path} holds floating-point values, not colours or grey values: convert it to 8 bits.")
    return np.array(image.convert("RGB"))


def load_depth(path: Path | str, units_per_m: float = 1000.0) -> np.ndarray:
    """Read a 16-bit PNG as (H, W) float32 metres; unknown pixels (stored as 0 or 65535) are 0."""
    image = _decode(Path(path))
    if not image.mode.startswith("I"):
        raise UserError(f"Depth image {path} is not a 16-bit grey PNG.")
    stored = np.asarray(image)
    return np.where(stored < 65535, stored / units_per_m, 0.0).astype(np.float32)


def list_images(folder: Path) -> list[Path]:
    """List the images directly in a folder, in no particular order."""
    return [path for path in folder.iterdir()
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")]


def load_registered_depth(path: Path, width: int, height: int, units_per_m: float = 1000.0
                          ) -> tuple[np.ndarray | None, str]:
    """Read a depth image that covers the colour image of width x height pixels, and resample it to its size.

    Returns:
        The depth (height, width) in metres and "", or None and the reason, a sentence, if its aspect ratio is another.
    """
    depth_m = load_depth(path, units_per_m)
    rows, columns = depth_m.shape
    if (rows, columns) == (height, width):
        return depth_m, ""
    if not same_aspect((columns, rows), (width, height)):
        return None, (f"Depth image {path} has {columns}x{rows} pixels, the colour image {width}x{height}: the aspect"
                      " ratios differ, so they do not show the same; register depth to colour first.")
    # Not INTER_NEAREST, which is off by half a pixel of the depth image.
    return cv2.resize(depth_m, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), ""


def same_aspect(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two sizes (width, height) have the same aspect ratio, to a pixel of the smaller one."""
    return abs(a[0] * b[1] - a[1] * b[0]) <= max(*a, *b)


def exif_orientation(path: Path) -> int:
    """The EXIF orientation of an image file: 1 is upright, 5 to 8 are turned by 90 degrees; 1 if it states none."""
    try:
        with Image.open(path) as image:
            return int(image.getexif().get(0x0112, 1))
    except Exception:               # of any kind, on damaged EXIF: it is only for a message
        return 1


def existing_image(path: Path) -> Path:
    """Return the file that a list means by this path, written with backslashes, without an ending, or with one in the
    other case; the path itself if there is no such file."""
    if isfile(path) or not path.name:           # unlike Path.is_file, it takes names of any length
        return path
    path = Path(str(path).replace("\\", "/"))
    endings = [ending for suffix in IMAGE_SUFFIXES for ending in (suffix, suffix.upper())]
    candidates = [path, *(path.with_name(path.name + ending) for ending in endings)]
    if path.suffix.lower() in IMAGE_SUFFIXES:
        candidates += [path.with_suffix(ending) for ending in (path.suffix.lower(), path.suffix.upper())]
    return next((candidate for candidate in candidates if isfile(candidate)), path)


def read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
        # Windows' editors and PowerShell write UTF-16.
        encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        return content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise UserError(f"File {path} is missing.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"File {path} cannot be read as text: {error}.") from None


def read_numbers(path: Path) -> np.ndarray:
    """Read all numbers of a text file, row after row; commas count as spaces, # starts a comment."""
    words = [word for line in read_text(path).splitlines() for word in line.split("#")[0].replace(",", " ").split()]
    try:
        return np.array([float(word) for word in words])
    except ValueError as error:
        raise UserError(f"File {path} does not hold plain numbers: {error}.") from None


def read_pose(path: Path) -> np.ndarray:
    """Read map_from_camera from a text file with 4x4 (or 3x4) numbers."""
    numbers = read_numbers(path)
    if numbers.size == 12:
        numbers = np.append(numbers, (0.0, 0.0, 0.0, 1.0))
    if numbers.size != 16:
        raise UserError(f"Pose file {path} holds {numbers.size} numbers instead of a 4x4 matrix.")
    return checked_pose(numbers.reshape(4, 4), f"Pose file {path}")


def checked_pose(matrix: np.ndarray, source: str) -> np.ndarray:
    """Remove rounding errors from a pose. Raises UserError, beginning with the source, if it is not rigid."""
    if not np.isfinite(matrix).all():
        raise UserError(f"{source} has values that are not finite.")
    if not is_pose(matrix, tolerance=1e-2):
        raise UserError(f"{source} is not a rigid transform (rotation, translation, 0 0 0 1).")
    return nearest_pose(matrix)


def _read_deep_colours(path: Path) -> np.ndarray | None:
    """Read a PNG of 16-bit colours (H, W, 3), of which Pillow keeps the upper bits; None if it is another image."""
    with path.open("rb") as file:
        header = file.read(26)
    if not header.startswith(b"\x89PNG") or header[24:25] != b"\x10" or header[25:26] not in (b"\2", b"\6"):
        return None
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    return None if image is None else np.ascontiguousarray(image[..., 2::-1])


def _decode(path: Path) -> Image.Image:
    """Decode a whole image. With Pillow, because OpenCV accepts truncated files."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise UserError(f"Image {path} is missing.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not an image: name the image files in it.") from None
    except Exception as error:      # Pillow's decoders raise nearly every type on damaged data
        raise UserError(f"Image {path} is damaged or not an image: {error}.") from None
