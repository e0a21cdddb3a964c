"""Robust refinement of a camera pose on all 2D-3D correspondences, and the covariance of the result.

Graduated non-convexity in the plain form of Black & Rangarajan (IJCV 1996): Gauss-Newton steps on a Geman-McClure
loss whose scale shrinks from a few times the inlier threshold to below it. The wide first scales pull a RANSAC pose
that saw a subset only into the basin of the whole frame; the narrow last ones leave outliers no say.

Poses here are camera_from_map, perturbed in the camera frame: Y' = exp(w) Y + d, parameters (d, w).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from aceg_ros.camera import Camera

MIN_DEPTH_M = 0.1


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
        """Residuals and their Jacobian (6, 2, N) with respect to (d, w)."""
        seen, inverse_depth = self._transform(rotation, translation)
        x, y = seen[:2]
        jacobian = np.zeros((6, 2, x.size))
        jacobian[0, 0] = jacobian[1, 1] = inverse_depth
        jacobian[2, 0] = -x * inverse_depth
        jacobian[2, 1] = -y * inverse_depth
        jacobian[3, 0] = -x * y
        jacobian[3, 1] = -1.0 - y * y
        jacobian[4, 0] = 1.0 + x * x
        jacobian[4, 1] = x * y
        jacobian[5, 0] = -y
        jacobian[5, 1] = x
        jacobian *= np.array([self.camera.fx, self.camera.fy])[:, None]
        return self._residuals(seen), jacobian


def refine(data: Correspondences, rotation: np.ndarray, translation: np.ndarray,
           scales_px: tuple[float, ...], steps_per_scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Refined camera_from_map: rotation (3, 3) and translation (3,)."""
    for scale in scales_px:
        for _ in range(steps_per_scale):
            residuals, jacobian = data.linearize(rotation, translation)
            weights = data.weights / (1.0 + residuals.squared_px / scale**2) ** 2
            weighted = (jacobian * weights).reshape(6, -1)
            hessian = weighted @ jacobian.reshape(6, -1).T
            gradient = weighted @ residuals.pixels.ravel()
            # A touch of damping: a rank-deficient frame must not blow up here, the gates refuse it later.
            hessian[np.diag_indices(6)] += 1e-9 * np.trace(hessian) + 1e-12
            step = -np.linalg.solve(hessian, gradient)
            turn = Rotation.from_rotvec(step[3:]).as_matrix()
            rotation, translation = turn @ rotation, turn @ translation + step[:3]
            if np.abs(step).max() < 1e-12:
                break
    return rotation, translation


def covariance(data: Correspondences, rotation: np.ndarray, translation: np.ndarray, inliers: np.ndarray
               ) -> np.ndarray:
    """(6, 6) covariance of map_from_camera in ROS order, from the inlier residuals at the refined pose."""
    residuals, jacobian = data.linearize(rotation, translation)
    inlier_weights = np.where(inliers, data.weights, 0.0)
    hessian = (jacobian * inlier_weights).reshape(6, -1) @ jacobian.reshape(6, -1).T
    freedom = max(2 * int(inliers.sum()) - 6, 1)
    variance = float(inlier_weights @ np.where(inliers, residuals.squared_px, 0.0)) / freedom
    # Y' = exp(w) Y + d moves the camera in the map by -R^T d and turns it by -R^T w (both to first order).
    to_map = np.kron(np.eye(2), rotation.T)
    return to_map @ (variance * np.linalg.pinv(hessian, hermitian=True)) @ to_map.T
