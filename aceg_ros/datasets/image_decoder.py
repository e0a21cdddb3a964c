"""Decodes images and depth from ROS messages: the one decoder of the bag reader and of the nodes.

It reads a message's plain fields, so messages of rclpy and of rosbags are alike, and ROS is not needed. Everything that
cannot be decoded raises UserError with the reason, in a sentence of its own.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np

from aceg_ros.errors import UserError

DEPTH_ENCODINGS = {"16UC1": 1e-3, "mono16": 1e-3, "32FC1": 1.0}       # to metres


class RawImage(Protocol):
    """The fields of sensor_msgs/Image that describe `data`: `height` rows of `step` bytes."""

    height: int
    width: int
    encoding: str
    is_bigendian: Any
    step: int
    data: Any


class CompressedImage(Protocol):
    """The fields of sensor_msgs/CompressedImage."""

    format: str
    data: Any


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a pixel is stored, and OpenCV's conversion to RGB (None if it is RGB, or no colour at all)."""

    dtype: str
    channels: int
    to_rgb: int | None = None


_COLOURS: dict[str, tuple[int, int | None]] = {
    "mono": (1, cv2.COLOR_GRAY2RGB), "rgb": (3, None), "bgr": (3, cv2.COLOR_BGR2RGB), "rgba": (4, cv2.COLOR_RGBA2RGB),
    "bgra": (4, cv2.COLOR_BGRA2RGB),
    # OpenCV names a Bayer pattern by the second row's second and third pixel.
    "bayer_rggb": (1, cv2.COLOR_BayerBG2RGB), "bayer_bggr": (1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg": (1, cv2.COLOR_BayerGR2RGB), "bayer_grbg": (1, cv2.COLOR_BayerGB2RGB),
}
_YUV_422 = {"uyvy": cv2.COLOR_YUV2RGB_UYVY, "yuv422": cv2.COLOR_YUV2RGB_UYVY,
            "yuyv": cv2.COLOR_YUV2RGB_YUY2, "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUY2}
# Names of sensor_msgs/image_encodings.hpp. 8UC3 and 16UC3 name no colours: they are taken for RGB.
COLOUR_ENCODINGS: dict[str, Encoding] = {
    f"{name}{bits}": Encoding(dtype=f"u{bits // 8}", channels=channels, to_rgb=code)
    for name, (channels, code) in _COLOURS.items() for bits in (8, 16)
} | {name: Encoding(dtype="u1", channels=2, to_rgb=code) for name, code in _YUV_422.items()} | {
    "8UC3": Encoding(dtype="u1", channels=3), "16UC3": Encoding(dtype="u2", channels=3)}


def decode_image(message: RawImage | CompressedImage) -> np.ndarray:
    """Decode a colour or grey image.

    Args:
        message: A sensor_msgs Image or CompressedImage, of rclpy or of rosbags.

    Returns:
        (H, W, 3) uint8 RGB, writable; it may share memory with the message.

    Raises:
        UserError: If the encoding is not known, or the data does not fit it.
    """
    image = _decode_compressed(message) if hasattr(message, "format") else _decode_raw(message)
    return image if image.flags.writeable else image.copy()


def decode_depth(message: RawImage) -> np.ndarray:
    """Decode depth as REP-118 has it: 16UC1 in millimetres or 32FC1 in metres.

    Returns:
        (H, W) float32 metres, 0 if unknown.

    Raises:
        UserError: If it is no depth, or the data does not fit.
    """
    if message.encoding not in DEPTH_ENCODINGS:
        raise UserError(f"Depth images are 16UC1 (mm) or 32FC1 (m), this one is '{message.encoding}'.")
    is_float = message.encoding == "32FC1"
    depth = _pixels(message, Encoding(dtype="f4" if is_float else "u2", channels=1))
    depth_m = depth.astype(np.float32) * DEPTH_ENCODINGS[message.encoding]
    return np.nan_to_num(depth_m, nan=0.0, posinf=0.0, neginf=0.0)


def _decode_raw(message: Any) -> np.ndarray:
    encoding = COLOUR_ENCODINGS.get(message.encoding)
    if encoding is None:
        raise UserError(f"The image encoding '{message.encoding}' cannot be converted to RGB.")
    return _to_rgb(_pixels(message, encoding), encoding.to_rgb, f"The image of encoding '{message.encoding}'")


def _decode_compressed(message: Any) -> np.ndarray:
    if not len(message.data):
        raise UserError("The compressed image is empty.")
    name = f"The compressed image of format '{message.format}'"
    try:
        # Unchanged: the pixels as the camera has them, not turned by what EXIF says.
        image = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise UserError(f"{name} cannot be decoded ({error}).") from None
    if image is None:
        raise UserError(f"{name} cannot be decoded.")
    colour = "mono" if image.ndim == 2 else {3: "bgr", 4: "bgra"}.get(image.shape[2])
    if colour is None or image.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{name} is neither a colour nor a grey image.")
    return _to_rgb(image, _COLOURS[colour][1], name)


def _pixels(message: RawImage, encoding: Encoding) -> np.ndarray:
    """The stored pixels (H, W[, C]) in the machine's byte order, without what pads the rows."""
    dtype = np.dtype(encoding.dtype)
    height, width, step, channels = message.height, message.width, message.step, encoding.channels
    row_bytes = width * channels * dtype.itemsize
    _check_size(message, channels * dtype.itemsize)
    rows = np.frombuffer(message.data, np.uint8, height * step).reshape(height, step)[:, :row_bytes]
    pixels = rows.view(dtype).reshape((height, width, channels) if channels > 1 else (height, width))
    if dtype.itemsize > 1 and bool(message.is_bigendian) != (sys.byteorder == "big"):
        pixels = pixels.byteswap()
    return pixels


def _check_size(message: RawImage, pixel_bytes: int) -> None:
    """Check the size in the header against the data, before anything is allocated for it."""
    height, width, step, length = message.height, message.width, message.step, len(message.data)
    if not height or not width:
        raise UserError(f"The image is empty ({width}x{height} pixels).")
    if step < width * pixel_bytes:
        raise UserError(f"The image's step of {step} bytes is too small for {width} pixels of {message.encoding}.")
    if length < step * height:
        raise UserError(f"The image data is truncated: {length} bytes instead of {step * height}.")


def _to_rgb(image: np.ndarray, code: int | None, name: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of 8 or 16 bits a channel."""
    try:
        rgb = image if code is None else cv2.cvtColor(image, code)
        return rgb if rgb.dtype == np.uint8 else cv2.convertScaleAbs(rgb, alpha=255.0 / 65535.0)
    except cv2.error as error:
        raise UserError(f"{name} cannot be converted to RGB ({error}).") from None
