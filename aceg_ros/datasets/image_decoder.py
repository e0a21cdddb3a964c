# SPDX-License-Identifier: Apache-2.0
"""Decodes images and depth images from ROS messages, for the bag reader and for the nodes.

It only reads the fields of a message, so it takes messages of rclpy and of rosbags alike and does not need ROS. What
cannot be decoded raises UserError with the reason as a sentence. docs/image_encodings.md lists the encodings.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np

from aceg_ros.datasets.intensity import intensity_range
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
    """How a pixel is stored.

    to_rgb: OpenCV's code for the conversion to RGB; None if none is needed. chroma_rows: for a luma plane followed by a
    plane of interleaved chroma, the number of chroma rows per luma row (of the same length); 0 for other encodings.
    """

    dtype: str
    channels: int
    to_rgb: int | None = None
    chroma_rows: float = 0.0


_COLOURS: dict[str, tuple[int, int | None]] = {
    "mono": (1, cv2.COLOR_GRAY2RGB), "rgb": (3, None), "bgr": (3, cv2.COLOR_BGR2RGB), "rgba": (4, cv2.COLOR_RGBA2RGB),
    "bgra": (4, cv2.COLOR_BGRA2RGB),
    # OpenCV names a Bayer pattern by the second row's second and third pixel.
    "bayer_rggb": (1, cv2.COLOR_BayerBG2RGB), "bayer_bggr": (1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg": (1, cv2.COLOR_BayerGR2RGB), "bayer_grbg": (1, cv2.COLOR_BayerGB2RGB),
}
_YUV_422 = {"uyvy": cv2.COLOR_YUV2RGB_UYVY, "yuv422": cv2.COLOR_YUV2RGB_UYVY,
            "yuyv": cv2.COLOR_YUV2RGB_YUY2, "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUY2}
# Encodings that do not name colours: one channel is grey, several are in OpenCV's order, as in the drivers and
# simulators that use these names.
_PLAIN = {"8U": "u1", "8S": "i1", "16U": "u2", "16S": "i2", "32S": "i4", "32F": "f4", "64F": "f8"}
_PLAIN_COLOURS = {"C1": "mono", "C3": "bgr", "C4": "bgra"}

# Names of sensor_msgs/image_encodings.hpp.
COLOUR_ENCODINGS: dict[str, Encoding] = {
    f"{name}{bits}": Encoding(dtype=f"u{bits // 8}", channels=channels, to_rgb=code)
    for name, (channels, code) in _COLOURS.items() for bits in (8, 16)
} | {name: Encoding(dtype="u1", channels=2, to_rgb=code) for name, code in _YUV_422.items()} | {
    f"{depth}{count}": Encoding(dtype=dtype, channels=_COLOURS[colour][0], to_rgb=_COLOURS[colour][1])
    for depth, dtype in _PLAIN.items() for count, colour in _PLAIN_COLOURS.items()
} | {"nv12": Encoding(dtype="u1", channels=1, to_rgb=cv2.COLOR_YUV2RGB_NV12, chroma_rows=0.5),
     "nv21": Encoding(dtype="u1", channels=1, to_rgb=cv2.COLOR_YUV2RGB_NV21, chroma_rows=0.5),
     "nv24": Encoding(dtype="u1", channels=1, chroma_rows=2.0)}

# RGB of studio-swing YUV by BT.601, as OpenCV converts nv12 and yuv422.
_YUV_TO_RGB = np.array([[1.164, 0.0, 1.596], [1.164, -0.391, -0.813], [1.164, 2.018, 0.0]])
_YUV_BLACK = np.array([16.0, 128.0, 128.0])

_VIDEO_WORDS = ("h264", "h.264", "h265", "h.265", "hevc", "avc", "x264", "x265", "ffmpeg", "theora", "vp8", "vp9",
                "av1", "mpeg4", "mp4")
REPUBLISH = ("publish it as sensor_msgs/Image (ros2 run image_transport republish, or the decoder of its package) and"
             " use that topic")


def decode_image(message: RawImage | CompressedImage) -> np.ndarray:
    """Decode a colour or grey image.

    Args:
        message: A sensor_msgs Image or CompressedImage, of rclpy or of rosbags.

    Returns:
        (H, W, 3) uint8 RGB, writable; it may share memory with the message. More than 8 bits a channel are reduced to 8
        by `intensity_range`.

    Raises:
        UserError: If the encoding is not known, or the data does not fit it.
    """
    image = _decode_compressed(message) if hasattr(message, "format") else _decode_raw(message)
    return image if image.flags.writeable else image.copy()


def decode_depth(message: RawImage) -> np.ndarray:
    """Decode a depth image according to REP-118: 16UC1 in millimetres or 32FC1 in metres.

    Returns:
        (H, W) float32 metres, 0 if unknown.

    Raises:
        UserError: If the encoding is not one of these, or the data does not fit it.
    """
    if message.encoding not in DEPTH_ENCODINGS:
        raise UserError(f"Depth images are 16UC1 (mm) or 32FC1 (m), this one is '{message.encoding}'.")
    is_float = message.encoding == "32FC1"
    depth = _pixels(message, Encoding(dtype="f4" if is_float else "u2", channels=1))
    depth_m = depth.astype(np.float32) * DEPTH_ENCODINGS[message.encoding]
    return np.nan_to_num(depth_m, nan=0.0, posinf=0.0, neginf=0.0)


def _decode_raw(message: Any) -> np.ndarray:
    encoding = COLOUR_ENCODINGS.get(message.encoding) or COLOUR_ENCODINGS.get(message.encoding.strip().lower())
    if encoding is None:
        raise UserError(f"The image encoding '{message.encoding}' cannot be converted to RGB: publish the images as"
                        " rgb8, bgr8 or mono8.")
    pixels = _planes(message, encoding) if encoding.chroma_rows else _pixels(message, encoding)
    if encoding.chroma_rows == 2.0:
        return _full_chroma_to_rgb(pixels, message.width)
    return _to_rgb(pixels, encoding.to_rgb, f"The image of encoding '{message.encoding}'")


def _decode_compressed(message: Any) -> np.ndarray:
    name = f"The compressed image of format '{message.format}'"
    encoding, _, compression = message.format.partition(";")
    data = np.frombuffer(message.data, np.uint8)
    _check_stream(data[:4].tobytes(), message.format, name)
    if _is_cut_jpeg(data.tobytes()):
        raise UserError(f"{name} cannot be decoded: its data is truncated.")
    try:
        # Unchanged: an EXIF orientation must not be applied, since the intrinsics belong to the stored pixels.
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise UserError(f"{name} cannot be decoded ({error}).") from None
    if image is None:
        raise UserError(f"{name} cannot be decoded: it is damaged, or neither JPEG nor PNG.")
    colour = "mono" if image.ndim == 2 else {3: "bgr", 4: "bgra"}.get(image.shape[2])
    if colour is None or image.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{name} is neither a colour nor a grey image.")
    if colour == "mono" and encoding.startswith("bayer") and encoding in COLOUR_ENCODINGS:
        colour = encoding.rstrip("168")         # the mosaic is what is stored
    elif "compressed rgb" in compression:       # image_transport: red is stored where blue belongs
        colour = {"bgr": "rgb", "bgra": "rgba"}.get(colour, colour)
    return _to_rgb(image, _COLOURS[colour][1], name)


def _check_stream(beginning: bytes, form: str, name: str) -> None:
    """Reject data that is not a single colour or grey image."""
    if not beginning:
        raise UserError("The compressed image is empty.")
    if "compressedDepth" in form:
        raise UserError(f"{name} holds depth: use the topic of the colour or grey images.")
    is_video = any(word in form.lower() for word in _VIDEO_WORDS) and "jpeg" not in form.lower()
    if is_video or beginning.startswith((b"\0\0\1", b"\0\0\0\1")):
        raise UserError(f"{name} is part of a video stream, not JPEG or PNG: {REPUBLISH}.")


def _is_cut_jpeg(data: bytes) -> bool:
    """Return whether data is a truncated JPEG, which OpenCV would fill with grey.

    The end marker is searched for behind the header only, since an embedded thumbnail has one, too.
    """
    if not data.startswith(b"\xff\xd8"):
        return False
    position = 2
    while data[position:position + 1] == b"\xff" and data[position + 1:position + 2] != b"\xda":
        is_fill = data[position + 1:position + 2] == b"\xff"
        position += 1 if is_fill else 2 + int.from_bytes(data[position + 2:position + 4], "big")
    return data.find(b"\xff\xd9", position) < 0


def _pixels(message: RawImage, encoding: Encoding) -> np.ndarray:
    """Return the stored pixels (H, W[, C]) in the machine's byte order, without the padding of the rows."""
    dtype = np.dtype(encoding.dtype)
    height, width, step, channels = message.height, message.width, message.step, encoding.channels
    row_bytes = width * channels * dtype.itemsize
    _check_size(message, channels * dtype.itemsize)
    rows = np.frombuffer(message.data, np.uint8, height * step).reshape(height, step)[:, :row_bytes]
    pixels = rows.view(dtype).reshape((height, width, channels) if channels > 1 else (height, width))
    if dtype.itemsize > 1 and bool(message.is_bigendian) != (sys.byteorder == "big"):
        pixels = pixels.byteswap()
    return pixels


