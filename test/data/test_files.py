# SPDX-License-Identifier: Apache-2.0
"""Image and camera files: every kind is read, or named with the reason."""

import cv2
import numpy as np
import pytest
from datasets_fixtures import CAMERA
from PIL import Image

from aceg_ros.camera import Camera
from aceg_ros.datasets import load_camera_file, load_image
from aceg_ros.errors import UserError


def test_load_image_converts_every_kind(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    colour = np.stack([grey, grey // 2, 255 - grey], axis=-1)
    rgba = np.dstack([colour, np.full_like(grey, 7)])
    palette = Image.fromarray(grey).convert("P")
    images = {"grey": Image.fromarray(grey), "colour": Image.fromarray(colour), "rgba": Image.fromarray(rgba),
                "palette": palette, "deep": Image.fromarray(grey.astype(np.uint16) * 256 + 99),
                "grey_alpha": Image.fromarray(grey).convert("LA")}
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
        loaded = load_image(tmp_path / f"{name}.png")
        expected = colour if name in ("colour", "rgba") else np.repeat(grey[..., None], 3, axis=2)
        np.testing.assert_array_equal(loaded, expected, err_msg=name)
        assert loaded.dtype == np.uint8 and loaded.flags.writeable


def test_load_image_keeps_the_contrast_of_a_part_of_16_bits(tmp_path):
    """A thermal camera's 7000 to 8500, a 12-bit colour camera."""
    grey = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) % 250
    Image.fromarray(7000 + 6 * grey).save(tmp_path / "thermal.png")
    cv2.imwrite(str(tmp_path / "colour.png"), np.dstack([grey * 4, grey * 8, grey * 16]).astype(np.uint16))
    thermal, colour = load_image(tmp_path / "thermal.png"), load_image(tmp_path / "colour.png")
    assert np.abs(thermal[..., 0].astype(int) - grey).max() <= 8 and thermal.shape == (48, 64, 3)
    assert np.abs(colour[..., 0].astype(int) - grey).max() <= 12, "red is the brightest"
    assert np.abs(colour[..., 2].astype(int) - grey // 4).max() <= 4


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(UserError, match="is a folder, not an image"):
        load_image(tmp_path)


def test_load_image_keeps_stored_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6        # "turn by 90 degrees to display"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "phone.jpg", exif=exif)
    assert load_image(tmp_path / "phone.jpg").shape == (20, 30, 3)


def test_load_image_names_what_it_cannot_read(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "folder.png").mkdir()
    for name in ("absent.png", "float.tif", "folder.png"):
        with pytest.raises(UserError, match=name):
            load_image(tmp_path / name)


CAMERA_INFO = """
image_width: 64
image_height: 48
camera_name: front
camera_matrix: {rows: 3, cols: 3, data: [60, 0, 30.5, 0, 62, 22.25, 0, 0, 1]}
distortion_model: %s
distortion_coefficients: {rows: 1, cols: 5, data: %s}
"""
ECHO = """
header: {frame_id: camera}
height: 48
width: 64
distortion_model: plumb_bob
d: [-0.1, 0.02, 0.0, 0.0, 0.0]
k: [60, 0, 30.5, 0, 62, 22.25, 0, 0, 1]
---
"""


@pytest.mark.parametrize(("name", "text", "model", "distortion"), [
    ("K.txt", "60 0 30.5\n0 62 22.25\n0 0 1\n", "pinhole", ()),
    ("K.csv", "60, 0, 30.5\n0, 62, 22.25\n0, 0, 1\n", "pinhole", ()),
    ("a.yaml", CAMERA_INFO % ("plumb_bob", "[0, 0, 0, 0, 0]"), "pinhole", ()),
    ("b.yaml", CAMERA_INFO % ("plumb_bob", "[-0.1, 0.02, 0, 0, 0.3]"), "plumb_bob", (-0.1, 0.02, 0.0, 0.0, 0.3)),
    ("c.yml", CAMERA_INFO % ("rational_polynomial", "[1, 2, 0, 0, 3, 4, 5, 6, 0, 0, 0, 0]"), "rational_polynomial",
     (1.0, 2.0, 0.0, 0.0, 3.0, 4.0, 5.0, 6.0)),
    ("d.yaml", CAMERA_INFO % ("equidistant", "[0, 0, 0, 0]"), "equidistant", (0.0, 0.0, 0.0, 0.0)),
    ("e.yaml", CAMERA_INFO % ("fisheye", "[0.1, 0, 0, 0]"), "equidistant", (0.1, 0.0, 0.0, 0.0)),
    ("echo.yaml", ECHO, "plumb_bob", (-0.1, 0.02, 0.0, 0.0, 0.0)),
    ("f.json", '{"width": 64, "height": 48, "fx": 60, "fy": 62, "cx": 30.5, "cy": 22.25}', "pinhole", ()),
    ("g.json", '{"width": 64, "height": 48, "fx": 60, "fy": 62, "cx": 30.5, "cy": 22.25, "model": "equidistant", '
               '"distortion": [0.1, 0, 0, 0]}', "equidistant", (0.1, 0.0, 0.0, 0.0)),
], ids=range(10))
def test_camera_files(tmp_path, name, text, model, distortion):
    (tmp_path / name).write_text(text)
    assert load_camera_file(tmp_path / name, 64, 48) == Camera(width=64, height=48, fx=60.0, fy=62.0, cx=30.5, cy=22.25,
                                                               model=model, distortion=distortion)


def test_camera_file_of_another_size(tmp_path):
    file = tmp_path / "camera.json"
    file.write_text('{"width": 64, "height": 48, "fx": 60, "fy": 62, "cx": 30.5, "cy": 22.25}')
    assert load_camera_file(file, 128, 96) == CAMERA.resized(128, 96)
    with pytest.raises(UserError, match=r"camera\.json is for 64x48 .* 48x64"):
        load_camera_file(file, 48, 64)


@pytest.mark.parametrize(("name", "text"), [
    ("a.txt", ""), ("a.txt", "1 2 3"), ("a.txt", "focal"), ("a.txt", "-5"), ("a.txt", "60 1 30 0 60 20 0 0 1"),
    ("a.json", ""), ("a.json", "[]"), ("a.json", "{}"), ("a.json", '{"width": 64, "height": 48, "fx": "x"}'),
    ("a.json", '{"width": 64, "height": 48, "fx": 0, "fy": 62, "cx": 30.5, "cy": 22.25}'),
    ("a.yaml", ""), ("a.yaml", "{"), ("a.yaml", "- 1"), ("a.yaml", "width: 3"), ("a.yaml", "camera_matrix: 3"),
    ("a.yaml", CAMERA_INFO % ("thin_prism", "[1, 2]")), ("a.yaml", CAMERA_INFO % ("plumb_bob", "[1, 2]")),
    ("a.yaml", CAMERA_INFO % ("plumb_bob", "none")),
])
def test_bad_camera_files_are_rejected_in_one_line(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=name) as caught:
        load_camera_file(tmp_path / name, 64, 48)
    assert "\n" not in str(caught.value)


def test_missing_camera_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"front\.yaml is missing"):
        load_camera_file(tmp_path / "front.yaml", 64, 48)
