# SPDX-License-Identifier: Apache-2.0
"""Camera model against OpenCV's formulas, written out, on random cameras."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from aceg_ros.camera import Camera, Frame, median_camera
from aceg_ros.errors import UserError

MODELS = ("pinhole", "plumb_bob4", "plumb_bob5", "rational_polynomial", "equidistant")


def random_camera(kind: str, seed: int) -> Camera:
    rng = np.random.default_rng(seed)
    width, height = int(rng.integers(300, 800)), int(rng.integers(200, 600))
    fx = rng.uniform(0.6, 1.4) * width
    coefficients = {
        "pinhole": (),
        "plumb_bob4": (rng.uniform(-0.2, 0.2), rng.uniform(-0.02, 0.05), *rng.uniform(-3e-3, 3e-3, 2)),
        "plumb_bob5": (rng.uniform(-0.2, 0.2), rng.uniform(-0.02, 0.05), *rng.uniform(-3e-3, 3e-3, 2), 0.01),
        "rational_polynomial": (*rng.uniform(0, 0.4, 2), *rng.uniform(-2e-3, 2e-3, 2), 0.01,
                                *rng.uniform(0, 0.4, 2), 0.02),
        "equidistant": tuple(rng.uniform(-0.03, 0.03, 4)),
    }[kind]
    return Camera(width=width, height=height, fx=fx, fy=fx * rng.uniform(0.9, 1.1), cx=width / 2 + rng.uniform(-20, 20),
                  cy=height / 2 + rng.uniform(-20, 20), model=kind.rstrip("45"),
                  distortion=tuple(float(c) for c in coefficients))


def project_by_hand(camera: Camera, points: np.ndarray) -> np.ndarray:
    x, y = points[:, 0] / points[:, 2], points[:, 1] / points[:, 2]
    r = np.hypot(x, y)
    if camera.model == "equidistant":
        theta = np.arctan(r)
        bent = theta * (1 + sum(k * theta ** (2 * i + 2) for i, k in enumerate(camera.distortion)))
        xd, yd = x * bent / np.maximum(r, 1e-12), y * bent / np.maximum(r, 1e-12)
    else:
        k1, k2, p1, p2, k3, k4, k5, k6 = (*camera.distortion, *8 * [0.0])[:8]
        radial = (1 + k1 * r**2 + k2 * r**4 + k3 * r**6) / (1 + k4 * r**2 + k5 * r**4 + k6 * r**6)
        xd = x * radial + 2 * p1 * x * y + p2 * (r**2 + 2 * x**2)
        yd = y * radial + p1 * (r**2 + 2 * y**2) + 2 * p2 * x * y
    return np.column_stack([camera.fx * xd + camera.cx, camera.fy * yd + camera.cy])


def pixel_grid(camera: Camera) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(camera.width), np.arange(camera.height)), axis=-1).astype(np.float64)


def rays_of(camera: Camera) -> np.ndarray:
    """Rays through the rectified pixels, (H * W, 3)."""
    pixels = pixel_grid(camera).reshape(-1, 2)
    return np.column_stack([pixels, np.ones(len(pixels))]) @ np.linalg.inv(camera.K).T


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", MODELS)
def test_project_is_the_written_out_formula(kind, seed):
    camera = random_camera(kind, seed)
    points = np.random.default_rng(seed).uniform((-0.5, -0.4, 0.9), (0.5, 0.4, 1.1), (200, 3)) * 3.0
    np.testing.assert_allclose(camera.project(points), project_by_hand(camera, points), atol=1e-8)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", MODELS)
def test_unproject_inverts_project(kind, seed):
    camera = random_camera(kind, seed)
    points = np.random.default_rng(seed).uniform((-0.5, -0.4, 1.0), (0.5, 0.4, 1.0), (200, 3))
    np.testing.assert_allclose(camera.unproject(camera.project(points)), points, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", MODELS[1:])
def test_rectified_pixels_come_from_where_the_lens_put_them(kind, seed):
    camera = random_camera(kind, seed)
    coordinates, valid = camera.rectify(pixel_grid(camera).astype(np.float32))     # an image of its own coordinates
    expected = project_by_hand(camera, rays_of(camera)).reshape(camera.height, camera.width, 2)
    inside = ((expected > 0.01) & (expected < (camera.width - 1.01, camera.height - 1.01))).all(axis=-1)
    outside = ((expected < -0.01) | (expected > (camera.width - 0.99, camera.height - 0.99))).any(axis=-1)
    assert inside.mean() > 0.5 and valid[inside].all() and not valid[outside].any()
    np.testing.assert_allclose(coordinates[inside], expected[inside], atol=0.04)  # remap works in 1/32 pixel
    assert not coordinates[outside].any()


def test_strong_barrel_has_no_ghosts():
    # r (1 - 0.3 r^2) turns back at r = 1.054: pixels beyond it would show what lies nearer to the axis once more.
    camera = Camera(width=640, height=480, fx=220.0, fy=220.0, cx=319.5, cy=239.5, model="plumb_bob",
                    distortion=(-0.3, 0.0, 0.0, 0.0))
    radius = np.linalg.norm(rays_of(camera)[:, :2], axis=1).reshape(480, 640)
    image, valid = camera.rectify(np.full((480, 640), 255, np.uint8))
    turning = 1 / np.sqrt(3 * 0.3)
    assert radius.max() > turning + 0.3
    assert not valid[radius > turning + 0.01].any() and not image[radius > turning + 0.01].any()
    assert valid[radius < turning - 0.01].all()


def test_wide_fisheye_round_trip():
    camera = Camera(width=800, height=800, fx=230.0, fy=235.0, cx=399.0, cy=402.0, model="equidistant",
                    distortion=(0.05, -0.01, 0.004, -0.001))
    theta, phi = np.meshgrid(np.radians(np.linspace(0.5, 80, 40)), np.linspace(0, 6, 25))
    rays = np.stack([np.tan(theta) * np.cos(phi), np.tan(theta) * np.sin(phi), np.ones(phi.shape)], axis=-1)
    rays = rays.reshape(-1, 3)
    np.testing.assert_allclose(camera.unproject(camera.project(rays)), rays, rtol=1e-6, atol=1e-6)


def test_fisheye_without_coefficients_is_no_pinhole():
    camera = Camera(width=200, height=200, fx=80.0, fy=80.0, cx=99.5, cy=99.5, model="equidistant",
                    distortion=(0.0, 0.0, 0.0, 0.0))
    assert not camera.is_pinhole
    coordinates, _ = camera.rectify(pixel_grid(camera).astype(np.float32))
    u = 99.5 + 80 * np.arctan(80.5 / 80)        # the ray through rectified column 180 on the middle row
    assert coordinates[100, 180, 0] == pytest.approx(u, abs=0.05)


def test_pinhole_image_is_returned_untouched():
    camera = Camera(width=20, height=10, fx=15.0, fy=15.0, cx=9.5, cy=4.5, model="plumb_bob",
                    distortion=(0.0, 0.0, 0.0, 0.0))
    image = np.zeros((10, 20, 3), np.uint8)
    rectified, valid = camera.rectify(image)
    assert rectified is image and valid is None
    assert camera.rectified() == Camera(width=20, height=10, fx=15.0, fy=15.0, cx=9.5, cy=4.5)


def test_image_of_another_size_is_rejected():
    with pytest.raises(UserError, match="20x10"):
        Camera(width=10, height=20, fx=15.0, fy=15.0, cx=4.5, cy=9.5).rectify(np.zeros((10, 20), np.uint8))


def test_resized_camera_sees_the_same_point_in_the_resized_image():
    # Half the size: pixel j averages pixels 2j and 2j + 1, so its centre lies at 2j + 0.5.
    camera = Camera(width=640, height=480, fx=500.0, fy=510.0, cx=300.0, cy=200.0, model="plumb_bob",
                    distortion=(-0.1, 0.02, 1e-3, -1e-3))
    half = camera.resized(320, 240)
    point = np.array([[0.3, -0.2, 1.0]])
    np.testing.assert_allclose(2 * half.project(point) + 0.5, camera.project(point), atol=1e-9)
    back = half.resized(640, 480)
    assert (back.fx, back.fy, back.cx, back.cy) == pytest.approx((500.0, 510.0, 300.0, 200.0))


def test_resized_camera_fits_what_opencv_resizes():
    camera = Camera(width=600, height=400, fx=500.0, fy=510.0, cx=300.0, cy=200.0)
    small = camera.resized(200, 80)             # different factors in x and y
    coordinates = cv2.resize(pixel_grid(camera), (200, 80), interpolation=cv2.INTER_AREA)
    point = np.array([[0.2, 0.1, 1.0]])
    column, row = small.project(point)[0].round().astype(int)
    offset = small.project(point)[0] - (column, row)
    np.testing.assert_allclose(coordinates[row, column] + offset * (3, 5), camera.project(point)[0], atol=1e-6)


def test_cropped_camera_shifts_pixels():
    camera = Camera(width=640, height=480, fx=500.0, fy=510.0, cx=300.0, cy=200.0, model="equidistant",
                    distortion=(0.01, 0.0, 0.0, 0.0))
    part = camera.cropped(100, 50, 320, 240)
    point = np.array([[0.1, 0.05, 1.0]])
    assert (part.width, part.height) == (320, 240)
    np.testing.assert_allclose(part.project(point), camera.project(point) - np.array([100, 50]), atol=1e-9)


def test_frame_rectifies_image_and_depth():
    camera = Camera(width=64, height=48, fx=60.0, fy=60.0, cx=31.5, cy=23.5, model="plumb_bob",
                    distortion=(-0.2, 0.0, 0.0, 0.0))
    depth_m = np.where(np.arange(64) < 32, 1.0, 5.0).astype(np.float32) * np.ones((48, 1), np.float32)
    frame, valid = Frame(image=np.full((48, 64, 3), 200, np.uint8), camera=camera, depth_m=depth_m).rectified()
    assert frame.camera == camera.rectified() and frame.image.shape == (48, 64, 3)
    assert set(np.unique(frame.depth_m[valid])) == {1.0, 5.0}         # never a mixture of two surfaces
    assert (frame.image[valid] == 200).all()


@pytest.mark.parametrize("change", [
    {"fx": 0.0}, {"fy": -1.0}, {"fx": float("nan")}, {"cx": float("inf")}, {"width": 0}, {"height": -4},
    {"model": "fov"}, {"distortion": (0.1,)}, {"model": "plumb_bob", "distortion": (0.1, 0.2, 0.3)},
    {"model": "equidistant", "distortion": (0.1, float("nan"), 0.0, 0.0)},
])
def test_impossible_cameras_are_rejected(change):
    with pytest.raises(UserError):
        replace(Camera(width=640, height=480, fx=500.0, fy=500.0, cx=320.0, cy=240.0), **change)


def test_distortion_given_as_list_is_usable_as_key():
    assert hash(Camera(width=4, height=4, fx=1.0, fy=1.0, cx=1.5, cy=1.5, model="equidistant",
                       distortion=[0.0, 0.0, 0.0, 0.0])) is not None  # type: ignore[arg-type]


def test_cameras_that_nearly_agree_are_one():
    camera = Camera(width=640, height=480, fx=525.0, fy=520.0, cx=318.0, cy=242.0)
    alike = [replace(camera, fx=525.0 + 0.2 * number, model="plumb_bob", distortion=(1e-3 * number, 0.0, 0.0, 0.0))
             for number in range(-5, 6)]
    assert median_camera([]) is None and median_camera([camera]) == camera
    assert median_camera(alike[::-1]) == median_camera(alike) == alike[5]
    assert median_camera([*alike, replace(camera, fx=700.0)]) in alike        # one calibration has failed
    for other in (replace(camera, fx=560.0), replace(camera, cx=340.0),
                  replace(camera, model="equidistant", distortion=(0.0,) * 4)):
        assert median_camera([camera, other]) is None
        assert median_camera([*alike, *[other] * 11]) is None


def test_intrinsics_are_plain_floats():
    """Tensors that are divided by a numpy scalar become double, which mapping cannot use."""
    camera = Camera(width=64, height=48, fx=np.float64(50), fy=50, cx=np.float32(31.5), cy=np.float64(23.5))
    assert all(type(value) is float for value in (camera.fx, camera.fy, camera.cx, camera.cy))
