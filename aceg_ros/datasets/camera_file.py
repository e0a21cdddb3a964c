# SPDX-License-Identifier: Apache-2.0
"""Reads cameras from files: 3x3 K, focal length, ROS camera_info YAML, JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from aceg_ros.camera import Camera
from aceg_ros.datasets.camera_info import CameraInfoFields, check_matrix
from aceg_ros.datasets.files import exif_orientation, read_numbers, read_text, same_aspect
from aceg_ros.errors import UserError


def load_camera_file(path: Path | str, width: int, height: int) -> Camera:
    """Read the camera of images of width x height pixels.

    Args:
        path: The file, of one of these kinds:
            .json           {"width", "height", "fx", "fy", "cx", "cy"[, "model", "distortion"]}, model as in `Camera`
            .yaml, .yml     ROS camera_info, as camera_calibration writes it or as `ros2 topic echo` prints it
            anything else   numbers: 3x3 K, or one focal length (principal point in the centre)
        width: Columns of the images.
        height: Rows of the images. A camera for another image size of the same aspect ratio is scaled.

    Raises:
        UserError: If the file cannot be read, or is for images of another aspect ratio.
    """
    path = Path(path)
    parse = {".json": _from_json, ".yaml": _from_camera_info, ".yml": _from_camera_info}.get(path.suffix.lower())
    if parse is None:
        return camera_from_matrix_file(path, width, height)
    text = read_text(path)
    try:
        camera = parse(text)
    except UserError as error:
        raise UserError(f"Camera file {path}: {error}") from None
    except (ValueError, yaml.YAMLError, TypeError, KeyError, AttributeError, OverflowError,
            RecursionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"Camera file {path} is not usable: {what}.") from None
    return scaled_camera(camera, width, height, f"Camera file {path}")


def camera_from_matrix_file(path: Path, width: int, height: int) -> Camera:
    """Read a pinhole camera for images of this size from a text file with a 3x3 K or one focal length."""
    numbers = read_numbers(path)
    try:
        if numbers.size == 1:
            return Camera(width=width, height=height, fx=numbers[0], fy=numbers[0], cx=(width - 1) / 2,
                          cy=(height - 1) / 2)
        if numbers.size == 9:
            fx, fy, cx, cy = check_matrix(numbers.tolist(), "K")
            return Camera(width=width, height=height, fx=fx, fy=fy, cx=cx, cy=cy)
    except UserError as error:
        raise UserError(f"Calibration file {path}: {error}") from None
    raise UserError(f"Calibration file {path} holds {numbers.size} numbers instead of a 3x3 matrix or a focal length.")


def scaled_camera(camera: Camera, width: int, height: int, source: str, *, image: Path | None = None) -> Camera:
    """Scale a camera to another image size. Raises UserError if the aspect ratios differ by more than a pixel.

    image: the file, whose EXIF orientation is named if that may be why.
    """
    size = camera.width, camera.height
    if size == (width, height):
        return camera
    if not same_aspect(size, (width, height)):
        found = f"{source} is for {camera.width}x{camera.height} images, but the image has {width}x{height} pixels"
        if image is None or not same_aspect(size, (height, width)):
            raise UserError(f"{found}.")
        orientation = exif_orientation(image)
        reason = f"its EXIF orientation ({orientation})" if orientation >= 5 else "an EXIF orientation, lost since,"
        raise UserError(f"{found}: what made the poses has turned it by {reason}, and here images are read as they are"
                        " stored. Store them upright (mogrify -auto-orient), then they fit.")
    return camera.resized(width, height)


def _from_json(text: str) -> Camera:
    content = json.loads(text)
    if not isinstance(content, Mapping):
        raise UserError("it holds no object with width, height, fx, fy, cx, cy.")
    fx, fy, cx, cy = (float(content[key]) for key in ("fx", "fy", "cx", "cy"))
    return Camera(width=int(content["width"]), height=int(content["height"]), fx=fx, fy=fy, cx=cx, cy=cy,
                  model=content.get("model", "pinhole"),
                  distortion=tuple(float(value) for value in content.get("distortion", ())))


def _from_camera_info(text: str) -> Camera:
    content = next(yaml.safe_load_all(text), None)      # `ros2 topic echo` closes every message with ---
    if not isinstance(content, Mapping):
        raise UserError("it holds no camera_info.")
    return CameraInfoFields.from_yaml(content).camera()
