"""Robust refinement of a camera pose on all 2D-3D correspondences, and the covariance of the result.

Graduated non-convexity in the plain form of Black & Rangarajan (IJCV 1996): Gauss-Newton steps on a Geman-McClure
loss whose scale shrinks from a few times the inlier threshold to below it. The wide first scales pull a RANSAC pose
that saw a subset only into the basin of the whole frame; the narrow last ones leave outliers no say.

Poses here are camera_from_map, perturbed in the camera frame: Y' = exp(w) Y + d, parameters (d, w).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial.transform import Rotation

from aceg_ros.camera import Camera

MIN_DEPTH_M = 0.1
BLOCK_COLUMNS, BLOCK_ROWS = 8, 6
BLOCK_COUNT = BLOCK_COLUMNS * BLOCK_ROWS
PRIOR_CORRELATION, PRIOR_PAIRS = 0.25, 30.0  # what the solver set shows, and how many pairs it counts for
REACH = 0.5  # mean correlation over the picture as a share of that between neighbours
MIN_CURVATURE = 0.1
FLOOR_PX = 0.1  # no camera is calibrated better than this


@dataclass(frozen=True)
class Residuals:
    """Reprojection of N map points under one pose.

    pixels: (2, N) projected minus observed. depth_m: (N,). squared_px: (N,) squared length of `pixels`, infinite
    where the point is nearer than MIN_DEPTH_M or behind the camera.
    """

    pixels: np.ndarray
    depth_m: np.ndarray
    squared_px: np.ndarray


@dataclass(frozen=True)
class Correspondences:
    """N usable pixel-point pairs, one row per coordinate. pixels: (2, N); points: (3, N), map frame, metres."""

    pixels: np.ndarray
    points: np.ndarray
    weights: np.ndarray
    camera: Camera

    @cached_property
    def blocks(self) -> np.ndarray:
        """(N,) number of the picture block of each pixel, in 0 .. BLOCK_COUNT - 1; pixels outside count as border."""
        column = np.clip(self.pixels[0] * (BLOCK_COLUMNS / self.camera.width), 0, BLOCK_COLUMNS - 1).astype(int)
        row = np.clip(self.pixels[1] * (BLOCK_ROWS / self.camera.height), 0, BLOCK_ROWS - 1).astype(int)
        return row * BLOCK_COLUMNS + column

    def subset(self, indices: np.ndarray) -> Correspondences:
        return Correspondences(self.pixels[:, indices], self.points[:, indices], self.weights[indices], self.camera)

    def mirrored(self) -> Correspondences:
        """The same points under the pixels flipped left to right about the principal point."""
        pixels = np.stack([2.0 * self.camera.cx - self.pixels[0], self.pixels[1]])
        return Correspondences(pixels, self.points, self.weights, self.camera)

    def residuals(self, rotation: np.ndarray, translation: np.ndarray) -> Residuals:
        seen, _ = self._transform(rotation, translation)
        return self._residuals(seen)

    def _transform(self, rotation: np.ndarray, translation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points in the camera as (x / z, y / z, z) (3, N), and 1 / z (N,) that is 0 where z is too small."""
        seen = rotation @ self.points + translation[:, None]
        in_front = seen[2] > MIN_DEPTH_M
        inverse_depth = np.where(in_front, 1.0 / np.where(in_front, seen[2], 1.0), 0.0)
        seen[:2] *= inverse_depth
        return seen, inverse_depth

    def _residuals(self, seen: np.ndarray) -> Residuals:
        camera = self.camera
        pixels = np.stack([camera.fx * seen[0] + camera.cx, camera.fy * seen[1] + camera.cy]) - self.pixels
        squared = np.einsum("ij,ij->j", pixels, pixels)
        squared[seen[2] <= MIN_DEPTH_M] = np.inf
        return Residuals(pixels, seen[2], squared)

    def linearize(self, rotation: np.ndarray, translation: np.ndarray) -> tuple[Residuals, np.ndarray]:
        """Residuals and their Jacobian (6, 2, N) with respect to (d, w); single precision, enough for a direction."""
        seen, inverse_depth = self._transform(rotation, translation)
        x, y = seen[:2]
        jacobian = np.zeros((6, 2, x.size), np.float32)
        jacobian[0, 0] = jacobian[1, 1] = inverse_depth
        jacobian[2, 0] = -x * inverse_depth
        jacobian[2, 1] = -y * inverse_depth
        jacobian[3, 0] = -x * y
        jacobian[3, 1] = -1.0 - y * y
        jacobian[4, 0] = 1.0 + x * x
        jacobian[4, 1] = x * y
        jacobian[5, 0] = -y
        jacobian[5, 1] = x
        jacobian *= np.array([[self.camera.fx], [self.camera.fy]], np.float32)
        return self._residuals(seen), jacobian


