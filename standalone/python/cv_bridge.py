# SPDX-License-Identifier: Apache-2.0
"""Stand-in for cv_bridge with the calls that aceg_ros uses, for where ROS 2 is not installed.

As the original: encodings that name colours (mono8, bgr8, bayer_rggb8, ...) convert into one another, scaling between
8 and 16 bits; those that only name a type (8UC3, 32FC1, ...) convert to what has as many channels, never to colours.
Its faults are the original's as well (cv_bridge 3 and 4): the width comes from the step, so that padded rows make a
wrong or sheared picture; the other byte order raises AttributeError with NumPy 2; what is compressed counts as bgr8.
"""

from __future__ import annotations

import re
import sys
from array import array

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

_DEPTHS = {"8U": "u1", "8S": "i1", "16U": "u2", "16S": "i2", "32S": "i4", "32F": "f4", "64F": "f8"}
_DEPTH_NAMES = {form: name for name, form in _DEPTHS.items()}
_CHANNELS = {"mono": 1, "rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4, "bayer_rggb": 1, "bayer_bggr": 1, "bayer_gbrg": 1,
             "bayer_grbg": 1}
_YUV = {"yuv422": "UYVY", "yuv422_yuy2": "YUY2"}


class CvBridgeError(TypeError):
    """An encoding that is not known, or that does not fit the picture."""


def _parse(encoding: str) -> tuple[np.dtype, int, str]:
    """Type, channels and colour space of an encoding; the latter is empty for the likes of 8UC3."""
    if encoding in _YUV:
        return np.dtype("u1"), 2, encoding
    if match := re.fullmatch(r"(8U|8S|16U|16S|32S|32F|64F)(?:C([1-4]))?", encoding):
        return np.dtype(_DEPTHS[match[1]]), int(match[2] or 1), ""
    if (match := re.fullmatch(r"(\D+)(8|16)", encoding)) and match[1] in _CHANNELS:
        return np.dtype("u1" if match[2] == "8" else "u2"), _CHANNELS[match[1]], match[1]
    raise CvBridgeError(f"Unrecognized image encoding [{encoding}]")


def _opencv_code(source: str, target: str) -> int:
    target = target.upper().replace("MONO", "GRAY")
    if source in _YUV:
        name = f"COLOR_YUV2{target}_{_YUV[source]}"
    elif source.startswith("bayer"):
        name = f"COLOR_Bayer{source[6:].upper()}2{target}"
    else:
        name = f"COLOR_{source.upper().replace('MONO', 'GRAY')}2{target}"
    if not hasattr(cv2, name):
        raise CvBridgeError(f"Conversion from {source} to {target} is not supported")
    return getattr(cv2, name)


def _convert(image: np.ndarray, source: str, target: str) -> np.ndarray:
    """The picture in another encoding."""
    if source == target:
        return image
    _, channels, colour = _parse(source)
    dtype, target_channels, target_colour = _parse(target)
    if not colour and target_colour:
        raise CvBridgeError(f"[{source}] is not a color format. but [{target}] is. The conversion does not make sense")
    if not target_colour and channels != target_channels:
        raise CvBridgeError(f"[{source}] and [{target}] do not have the same number of channels")
    if target_colour and colour != target_colour and _YUV.get(colour, colour) != _YUV.get(target_colour, target_colour):
        image = cv2.cvtColor(image, _opencv_code(colour, target_colour))
    if dtype == image.dtype:
        return image
    if target_colour and dtype == np.uint8:
        return cv2.convertScaleAbs(image, alpha=255.0 / 65535.0)
    return image.astype(dtype) * (dtype.type(257) if target_colour else dtype.type(1))


class CvBridge:
    def imgmsg_to_cv2(self, img_msg: Image, desired_encoding: str = "passthrough") -> np.ndarray:
        """The picture (H, step // bytes of a pixel) or (H, ..., C): the message's width is not asked.

        passthrough shares memory with the message. TypeError if there are fewer bytes than that.
        """
        dtype, channels, _ = _parse(img_msg.encoding)
        dtype = dtype.newbyteorder(">" if img_msg.is_bigendian else "<")
        columns = int(img_msg.step / dtype.itemsize / channels)
        shape = (img_msg.height, columns) if channels == 1 else (img_msg.height, columns, channels)
        image = np.ndarray(shape=shape, dtype=dtype, buffer=img_msg.data)
        if img_msg.is_bigendian == (sys.byteorder == "little"):
            image = image.byteswap().newbyteorder()         # an array of NumPy 2 has no newbyteorder
        if desired_encoding == "passthrough":
            return image
        return np.array(_convert(image, img_msg.encoding, desired_encoding))

    def cv2_to_imgmsg(self, cvim: np.ndarray, encoding: str = "passthrough", header: Header | None = None) -> Image:
        """A message with a copy of the picture; passthrough names the type only, e.g. 8UC3."""
        if not isinstance(cvim, np.ndarray) or cvim.ndim not in (2, 3):
            raise TypeError("Your input type is not a numpy array of 2 or 3 dimensions")
        channels = 1 if cvim.ndim == 2 else cvim.shape[2]
        name = f"{_DEPTH_NAMES.get(cvim.dtype.str[1:], cvim.dtype)}C{channels}"
        if encoding == "passthrough":
            encoding = name
        dtype, wanted, _ = _parse(encoding)
        if (dtype, wanted) != (cvim.dtype.newbyteorder("="), channels):
            raise CvBridgeError(f"encoding specified as {encoding}, but image has incompatible type {name}")
        message = Image(height=cvim.shape[0], width=cvim.shape[1], encoding=encoding,
                        step=cvim.shape[1] * channels * dtype.itemsize)
        message.header = header or Header()
        message.is_bigendian = int(cvim.dtype.byteorder == ">")
        message.data = _bytes(cvim)
        return message

    def compressed_imgmsg_to_cv2(self, cmprs_img_msg: CompressedImage,
                                 desired_encoding: str = "passthrough") -> np.ndarray:
        """The decoded picture as OpenCV has it, None if it cannot be; to be converted, it counts as bgr8."""
        image = cv2.imdecode(np.frombuffer(cmprs_img_msg.data, np.uint8), cv2.IMREAD_UNCHANGED)
        return image if desired_encoding == "passthrough" else _convert(image, "bgr8", desired_encoding)

    def cv2_to_compressed_imgmsg(self, cvim: np.ndarray, dst_format: str = "jpg") -> CompressedImage:
        """cvim: bgr or gray. dst_format: jpg, png, ..."""
        ok, encoded = cv2.imencode(f".{dst_format}", cvim)
        if not ok:
            raise CvBridgeError(f"Cannot encode the image as {dst_format}")
        return CompressedImage(format=dst_format, data=_bytes(encoded))


def _bytes(values: np.ndarray) -> array:
    """As the type of a message's data: assigning anything else is checked element by element, 1000 times slower."""
    data = array("B")
    data.frombytes(values.tobytes())
    return data