def _planes(message: RawImage, encoding: Encoding) -> np.ndarray:
    """Return luma and, below it, chroma as rows (H + chroma_rows * H, W), without the padding of the rows."""
    height, width, step, length = message.height, message.width, message.step, len(message.data)
    if not height or not width:
        _check_size(message, 1)
    if height % 2 or width % 2:
        raise UserError(f"An image of encoding '{message.encoding}' has even sides, not {width}x{height} pixels.")
    rows = round(height * (1 + encoding.chroma_rows))
    if length == rows * width:
        step = width            # some drivers count the chroma into the step
    elif step < width or length < rows * step:
        _check_size(message, 1)
        raise UserError(f"The image data is truncated: {length} bytes instead of {rows * step} for {width}x{height}"
                        f" pixels of {message.encoding}.")
    chroma_width = step * 2 if encoding.chroma_rows == 2.0 else step
    data = np.frombuffer(message.data, np.uint8, rows * step)
    luma, chroma = data[:height * step].reshape(-1, step), data[height * step:].reshape(-1, chroma_width)
    return np.concatenate([luma[:, :width], chroma[:, :width * chroma_width // step].reshape(-1, width)])


def _full_chroma_to_rgb(planes: np.ndarray, width: int) -> np.ndarray:
    """Convert nv24 (luma, then U and V of every pixel), which OpenCV does not support, to RGB."""
    height = len(planes) // 3
    yuv = np.dstack([planes[:height], planes[height:].reshape(height, width, 2)]).astype(np.float32)
    rgb = cv2.transform(yuv - _YUV_BLACK.astype(np.float32), _YUV_TO_RGB)
    return np.rint(np.clip(rgb, 0.0, 255.0)).astype(np.uint8)


def _check_size(message: RawImage, pixel_bytes: int) -> None:
    """Check the size in the header against the data, before memory is allocated for it."""
    height, width, step, length = message.height, message.width, message.step, len(message.data)
    if not height or not width:
        raise UserError(f"The image is empty ({width}x{height} pixels).")
    if step < width * pixel_bytes:
        raise UserError(f"The image's step of {step} bytes is too small for {width} pixels of {message.encoding}.")
    if length < step * height:
        raise UserError(f"The image data is truncated: {length} bytes instead of {step * height} for {width}x{height}"
                        f" pixels of {message.encoding}.")


def _to_rgb(image: np.ndarray, code: int | None, name: str) -> np.ndarray:
    """Convert an image of any bit depth to (H, W, 3) uint8 RGB."""
    try:
        if image.dtype == np.uint8:
            return image if code is None else cv2.cvtColor(image, code)
        values = image[..., :3] if image.ndim == 3 else image       # without alpha
        intensities = intensity_range(values)
        if image.dtype != np.uint16:            # OpenCV converts no other integers
            image = image.astype(np.float32)
        rgb = image if code is None else cv2.cvtColor(image, code)
        if intensities.stretched or image.dtype != np.uint16:
            return intensities.to_8_bits(rgb)
        return cv2.convertScaleAbs(rgb, alpha=255.0 / 65535.0)
    except cv2.error as error:
        raise UserError(f"{name} cannot be converted to RGB ({error}).") from None
