# SPDX-License-Identifier: Apache-2.0
"""camera_info, as messages and as YAML: what drivers and calibrators write is read as OpenCV takes it, or named."""

from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from aceg_ros.camera import Camera
from aceg_ros.datasets import load_camera_file
from aceg_ros.datasets.camera_info import camera_from_info, is_rectified_topic
from aceg_ros.errors import UserError

K = (500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0)
P = (400.0, 0.0, 310.0, 0.0, 0.0, 410.0, 230.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CAMERA = {"width": 640, "height": 480, "fx": 500.0, "fy": 510.0, "cx": 320.0, "cy": 240.0}
RECTIFIED = Camera(width=640, height=480, fx=400.0, fy=410.0, cx=310.0, cy=230.0)
LENS = (-0.1, 0.02, 0.001, -0.002, 0.003, 0.01, 0.02, 0.03)
PRISM, TILT = (0.001, 0.002, 0.003, 0.004), (0.01, 0.02)


def info(d=(), model="plumb_bob", roi=(0, 0, 0, 0), binning=(0, 0), **matrices) -> SimpleNamespace:
    x, y, width, height = roi
    matrices = {"k": K, "p": (*K[:3], 0.0, *K[3:6], 0.0, *K[6:], 0.0)} | matrices
    return SimpleNamespace(width=640, height=480, d=d, distortion_model=model, **matrices,
                           binning_x=binning[0], binning_y=binning[1],
                           roi=SimpleNamespace(x_offset=x, y_offset=y, width=width, height=height, do_rectify=False))


@pytest.mark.parametrize(("model", "d", "expected"), [
    ("plumb_bob", (), ("pinhole", ())), ("", (), ("pinhole", ())), ("none", (0.0,) * 3, ("pinhole", ())),
    ("plumb_bob", LENS[:4], ("plumb_bob", LENS[:4])), ("plumb_bob", LENS[:5], ("plumb_bob", LENS[:5])),
    ("plumb_bob", (*LENS[:5], 0, 0, 0), ("plumb_bob", LENS[:5])),                    # Orbbec
    ("plumb_bob", (*LENS[:4], *[0] * 8), ("plumb_bob", (*LENS[:4], 0))),
    ("plumb_bob", LENS, ("rational_polynomial", LENS)), ("", LENS, ("rational_polynomial", LENS)),
    ("", LENS[:4], ("plumb_bob", LENS[:4])), ("radtan", LENS[:4], ("plumb_bob", LENS[:4])),
    ("Brown Conrady", LENS[:5], ("plumb_bob", LENS[:5])),
    ("rational_polynomial", LENS, ("rational_polynomial", LENS)),
    ("rational_polynomial", LENS[:5], ("plumb_bob", LENS[:5])),
    ("rational_polynomial", (*LENS, *[0] * 6), ("rational_polynomial", LENS)),
    ("rational_polynomial", (*LENS, *PRISM), ("rational_polynomial", (*LENS, *PRISM))),
    ("rational_polynomial", (*LENS, *PRISM, 0, 0), ("rational_polynomial", (*LENS, *PRISM))),
    ("rational_polynomial", (*LENS, *PRISM, *TILT), ("rational_polynomial", (*LENS, *PRISM, *TILT))),
    ("equidistant", LENS[:4], ("equidistant", LENS[:4])), ("fisheye", (*LENS[:4], 0), ("equidistant", LENS[:4])),
    ("equidistant", (0.0,) * 5, ("equidistant", (0.0,) * 4))])
def test_coefficients_are_those_of_opencv(model, d, expected):
    camera = camera_from_info(info(d, model))
    assert (camera.model, camera.distortion) == expected


@pytest.mark.parametrize(("fields", "word"), [
    ({"d": LENS[:3]}, "4, 5, 8, 12 or 14 coefficients, not 3"), ({"d": LENS[:7]}, "not 7"),
    ({"d": (1.0,) * 15}, "not 15"),
    ({"d": (0.1, float("nan"), 0, 0)}, "not finite"), ({"d": LENS[:5], "model": "equidistant"}, "takes 4"),
    ({"d": LENS[:4], "model": "ftheta"}, "'ftheta' is not supported"),
    ({"d": LENS[:4], "model": "Inverse Brown Conrady"}, "not supported"),
    ({"k": (0.0,) * 9, "p": (0.0,) * 12}, "zero K: the camera is not calibrated"),
    ({"k": (500.0, 4.26, *K[2:])}, "K has a skew of 4.26"),
    ({"k": tuple(np.reshape(K, (3, 3)).T.ravel())}, "row by row"), ({"k": K[:6]}, "6 numbers instead of 9"),
    ({"k": (float("nan"), *K[1:])}, "not usable")])
def test_what_is_no_camera_has_its_own_reason(fields, word):
    with pytest.raises(UserError, match=word) as error:
        camera_from_info(info(**fields))
    assert str(error.value).endswith(".")


@pytest.mark.parametrize("d", [(*LENS, *PRISM), (*LENS, *PRISM, *TILT)])
def test_thin_prisms_and_tilted_sensors_are_lenses_as_well(d):
    camera = Camera(**CAMERA, model="rational_polynomial", distortion=d)
    points = np.random.default_rng(0).uniform((-0.5, -0.4, 1.0), (0.5, 0.4, 1.0), (50, 3))
    np.testing.assert_allclose(camera.unproject(camera.project(points)), points, atol=1e-6)
    image, valid = camera.rectify(np.full((480, 640), 200, np.uint8))
    assert valid.mean() > 0.9 and (image[valid] == 200).mean() > 0.99


def test_p_is_the_camera_of_a_rectified_image():
    distorted, ideal = info(LENS[:5], p=P), info((0.0,) * 5, p=P)
    assert camera_from_info(distorted, rectified=True) == camera_from_info(ideal, rectified=True) == RECTIFIED
    assert camera_from_info(distorted) == Camera(**CAMERA, model="plumb_bob", distortion=LENS[:5])
    assert camera_from_info(ideal) == RECTIFIED, "K is that of the lens, which D no longer has"
    assert camera_from_info(ideal, rectified=False) == Camera(**CAMERA)
    stereo = (*P[:3], -40.0, *P[4:])            # of the right camera, with its baseline
    assert camera_from_info(info(p=stereo)) == RECTIFIED


@pytest.mark.parametrize("p", [(), (0.0,) * 12, (*(0.0,) * 10, 1.0, 0.0)])
def test_without_p_the_camera_is_in_k(p):
    for rectified in (None, False, True):
        assert camera_from_info(info(p=p), rectified) == Camera(**CAMERA)
    with pytest.raises(UserError, match=r"P .*0 numbers|zero P"):
        camera_from_info(info(LENS[:5], p=p), rectified=True)


@pytest.mark.parametrize(("topic", "expected"), [
    ("/camera/image_rect", True), ("/camera/image_rect_color", True), ("/camera/image_rect/compressed", True),
    ("/zed/left/image_rect_gray", True), ("/camera/infra1/image_rect_raw", True), ("image_rect", True),
    ("/cam/image_rectified", True), ("/camera_rect/image", True), ("/camera/image_raw", False), ("/image", False),
    ("/rectangles/image", False), ("/direct/image_color", False), ("/rect_cam/image_raw", False)])
def test_rectified_topics_are_known_by_their_names(topic, expected):
    assert is_rectified_topic(topic) == expected


@pytest.mark.parametrize("written", ["echo", "echo_ros1", "calibration"])
def test_yaml_says_what_a_message_says(tmp_path, written):
    """Also of the region that is read out, of binning and of P."""
    for fields in ({"d": LENS[:5]}, {"d": (*LENS[:5], 0.0, 0.0, 0.0)}, {"d": (0.0,) * 5, "p": P},
                   {"d": LENS, "model": ""}, {"binning": (2, 2)},
                   {"roi": (100, 60, 400, 300), "binning": (2, 2), "d": LENS[:4]}):
        message = info(**fields)
        content = {"distortion_model": message.distortion_model, "binning_x": message.binning_x,
                   "binning_y": message.binning_y, "roi": vars(message.roi)}
        if written == "calibration":
            content |= {"image_width": 640, "image_height": 480, "camera_matrix": {"data": list(message.k)},
                        "distortion_coefficients": {"data": list(message.d)},
                        "projection_matrix": {"data": list(message.p)}}
        else:
            matrices = {"k": list(message.k), "d": list(message.d), "p": list(message.p)}
            content |= {"width": 640, "height": 480} | {
                name.upper() if written == "echo_ros1" else name: value for name, value in matrices.items()}
        (tmp_path / "camera.yaml").write_text(yaml.safe_dump(content))
        expected = camera_from_info(message)
        assert load_camera_file(tmp_path / "camera.yaml", expected.width, expected.height) == expected


@pytest.mark.parametrize(("name", "text"), [
    ("K.txt", "500 4.26 320 0 510 240 0 0 1"),
    ("k.yaml", "width: 640\nheight: 480\nk: [500, 4.26, 320, 0, 510, 240, 0, 0, 1]\n")])
def test_a_skew_is_named_in_files_too(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="skew of 4.26"):
        load_camera_file(tmp_path / name, 640, 480)
