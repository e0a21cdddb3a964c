"""The one decoder of bags and nodes: every encoding, the byte order, padded rows, compressed images, depth."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from aceg_ros.datasets.image_decoder import COLOUR_ENCODINGS, decode_depth, decode_image
from aceg_ros.errors import UserError

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
BGR = RGB[..., ::-1]
GREY = RGB[..., 0]
ALPHA = np.full((6, 8, 1), 200, np.uint8)
AS_RGB = {"rgb": RGB, "bgr": BGR, "rgba": np.concatenate([RGB, ALPHA], 2), "bgra": np.concatenate([BGR, ALPHA], 2)}
BAYER = {"bayer_rggb": "RGGB", "bayer_bggr": "BGGR", "bayer_gbrg": "GBRG", "bayer_grbg": "GRBG"}
YUV = {"uyvy": "UYVY", "yuv422": "UYVY", "yuyv": "YUYV", "yuv422_yuy2": "YUYV"}


def message(pixels: np.ndarray, encoding: str, padding: int = 0, big_endian: bool = False) -> SimpleNamespace:
    if big_endian:
        pixels = pixels.astype(pixels.dtype.newbyteorder(">"))
    rows = np.ascontiguousarray(pixels).reshape(len(pixels), -1).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    return SimpleNamespace(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, step=rows.shape[1],
                           is_bigendian=int(big_endian), data=rows.tobytes())


def stored(encoding: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in an encoding, and the RGB that they stand for."""
    if encoding in YUV:             # bright, without colour
        pair = np.array([{"Y": 200, "U": 128, "V": 128}[letter] for letter in YUV[encoding]], np.uint8)
        return np.tile(pair, (6, 4)).reshape(6, 8, 2), np.full((6, 8, 3), 214, np.uint8)
    if encoding in ("8UC3", "16UC3"):
        name, bits = "rgb", encoding.removesuffix("UC3")
    else:
        name, bits = encoding.removesuffix("16").removesuffix("8"), encoding[-2:].lstrip("rgbao")
    if name in BAYER:               # red alone: only the red cells of the mosaic see light
        tile = np.array([255 if letter == "R" else 0 for letter in BAYER[name]], np.uint8).reshape(2, 2)
        pixels, rgb = np.tile(tile, (3, 4)), np.broadcast_to([255, 0, 0], (6, 8, 3))
    else:
        pixels, rgb = (GREY, np.repeat(GREY[..., None], 3, 2)) if name == "mono" else (AS_RGB[name], RGB)
    return (pixels.astype(np.uint16) * 257 if bits == "16" else pixels), rgb


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", COLOUR_ENCODINGS)
def test_every_encoding_gives_its_colours(encoding, padding):
    pixels, rgb = stored(encoding)
    image = decode_image(message(pixels, encoding, padding))
    assert image.shape == (6, 8, 3) and image.dtype == np.uint8 and image.flags.writeable
    inner = (slice(2, 4), slice(2, 6)) if "bayer" in encoding else ...      # the border has no neighbours to ask
    np.testing.assert_array_equal(image[inner], rgb[inner])


@pytest.mark.parametrize("encoding", [name for name, entry in COLOUR_ENCODINGS.items() if entry.dtype == "u2"])
def test_the_byte_order_is_that_of_the_message(encoding):
    pixels, _ = stored(encoding)
    pixels = pixels // 257 * 100 + 17           # its two bytes differ
    np.testing.assert_array_equal(decode_image(message(pixels, encoding, big_endian=True)),
                                  decode_image(message(pixels, encoding)))


@pytest.mark.parametrize("encoding", [name for name in COLOUR_ENCODINGS if "UC" not in name])
def test_it_decodes_as_cv_bridge_does(encoding):
    cv_bridge = pytest.importorskip("cv_bridge", reason="needs ROS 2")
    from sensor_msgs.msg import Image

    bytes_per_pixel = COLOUR_ENCODINGS[encoding].channels * np.dtype(COLOUR_ENCODINGS[encoding].dtype).itemsize
    data = np.random.default_rng(1).integers(0, 256, 6 * 8 * bytes_per_pixel, np.uint8).tobytes()
    sent = Image(height=6, width=8, encoding=encoding, step=8 * bytes_per_pixel, data=data)
    np.testing.assert_array_equal(decode_image(sent), cv_bridge.CvBridge().imgmsg_to_cv2(sent, "rgb8"))


@pytest.mark.parametrize(("pixels", "rgb"), [
    (BGR, RGB), (AS_RGB["bgra"], RGB), (GREY, np.repeat(GREY[..., None], 3, 2)), (BGR.astype(np.uint16) * 257, RGB)])
def test_compressed_images_of_every_depth(pixels, rgb):
    data = cv2.imencode(".png", np.ascontiguousarray(pixels))[1]
    for form in (data, data.tobytes()):         # rosbags' arrays and bytes alike
        np.testing.assert_array_equal(decode_image(SimpleNamespace(format="png", data=form)), rgb)


def test_a_grey_jpeg_is_an_image():
    grey = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8), (9, 9), 3)
    data = cv2.imencode(".jpg", grey)[1]
    image = decode_image(SimpleNamespace(format="mono8; jpeg compressed ", data=data))
    assert image.shape == (48, 64, 3) and np.abs(image[..., 0].astype(int) - grey).max() < 10


@pytest.mark.parametrize(("changes", "word"), [
    ({"encoding": "jpeg2000"}, "jpeg2000"), ({"encoding": "32FC1", "step": 32}, "32FC1"),
    ({"encoding": "8UC1"}, "8UC1"), ({"encoding": ""}, "''"), ({"encoding": "nv12"}, "nv12"),
    ({"height": 0}, "empty"), ({"width": 0}, "empty"), ({"step": 23}, "too small"), ({"step": 25}, "truncated"),
    ({"height": 7}, "truncated"), ({"data": b""}, "truncated"), ({"step": 4_000_000_000}, "truncated"),
    ({"width": 7, "height": 10, "step": 14, "encoding": "yuv422"}, "yuv422")])
def test_what_does_not_fit_is_rejected_in_a_sentence(changes, word):
    sent = SimpleNamespace(**(vars(message(RGB, "rgb8")) | changes))
    with pytest.raises(UserError, match=word) as error:
        decode_image(sent)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize("data", [b"", b"no image", cv2.imencode(".png", GREY)[1].tobytes()[:20]])
def test_broken_compressed_images_are_rejected(data):
    with pytest.raises(UserError, match="compressed image"):
        decode_image(SimpleNamespace(format="png", data=data))


@pytest.mark.parametrize("big_endian", [False, True])
def test_depth_is_metres(big_endian):
    metres = np.array([[0.0, 1.234], [2.5, np.nan], [np.inf, 7.0]], np.float32)
    expected = np.array([[0.0, 1.234], [2.5, 0.0], [0.0, 7.0]], np.float32)
    millimetres = np.round(expected * 1000).astype(np.uint16)
    for pixels, encoding in ((metres, "32FC1"), (millimetres, "16UC1"), (millimetres, "mono16")):
        depth_m = decode_depth(message(pixels, encoding, padding=4, big_endian=big_endian))
        assert depth_m.dtype == np.float32
        np.testing.assert_allclose(depth_m, expected, rtol=1e-6)
    with pytest.raises(UserError, match="rgb8"):
        decode_depth(message(RGB, "rgb8"))