def refine(data: Correspondences, rotation: np.ndarray, translation: np.ndarray,
           scales_px: tuple[float, ...], steps_per_scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Refined camera_from_map: rotation (3, 3) and translation (3,)."""
    for scale in scales_px:
        for _ in range(steps_per_scale):
            residuals, jacobian = data.linearize(rotation, translation)
            weights = _balanced(data, data.weights * _geman_mcclure(residuals.squared_px, scale))
            weighted = (jacobian * weights.astype(np.float32)).reshape(6, -1)
            hessian = (weighted @ jacobian.reshape(6, -1).T).astype(np.float64)
            # A touch of damping: a rank-deficient frame must not blow up here, the gates refuse it later.
            hessian[np.diag_indices(6)] += 1e-9 * np.trace(hessian) + 1e-12
            step = -np.linalg.solve(hessian, weighted @ residuals.pixels.astype(np.float32).ravel())
            turn = Rotation.from_rotvec(step[3:]).as_matrix()
            rotation, translation = turn @ rotation, turn @ translation + step[:3]
    return rotation, translation


def _geman_mcclure(squared_px: np.ndarray, scale_px: float) -> np.ndarray:
    return 1.0 / (1.0 + squared_px / scale_px**2) ** 2


def _balanced(data: Correspondences, weights: np.ndarray) -> np.ndarray:
    """Weights (N,) evened out over the blocks of the picture.

    Neighbouring patches err together, so a block full of inliers knows little more than one with a few. Measured on
    the solver set: 5 percent off the mean translation error.
    """
    totals = np.bincount(data.blocks, weights)
    return weights / np.maximum(totals + totals.sum() / BLOCK_COUNT, 1e-300)[data.blocks]


def measured_correlation(data: Correspondences, residuals: Residuals, inliers: np.ndarray) -> float:
    """Correlation of the residuals of two inliers in the same picture block, in [0, 1].

    From the block sums: E |sum of n residuals|^2 = variance (n + n (n - 1) correlation). Where pairs are few, the
    value leans to PRIOR_CORRELATION.
    """
    counts = np.bincount(data.blocks[inliers], minlength=BLOCK_COUNT)
    sums = [np.bincount(data.blocks[inliers], row[inliers], BLOCK_COUNT) for row in residuals.pixels]
    total = float(residuals.squared_px[inliers].sum())
    pairs = float((counts * (counts - 1)).sum())
    if total == 0.0:
        return 0.0
    agreeing = (np.square(sums).sum() - total) / (total / counts.sum())
    return float(np.clip((agreeing + PRIOR_PAIRS * PRIOR_CORRELATION) / (pairs + PRIOR_PAIRS), 0.0, 1.0))


def covariance(data: Correspondences, rotation: np.ndarray, translation: np.ndarray, scale_px: float,
               inliers: np.ndarray, correlation: float | None = None) -> np.ndarray:
    """(6, 6) covariance of map_from_camera in ROS order: x, y, z, rotation about the fixed axes of the map frame.

    The M-estimator's sandwich A^-1 B A^-1 (Huber, Robust Statistics, 1981): A the Hessian of the loss at the refined
    pose, B the scatter of the residuals' scores, no less than FLOOR_PX of noise gives. B takes the residuals for
    independent; the errors of a network are not. So the whole is multiplied by Kish's design effect
    1 + (n - 1) correlation (Survey Sampling, 1965), n the effective number of correspondences, (sum w)^2 / sum w^2.
    The correlation is the given one, or REACH times that measured between neighbours: a refined pose has absorbed
    what the errors of all patches have in common, so its residuals cannot tell how far the correlation reaches.
    REACH comes from the solver set (docs/benchmarks/2026-11-21-pose-solver.md). Infinite where the Hessian is singular.
    """
    residuals, jacobian = data.linearize(rotation, translation)
    weights = _balanced(data, data.weights * _geman_mcclure(residuals.squared_px, scale_px))
    jacobian_rows = jacobian.reshape(6, -1)
    hessian = ((jacobian * weights.astype(np.float32)).reshape(6, -1) @ jacobian_rows.T).astype(np.float64)
    # Curvature of the loss over its weight: (1 - u) / (1 + u)^3 against 1 / (1 + u)^2, u the squared residual.
    u = np.minimum(residuals.squared_px, 1e12) / scale_px**2
    curvature = float((weights * (1 - u) / (1 + u)).sum() / weights.sum())
    hessian *= max(curvature, MIN_CURVATURE)
    number = float(weights.sum() ** 2 / np.square(weights).sum())
    # The scatter, with the squared residual spread evenly over its two directions.
    score_variance = weights**2 * (np.minimum(residuals.squared_px, 1e12) / 2.0 * number / max(number - 3.0, 1.0)
                                   + FLOOR_PX**2)
    scatter = (jacobian * score_variance.astype(np.float32)).reshape(6, -1) @ jacobian_rows.T
    if correlation is None:
        correlation = REACH * measured_correlation(data, residuals, inliers)
    design_effect = 1.0 + max(number - 1.0, 0.0) * correlation
    try:
        inverse = np.linalg.inv(hessian)
    except np.linalg.LinAlgError:
        return np.full((6, 6), np.inf)
    # Y' = exp(w) Y + d moves the camera in the map by -R^T d and turns it by -R^T w (both to first order).
    to_map = np.kron(np.eye(2), rotation.T) @ inverse
    result = design_effect * to_map @ scatter @ to_map.T
    return (result + result.T) / 2.0
