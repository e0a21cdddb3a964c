# SPDX-License-Identifier: Apache-2.0
"""The one decoder of bags and nodes: every encoding, the byte order, padded rows, compressed images, depth."""

import io
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

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


PLAIN = {"8UC1": "mono8", "8UC3": "bgr8", "8UC4": "bgra8", "16UC1": "mono16", "16UC3": "bgr16", "16UC4": "bgra16"}
WIDER = ("8S", "16S", "32S", "32F", "64F")


def stored(encoding: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in an encoding, and the RGB that they stand for."""
    if encoding in YUV:             # bright, without colour
        pair = np.array([{"Y": 200, "U": 128, "V": 128}[letter] for letter in YUV[encoding]], np.uint8)
        return np.tile(pair, (6, 4)).reshape(6, 8, 2), np.full((6, 8, 3), 214, np.uint8)
    encoding = PLAIN.get(encoding, encoding)
    name, bits = encoding.removesuffix("16").removesuffix("8"), encoding[-2:].lstrip("rgbao")
    if name in BAYER:               # red alone: only the red cells of the mosaic see light
        tile = np.array([255 if letter == "R" else 0 for letter in BAYER[name]], np.uint8).reshape(2, 2)
        pixels, rgb = np.tile(tile, (3, 4)), np.broadcast_to([255, 0, 0], (6, 8, 3))
    else:
        pixels, rgb = (GREY, np.repeat(GREY[..., None], 3, 2)) if name == "mono" else (AS_RGB[name], RGB)
    return (pixels.astype(np.uint16) * 257 if bits == "16" else pixels), rgb


PACKED = [name for name, entry in COLOUR_ENCODINGS.items() if not entry.chroma_rows and not name.startswith(WIDER)]


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", PACKED)
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


@pytest.mark.parametrize("encoding", [name for name in PACKED if "UC" not in name and name not in ("uyvy", "yuyv")])
def test_it_decodes_as_cv_bridge_does(encoding):
    cv_bridge = pytest.importorskip("cv_bridge", reason="needs ROS 2")
    from sensor_msgs.msg import Image as ImageMessage

    bytes_per_pixel = COLOUR_ENCODINGS[encoding].channels * np.dtype(COLOUR_ENCODINGS[encoding].dtype).itemsize
    data = np.random.default_rng(1).integers(0, 256, 6 * 8 * bytes_per_pixel, np.uint8).tobytes()
    sent = ImageMessage(height=6, width=8, encoding=encoding, step=8 * bytes_per_pixel, data=data)
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
    ({"encoding": "jpeg2000"}, "jpeg2000"), ({"encoding": "8UC2"}, "8UC2"), ({"encoding": "32FC1"}, "32FC1"),
    ({"encoding": ""}, "''"), ({"encoding": "nv12", "height": 8}, "truncated.*nv12"),
    ({"encoding": "nv21", "width": 7}, "even"), ({"encoding": "nv12", "height": 0, "data": b""}, "empty"),
    ({"height": 0}, "empty"), ({"width": 0}, "empty"), ({"step": 23}, "too small"), ({"step": 25}, "truncated"),
    ({"height": 7}, "truncated"), ({"data": b""}, "truncated"), ({"step": 4_000_000_000}, "truncated"),
    ({"width": 7, "height": 10, "step": 14, "encoding": "yuv422"}, "yuv422")])
def test_what_does_not_fit_is_rejected_in_a_sentence(changes, word):
    sent = SimpleNamespace(**(vars(message(RGB, "rgb8")) | changes))
    with pytest.raises(UserError, match=word) as error:
        decode_image(sent)
    assert str(error.value).endswith(".")


def semi_planar(rgb: np.ndarray, encoding: str) -> np.ndarray:
    """nv12, nv21 or nv24 in rows of the image's width, from OpenCV's full-size YUV in studio swing."""
    planar = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420)
    height, width = rgb.shape[:2]
    chroma = planar[height:].reshape(2, height // 2, width // 2)
    if encoding == "nv24":
        chroma = chroma.repeat(2, 1).repeat(2, 2)
    return np.concatenate([planar[:height].ravel(), chroma[::-1 if encoding == "nv21" else 1].reshape(2, -1).T.ravel()])


@pytest.mark.parametrize("encoding", ["nv12", "nv21", "nv24"])
@pytest.mark.parametrize("padding", [0, 16])
def test_planes_of_luma_and_chroma(encoding, padding):
    rgb = np.repeat(np.repeat(RGB[:4, :5], 2, 0), 2, 1)         # even sides, one colour for each sample of chroma
    expected = cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420), cv2.COLOR_YUV2RGB_I420)
    rows = semi_planar(rgb, encoding).reshape(-1, 10)
    if encoding == "nv24":              # the rows of chroma are twice as long as those of luma
        chroma = np.pad(rows[8:].reshape(8, 20), ((0, 0), (0, 2 * padding)))
        data = np.pad(rows[:8], ((0, 0), (0, padding))).tobytes() + chroma.tobytes()
    else:
        data = np.pad(rows, ((0, 0), (0, padding))).tobytes()
    sent = SimpleNamespace(height=8, width=10, encoding=encoding, step=10 + padding, is_bigendian=0, data=data)
    image = decode_image(sent)
    assert np.abs(image.astype(int) - expected).max() <= 1 and image.flags.writeable
    sent.data = data[:-1]
    with pytest.raises(UserError, match=f"truncated.*{encoding}"):
        decode_image(sent)


def test_the_step_of_planes_may_count_their_chroma():
    rgb = np.repeat(np.repeat(RGB[:4, :5], 2, 0), 2, 1)
    sent = SimpleNamespace(height=8, width=10, encoding="nv12", step=15, is_bigendian=0,
                           data=semi_planar(rgb, "nv12").tobytes())
    again = SimpleNamespace(**(vars(sent) | {"step": 10}))
    np.testing.assert_array_equal(decode_image(sent), decode_image(again))


SCENE = cv2.GaussianBlur(np.random.default_rng(3).integers(0, 256, (48, 64), np.uint8), (9, 9), 3)
SCENE = cv2.normalize(SCENE, None, 0, 255, cv2.NORM_MINMAX)


@pytest.mark.parametrize(("pixels", "encoding"), [
    ((7000 + SCENE.astype(np.uint16) * 6), "mono16"), ((29000 + SCENE.astype(np.uint16)), "16UC1"),      # thermal
    (SCENE.astype(np.uint16) * 16, "mono16"), (SCENE.astype(np.uint16) * 4, "mono16"),                   # 12, 10 bits
    (np.dstack([SCENE, SCENE, SCENE]).astype(np.uint16) * 16, "rgb16"), (SCENE.astype(np.uint16) * 16, "bayer_rggb16"),
    (SCENE.astype(np.int16) - 400, "16SC1"), (SCENE.astype(np.int32) * 9 - 90000, "32SC1"),
    ((SCENE / 255).astype(np.float32), "32FC1"), (SCENE.astype(np.float32), "32FC1"),
    ((20 + SCENE / 100).astype(np.float32), "32FC1"), ((290 + SCENE / 10).astype(np.float64), "64FC1")])
def test_contrast_is_kept_however_narrow_the_range_is(pixels, encoding):
    image = decode_image(message(pixels, encoding))
    inner = image[4:-4, 4:-4, 1].astype(float)
    assert np.corrcoef(inner.ravel(), SCENE[4:-4, 4:-4].ravel())[0, 1] > (0.95 if "bayer" in encoding else 0.995)
    assert inner.min() < 30 and inner.max() > 200
    np.testing.assert_array_equal(image, decode_image(message(pixels, encoding)))


def test_single_bright_pixels_and_values_that_are_none_do_not_take_the_contrast():
    thermal = 7000 + SCENE.astype(np.uint16) * 6
    thermal[0, :5] = 65535, 0, 65535, 0, 65535
    assert decode_image(message(thermal, "mono16"))[..., 0].std() > 0.9 * SCENE.std()
    celsius = (20 + SCENE / 100).astype(np.float32)
    celsius[0, :4] = np.nan, np.inf, -np.inf, np.nan
    assert decode_image(message(celsius, "32FC1"))[..., 0].std() > 0.9 * SCENE.std()
    with pytest.raises(UserError, match="no finite value"):
        decode_image(message(np.full((6, 8), np.nan, np.float32), "32FC1"))


def test_noise_is_not_stretched_to_contrast():
    noise = 30000 + np.random.default_rng(0).integers(0, 4, (48, 64)).astype(np.uint16)
    for pixels, encoding in ((noise, "mono16"), (np.full((48, 64), 7, np.float32), "32FC1")):
        assert decode_image(message(pixels, encoding))[..., 0].std() < 10


def photo(**options) -> bytes:
    return as_file(SCENE, "JPEG", quality=92, **options)


def as_file(pixels: np.ndarray, form: str, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **options)
    return out.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_no_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for form in ("JPEG", "PNG"):
        sent = SimpleNamespace(format=form.lower(), data=as_file(SCENE, form, exif=exif.tobytes()))
        assert decode_image(sent).shape == (48, 64, 3)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_image_is_rejected_wherever_it_is_cut(progressive):
    """The thumbnail of a camera's JPEG has an end of its own, which is not the image's."""
    whole = photo(progressive=progressive, exif=b"Exif\0\0" + as_file(SCENE[:8, :8], "JPEG"))
    decode_image(SimpleNamespace(format="jpeg", data=whole + b"\0" * 50))          # what follows its end is harmless
    for data, form in ((whole, "bgr8; jpeg compressed bgr8"), (as_file(SCENE, "PNG"), "png")):
        for part in (0.03, 0.3, 0.7, 0.99):
            for filling in (b"", b"\0" * 100):
                cut = data[:int(part * len(data))] + filling
                with pytest.raises(UserError, match="compressed image.*(truncated|damaged)"):
                    decode_image(SimpleNamespace(format=form, data=cut))


@pytest.mark.parametrize(("form", "red"), [
    ("jpeg", 0), ("png", 0), ("bgr8; jpeg compressed bgr8", 0), ("rgb8; jpeg compressed bgr8", 0),
    ("rgb8; png compressed rgb8", 2), ("rgb8; jpeg compressed ", 0), ("", 0)])
def test_the_format_says_which_colours_are_stored(form, red):
    image = np.zeros((16, 16, 3), np.uint8)
    image[..., 0] = 255                         # red, as the file has it
    data = as_file(image, "PNG" if "png" in form else "JPEG")
    assert decode_image(SimpleNamespace(format=form, data=data))[8, 8].argmax() == red


def test_a_compressed_mosaic_is_one():
    pixels, _ = stored("bayer_grbg8")
    sent = SimpleNamespace(format="bayer_grbg8; png compressed ", data=as_file(np.ascontiguousarray(pixels), "PNG"))
    np.testing.assert_array_equal(decode_image(sent), decode_image(message(pixels, "bayer_grbg8")))


@pytest.mark.parametrize(("form", "data", "word"), [
    ("h264", b"\0\0\0\1\x67abc", "video stream.*republish"), ("", b"\0\0\1\x09abc", "video stream"),
    ("hevc", b"abcdefgh", "video stream"), ("jpeg", b"\0\0\0\1\x67abc", "video stream"),
    ("16UC1; compressedDepth png", b"\0" * 12 + b"\x89PNG", "depth"), ("32FC1; compressedDepth rvl", b"abc", "depth"),
    ("rgb8; zstd", b"abcdefgh", "neither JPEG nor PNG"), ("jpeg", b"", "empty")])
def test_other_streams_are_named(form, data, word):
    with pytest.raises(UserError, match=word) as error:
        decode_image(SimpleNamespace(format=form, data=data))
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
