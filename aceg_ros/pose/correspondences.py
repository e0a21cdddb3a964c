# SPDX-License-Identifier: Apache-2.0
"""2D-3D correspondences, their residuals under a pose, and its inliers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from aceg_ros.camera import Camera
from aceg_ros.pose.gauss_newton import Observations, error_jacobian, reprojection_errors

MAX_COORDINATE = 1e6        # metres or pixels: larger values are failed predictions
IDENTITY = np.eye(4)[:3]
BLOCK_COLUMNS, BLOCK_ROWS = 8, 6
BLOCK_COUNT = BLOCK_COLUMNS * BLOCK_ROWS


def image_blocks(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the block (N,) in 0 .. BLOCK_COUNT - 1 of pixels (2, N) of an image of this width and height; pixels
    outside are clamped."""
    column = np.clip(pixels[0] * (BLOCK_COLUMNS / size[0]), 0, BLOCK_COLUMNS - 1).astype(int)
    row = np.clip(pixels[1] * (BLOCK_ROWS / size[1]), 0, BLOCK_ROWS - 1).astype(int)
    return row * BLOCK_COLUMNS + column


@dataclass(frozen=True, kw_only=True)
class Correspondences:
    """Pixels of a rectified image and the map points that a method predicts or matches for them.

    Values that are not finite and weights that are not positive are allowed; such correspondences are not used.

    Attributes:
        pixels: (N, 2).
        points: (N, 3) in the map frame, metres.
        camera: camera of the rectified image.
        weights: (N,), relative confidence, used in sampling and refinement. None: all equal.
        mask: (N,) bool; correspondences with False are neither used nor counted. None: all are used.

    Raises:
        ValueError: shapes do not match, or the camera has lens distortion.
    """

    pixels: np.ndarray
    points: np.ndarray
    camera: Camera
    weights: np.ndarray | None = None
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(self.pixels)
        if np.shape(self.pixels) != (count, 2) or np.shape(self.points) != (count, 3):
            raise ValueError(f"pixels {np.shape(self.pixels)} and points {np.shape(self.points)} must be (N, 2) and "
                             "(N, 3)")
        for name, values in (("weights", self.weights), ("mask", self.mask)):
            if values is not None and np.shape(values) != (count,):
                raise ValueError(f"{name} {np.shape(values)} must be ({count},)")
        if not self.camera.is_pinhole:
            raise ValueError("correspondences need a rectified camera")

    @cached_property
    def usable(self) -> UsableCorrespondences:
        """The unmasked correspondences with finite values and positive weights, in the layout of the solver."""
        return self.select_usable()

    def subset(self, chosen: np.ndarray) -> Correspondences:
        """Return the chosen correspondences (indices or a mask), all of equal weight."""
        return Correspondences(pixels=self.pixels[chosen], points=self.points[chosen], camera=self.camera)

    def select_usable(self) -> UsableCorrespondences:
        """Select what `usable` returns, which is kept there."""
        pixels, points = (np.ascontiguousarray(np.asarray(part, np.float64).T) for part in (self.pixels, self.points))
        count = pixels.shape[1]
        weights = np.ones(count) if self.weights is None else np.asarray(self.weights, np.float64)
        mask = np.ones(count, bool) if self.mask is None else np.asarray(self.mask, bool)
        # Written so that NaN fails: every comparison with NaN is false.
        usable = (mask & (np.abs(pixels) < MAX_COORDINATE).all(0) & (np.abs(points) < MAX_COORDINATE).all(0)
                  & (weights > 0) & (weights < np.inf))
        indices = np.flatnonzero(usable)
        kept = weights[indices]
        if kept.size:
            kept = kept / kept.max()
            kept = np.maximum(kept / kept.mean(), 1e-12)
        if len(indices) < count:
            pixels, points = pixels[:, indices], points[:, indices]
        return UsableCorrespondences(pixels=pixels, points=points, weights=kept, camera=self.camera, indices=indices,
                                     total_count=int(mask.sum()))


@dataclass(frozen=True, kw_only=True)
class CameraFromMap:
    """A pose as rotation (3, 3) and translation (3,) that map points of the map into the camera frame."""

    rotation: np.ndarray
    translation: np.ndarray

    def __post_init__(self) -> None:
        # Functions are compiled for contiguous arrays that could be written to.
        for name, values in (("rotation", self.rotation), ("translation", self.translation)):
            object.__setattr__(self, name, np.array(values, np.float64, order="C"))

    @classmethod
    def from_pose(cls, map_from_camera: np.ndarray) -> CameraFromMap:
        rotation = np.asarray(map_from_camera, np.float64)[:3, :3].T
        return cls(rotation=rotation, translation=-rotation @ np.asarray(map_from_camera, np.float64)[:3, 3])

    @property
    def map_from_camera(self) -> np.ndarray:
        pose = np.eye(4)
        pose[:3, :3] = self.rotation.T
        pose[:3, 3] = -self.rotation.T @ self.translation
        return pose


