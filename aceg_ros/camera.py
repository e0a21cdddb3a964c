# SPDX-License-Identifier: Apache-2.0
"""Camera model and frame, which every reader yields and every method takes.

Conventions of the whole package
    Axes: OpenCV optical (x right, y down, z forward). Units: metres, pixels, seconds.
    Pixels: the centre of the top-left pixel is (0, 0), as in OpenCV and in ROS camera_info.
    Lens distortion: `Camera.rectify` resamples each image once, through cached maps, to a pinhole camera with the same
    K, so that methods only deal with pinhole cameras.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import cv2
import numpy as np

from aceg_ros.errors import UserError

MAX_DIFFERENCE, MIN_AGREEING = 0.02, 0.8        # of cameras that are taken for one: their difference, their share
MIN_DEPTH = 1e-3                        # of a point that is projected, in map units
DISTORTION_COUNTS = {"pinhole": (0,), "plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14), "equidistant": (4,)}


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Intrinsics for one image size.

    model: "pinhole" (no distortion) or one of ROS' names "plumb_bob" (k1 k2 p1 p2 [k3]), "rational_polynomial"
    (k1 k2 p1 p2 k3 k4 k5 k6 [s1 s2 s3 s4 [tx ty]], the last six for thin prisms and a tilted sensor), "equidistant"
    (fisheye, k1..k4).
    Raises UserError on intrinsics that cannot belong to a camera.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    model: str = "pinhole"
    distortion: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "distortion", tuple(self.distortion))     # hashable: the key of the cached maps
        for name in ("fx", "fy", "cx", "cy"):           # numpy's scalars would make tensors of double precision
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.model not in DISTORTION_COUNTS:
            raise UserError(f"Unknown camera model '{self.model}': use one of {', '.join(DISTORTION_COUNTS)}.")
        if len(self.distortion) not in DISTORTION_COUNTS[self.model]:
            expected = " or ".join(str(n) for n in DISTORTION_COUNTS[self.model])
            raise UserError(f"Camera model {self.model} takes {expected} coefficients, not {len(self.distortion)}.")
        if self.width <= 0 or self.height <= 0:
            raise UserError(f"Camera size {self.width}x{self.height} is not positive.")
        if not np.isfinite(self.distortion).all():
            raise UserError(f"The distortion coefficients {self.distortion} are not finite: calibrate the camera.")
        if not np.isfinite((self.fx, self.fy, self.cx, self.cy)).all() or self.fx <= 0 or self.fy <= 0:
            raise UserError(f"Camera intrinsics are not usable (fx {self.fx}, fy {self.fy}, cx {self.cx}, cy {self.cy}"
                            "): calibrate the camera or fix the camera_info publisher.")

    @property
    def K(self) -> np.ndarray:  # noqa: N802 - the usual symbol
        """3x3 intrinsics."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    @property
    def is_pinhole(self) -> bool:
        """Whether K alone maps rays to pixels (not so for equidistant lenses, even if all coefficients are zero)."""
        return self.model != "equidistant" and not any(self.distortion)

    def resized(self, width: int, height: int) -> Camera:
        """Return the camera of the same image resampled to width x height pixels."""
        sx, sy = width / self.width, height / self.height
        return replace(self, width=width, height=height, fx=self.fx * sx, fy=self.fy * sy,
                       cx=(self.cx + 0.5) * sx - 0.5, cy=(self.cy + 0.5) * sy - 0.5)

    def cropped(self, left: int, top: int, width: int, height: int) -> Camera:
        """Return the camera of the image cropped to width x height pixels from pixel (left, top) on."""
        return replace(self, width=width, height=height, cx=self.cx - left, cy=self.cy - top)

    def rectified(self) -> Camera:
        """Return the distortion-free camera that `rectify` resamples to: same K, same size."""
        return replace(self, model="pinhole", distortion=())

    def project(self, points: np.ndarray) -> np.ndarray:
        """Project camera-frame points (N, 3), z > 0, to distorted pixels (N, 2)."""
        points = np.asarray(points, np.float64).reshape(-1, 1, 3)
        zero = np.zeros(3)
        if self.model == "equidistant":
            pixels, _ = cv2.fisheye.projectPoints(points, zero, zero, self.K, np.array(self.distortion))
        else:
            pixels, _ = cv2.projectPoints(points, zero, zero, self.K, np.array(self.distortion))
        return pixels.reshape(-1, 2)

    def unproject(self, pixels: np.ndarray) -> np.ndarray:
        """Map distorted pixels (N, 2) to camera-frame rays (N, 3) with z = 1."""
        pixels = np.asarray(pixels, np.float64).reshape(-1, 1, 2)
        criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-12)
        if self.model == "equidistant":
            normalized = cv2.fisheye.undistortPoints(pixels, self.K, np.array(self.distortion), criteria=criteria)
        else:
            # In OpenCV 4 only undistortPointsIter takes the criteria, in OpenCV 5 undistortPoints does.
            undistort = getattr(cv2, "undistortPointsIter", cv2.undistortPoints)
            normalized = undistort(pixels, self.K, np.array(self.distortion), R=None, P=None, criteria=criteria)
        return cv2.convertPointsToHomogeneous(normalized).reshape(-1, 3)

    def rectify(self, image: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> tuple[np.ndarray, np.ndarray | None]:
        """Undistort an image (H, W[, C]) of this camera; depth needs cv2.INTER_NEAREST.

        Returns:
            The image of the camera `rectified()`, black outside the original image, and a read-only bool mask (H, W) of
            the pixels inside it. Without distortion, the image itself and None for the mask (all pixels are valid).

        Raises:
            UserError: the image is not of this camera's size.
        """
        if image.shape[:2] != (self.height, self.width):
            raise UserError(f"The image has {image.shape[1]}x{image.shape[0]} pixels, its camera "
                            f"{self.width}x{self.height}.")
        if self.is_pinhole:
            return image, None
        map_x, map_y, valid = _rectification(self)
        return cv2.remap(image, map_x, map_y, interpolation, borderMode=cv2.BORDER_CONSTANT), valid


def difference_px(camera: Camera, other: Camera) -> float:
    """Return by how many pixels two cameras of one image size project the same rays differently, at most, over the
    image of `other`; infinity if that can hardly be told anywhere."""
    if camera == other:
        return 0.0
    x, y = np.meshgrid(np.linspace(0, other.width - 1, 5), np.linspace(0, other.height - 1, 5))
    pixels = np.column_stack([x.ravel(), y.ravel()])
    rays = other.unproject(pixels)
    # In the corners, a lens polynomial may have no inverse.
    known = np.isfinite(rays).all(axis=1) & (np.linalg.norm(other.project(rays) - pixels, axis=1) < 0.2)
    if known.sum() < 9:
        return float("inf")
    return float(np.linalg.norm(camera.project(rays[known]) - pixels[known], axis=1).max())


def project_map_points(points: np.ndarray, camera: Camera, map_from_camera: np.ndarray
                       ) -> tuple[np.ndarray, np.ndarray]:
    """Project map points (N, 3) into a pinhole camera: pixels (N, 2) and z-depths (N,), also of points behind it, whose
    pixels mean nothing."""
    local = (points - map_from_camera[:3, 3]) @ map_from_camera[:3, :3]
    depth = local[:, 2]
    safe = np.where(depth > MIN_DEPTH, depth, MIN_DEPTH)
    return local[:, :2] / safe[:, None] * (camera.fx, camera.fy) + np.array([camera.cx, camera.cy]), depth


def lift_pixels(pixels: np.ndarray, depth_m: np.ndarray, camera: Camera, map_from_camera: np.ndarray) -> np.ndarray:
    """Return the map points (N, 3) at pixels (N, 2) of a pinhole camera, NaN where the depth is unknown.

    depth_m: (H, W) z-depths of the same view in any size, 0 where unknown; the nearest one is taken.
    """
    height, width = depth_m.shape
    scale = np.array([width / camera.width, height / camera.height])
    column, row = np.clip(((pixels + 0.5) * scale - 0.5).round().astype(int), 0, (width - 1, height - 1)).T
    depth = depth_m[row, column].astype(float)
    rays = np.column_stack([(pixels - (camera.cx, camera.cy)) / (camera.fx, camera.fy), np.ones(len(pixels))])
    points = (rays * depth[:, None]) @ map_from_camera[:3, :3].T + map_from_camera[:3, 3]
    return np.where(depth[:, None] > 0, points, np.nan)


def median_camera(cameras: Sequence[Camera]) -> Camera | None:
    """Return the camera of median focal length, if nearly all of these, of one image size, agree with it; else None.

    They agree if they differ by no more than MAX_DIFFERENCE of half the image's diagonal, see `difference_px`.
    """
    if len(cameras) <= 1:
        return cameras[0] if cameras else None
    middle = sorted(cameras, key=lambda camera: camera.fx * camera.fy)[len(cameras) // 2]
    limit_px = MAX_DIFFERENCE * 0.5 * float(np.hypot(middle.width, middle.height))
    agree = [difference_px(camera, middle) <= limit_px for camera in cameras]
    return middle if np.mean(agree) >= MIN_AGREEING else None


@lru_cache(maxsize=8)
def _rectification(camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = (camera.width, camera.height)
    distortion = np.array(camera.distortion)
    if camera.model == "equidistant":
        maps = cv2.fisheye.initUndistortRectifyMap(camera.K, distortion, np.eye(3), camera.K, size, cv2.CV_32FC1)
    else:
        maps = cv2.initUndistortRectifyMap(camera.K, distortion, None, camera.K, size, cv2.CV_32FC1)
    map_x, map_y = maps
    valid = (map_x >= 0) & (map_x <= camera.width - 1) & (map_y >= 0) & (map_y <= camera.height - 1)
    x = (np.arange(camera.width) - camera.cx) / camera.fx
    y = (np.arange(camera.height) - camera.cy) / camera.fy
    radius = np.hypot(x[None, :], y[:, None])
    valid &= radius < _fold_radius(camera, float(radius.max()))
    map_x[~valid] = map_y[~valid] = -2.0        # far enough outside that bilinear interpolation gives black
    valid.setflags(write=False)
    return map_x, map_y, valid


def _fold_radius(camera: Camera, limit: float) -> float:
    """Return the radius at z = 1 beyond which the distorted radius decreases; inf if it increases up to `limit`.

    The distortion polynomial is valid within the lens's field of view only. Where it decreases, it maps rays from
    outside back into the image.
    """
    radius = np.linspace(0.0, limit, 1000)
    distortion = camera.distortion if camera.model == "equidistant" else (
        *camera.distortion[:2], 0.0, 0.0, *camera.distortion[4:8])      # the radial part alone
    radial = replace(camera, fx=1.0, fy=1.0, cx=0.0, cy=0.0, distortion=distortion)
    image_radius = radial.project(np.column_stack([radius, 0 * radius, 1 + 0 * radius]))[:, 0]
    decreasing = np.flatnonzero(np.diff(image_radius) <= 0)
    return float(radius[decreasing[0]]) if len(decreasing) else np.inf


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One image with its camera and, if known, its stamp, pose and depth.

    image: (H, W, 3) uint8 RGB. map_from_camera: (4, 4), camera pose in the map frame, or None for a query image.
    depth_m: (H, W) float32 z-depth in metres, 0 or NaN for unknown pixels, or None. name: for messages and reports.
    depth_problem: a sentence if there is a depth image that cannot be used, which matters only to who needs it.
    """

    image: np.ndarray
    camera: Camera
    stamp_s: float = 0.0
    map_from_camera: np.ndarray | None = None
    name: str = ""
    depth_m: np.ndarray | None = field(default=None, repr=False)
    depth_problem: str = ""

    def rectified(self) -> tuple[Frame, np.ndarray | None]:
        """Return the frame without lens distortion (image, depth and camera), and the mask of `Camera.rectify`."""
        image, valid = self.camera.rectify(self.image)
        depth_m = self.depth_m
        if depth_m is not None:
            depth_m, _ = self.camera.rectify(depth_m, cv2.INTER_NEAREST)
        return replace(self, image=image, depth_m=depth_m, camera=self.camera.rectified()), valid