@dataclass(frozen=True, kw_only=True)
class Residuals:
    """Reprojection errors of N map points under one pose.

    pixels: (2, N) projected minus observed. depth_m: (N,). squared_px: (N,) squared length of `pixels`, infinite
    if the point is nearer than `gauss_newton.MIN_DEPTH_M` or behind the camera.
    """

    pixels: np.ndarray
    depth_m: np.ndarray
    squared_px: np.ndarray


@dataclass(frozen=True, kw_only=True)
class UsableCorrespondences:
    """N correspondences with finite values, one row per coordinate, and methods to reproject them.

    pixels: (2, N). points: (3, N), map frame, metres. weights: (N,) with mean 1. indices: (N,) into the original
    `Correspondences`. total_count: number of unmasked ones among these.
    """

    pixels: np.ndarray
    points: np.ndarray
    weights: np.ndarray
    camera: Camera
    indices: np.ndarray
    total_count: int

    @property
    def count(self) -> int:
        return self.pixels.shape[1]

    @property
    def block_count(self) -> int:
        """The number of image blocks."""
        return BLOCK_COUNT

    @cached_property
    def blocks(self) -> np.ndarray:
        """(N,) index of the image block of each pixel, in 0 .. block_count - 1; pixels outside are clamped."""
        return image_blocks(self.pixels, (self.camera.width, self.camera.height))

    def subset(self, chosen: np.ndarray) -> UsableCorrespondences:
        return UsableCorrespondences(pixels=self.pixels[:, chosen], points=self.points[:, chosen],
                                     weights=self.weights[chosen], camera=self.camera, indices=self.indices[chosen],
                                     total_count=self.total_count)

    def mirrored(self) -> UsableCorrespondences:
        """Return the same points with the pixels mirrored left to right about the principal point."""
        pixels = np.stack([2.0 * self.camera.cx - self.pixels[0], self.pixels[1]])
        return UsableCorrespondences(pixels=pixels, points=self.points, weights=self.weights, camera=self.camera,
                                     indices=self.indices, total_count=self.total_count)

    def of_main_image(self, consensus: Consensus) -> Consensus | None:
        """Return a consensus of these as that of one image; None if it is one of several images."""
        return consensus

    @cached_property
    def observations(self) -> Observations:
        """These in the form of `gauss_newton`."""
        return self._observations([0, self.count], [self.camera], [IDENTITY])

    def residuals(self, pose: CameraFromMap) -> Residuals:
        """Compute the reprojection errors under a pose."""
        pixels, depth_m, squared_px = reprojection_errors(self.observations, pose.rotation, pose.translation)
        return Residuals(pixels=pixels, depth_m=depth_m, squared_px=squared_px)

    def linearize(self, pose: CameraFromMap) -> np.ndarray:
        """Compute the Jacobian (6, 2, N) of the residuals with respect to (d, w); see `gauss_newton`."""
        return error_jacobian(self.observations, pose.rotation, pose.translation)

    def _observations(self, starts: ArrayLike, cameras: Sequence[Camera], mounts: Sequence[np.ndarray]) -> Observations:
        """Put these together with their cameras, contiguous and of the same types for every kind of correspondences:
        functions are compiled for each type."""
        return Observations(
            points=np.ascontiguousarray(self.points, np.float64), pixels=np.ascontiguousarray(self.pixels, np.float64),
            blocks=np.ascontiguousarray(self.blocks, np.int64), block_count=self.block_count,
            starts=np.array(starts, np.uintp), mounts=np.array(mounts, np.float64),
            cameras=np.array([(camera.fx, camera.fy, camera.cx, camera.cy) for camera in cameras], np.float64))


@dataclass(frozen=True, kw_only=True)
class Consensus:
    """The inliers of a pose.

    residuals: of all correspondences in `data` under `pose`. inliers: (N,) bool, residuals below threshold_px.
    """

    data: UsableCorrespondences
    pose: CameraFromMap
    residuals: Residuals
    inliers: np.ndarray
    threshold_px: float

    @classmethod
    def from_pose(cls, data: UsableCorrespondences, pose: CameraFromMap, threshold_px: float) -> Consensus:
        """Find the inliers of a pose."""
        residuals = data.residuals(pose)
        return cls(data=data, pose=pose, residuals=residuals, inliers=residuals.squared_px < threshold_px**2,
                   threshold_px=threshold_px)

    @cached_property
    def inlier_count(self) -> int:
        return int(self.inliers.sum())

    @property
    def inlier_ratio(self) -> float:
        """Inliers over all unmasked correspondences, unusable ones included; 0 if there are none."""
        return self.inlier_count / self.data.total_count if self.data.total_count else 0.0

    @property
    def inlier_indices(self) -> np.ndarray:
        """Indices of the inliers in the original `Correspondences`."""
        return self.data.indices[self.inliers]

    @property
    def rms_px(self) -> float:
        """Root mean square reprojection error of the inliers; NaN if there are none."""
        return float(np.sqrt(self.residuals.squared_px[self.inliers].mean())) if self.inlier_count else float("nan")
