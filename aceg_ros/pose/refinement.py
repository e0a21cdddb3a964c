# SPDX-License-Identifier: Apache-2.0
"""Robust refinement of a camera pose on all 2D-3D correspondences.

Graduated non-convexity as in Black & Rangarajan (IJCV 1996): Gauss-Newton steps on a Geman-McClure loss whose scale
decreases from a few times the inlier threshold to below it. The wide first scales bring a pose that RANSAC fitted to a
subset into the basin of convergence of the whole image; at the narrow last ones, outliers have no influence.

Poses here are camera_from_map, perturbed in the camera frame: Y' = exp(w) Y + d, parameters (d, w).
"""

from __future__ import annotations

import cv2
import numpy as np

from aceg_ros.pose.correspondences import CameraFromMap, UsableCorrespondences


def refine(data: UsableCorrespondences, pose: CameraFromMap, scales_px: tuple[float, ...], steps_per_scale: int
           ) -> CameraFromMap:
    """Minimize the robust reprojection error, starting from a pose, at each scale in turn."""
    rotation, translation = pose.rotation, pose.translation
    for scale in scales_px:
        for _ in range(steps_per_scale):
            residuals, jacobian = data.linearize(CameraFromMap(rotation=rotation, translation=translation))
            weights = balanced_weights(data, data.weights * geman_mcclure(residuals.squared_px, scale))
            weighted = (jacobian * weights.astype(np.float32)).reshape(6, -1)
            hessian = (weighted @ jacobian.reshape(6, -1).T).astype(np.float64)
            # Slight damping: a rank-deficient problem must not fail here; the gates reject it later.
            hessian[np.diag_indices(6)] += 1e-9 * np.trace(hessian) + 1e-12
            step = -np.linalg.solve(hessian, weighted @ residuals.pixels.astype(np.float32).ravel())
            turn = cv2.Rodrigues(step[3:])[0]
            rotation, translation = turn @ rotation, turn @ translation + step[:3]
    return CameraFromMap(rotation=rotation, translation=translation)


def refine_alternatives(data: UsableCorrespondences, pose: CameraFromMap, *, chosen: np.ndarray, scales_px: np.ndarray,
                        steps_per_scale: int) -> list[CameraFromMap]:
    """Refine a pose as `refine` does, on several choices of the correspondences at once, which takes less time.

    Args:
        data: N correspondences.
        pose: to start from.
        chosen: (A, N) bool, those of each alternative.
        scales_px: (A, S) scales of each, in turn.
        steps_per_scale: of each scale.

    Returns:
        The refined pose of each alternative.
    """
    count = len(chosen)
    rotations, translations = np.repeat(pose.rotation[None], count, 0), np.repeat(pose.translation[None], count, 0)
    for scale_px in scales_px.T.repeat(steps_per_scale, 0):
        residuals, squared_px, jacobian = data.linearize_each(rotations, translations)
        unbalanced = data.weights * geman_mcclure(squared_px, scale_px[:, None]) * chosen
        weights = np.stack([balanced_weights(data, each) for each in unbalanced])
        weighted = (jacobian * weights.astype(np.float32)[:, None, None]).reshape(count, 6, -1)
        hessian = (weighted @ jacobian.reshape(count, 6, -1).transpose(0, 2, 1)).astype(np.float64)
        hessian[:, range(6), range(6)] += 1e-9 * np.trace(hessian, axis1=1, axis2=2)[:, None] + 1e-12
        steps = -np.linalg.solve(hessian, weighted @ residuals.astype(np.float32).reshape(count, -1, 1))[..., 0]
        turns = np.array([cv2.Rodrigues(step)[0] for step in steps[:, 3:]])
        rotations = turns @ rotations
        translations = (turns @ translations[..., None])[..., 0] + steps[:, :3]
    return [CameraFromMap(rotation=rotation, translation=translation)
            for rotation, translation in zip(rotations, translations, strict=True)]


def geman_mcclure(squared_px: np.ndarray, scale_px: float | np.ndarray) -> np.ndarray:
    """Return the weights of iteratively reweighted least squares for the Geman-McClure loss."""
    return 1.0 / (1.0 + squared_px / scale_px**2) ** 2


def balanced_weights(data: UsableCorrespondences, weights: np.ndarray) -> np.ndarray:
    """Balance weights (N,) over the blocks of the image.

    Errors of neighbouring patches are correlated, so a block full of inliers has little more information than one with
    a few. On the solver set this reduces the mean translation error by 5 percent.
    """
    totals = np.bincount(data.blocks, weights)
    return weights / np.maximum(totals + totals.sum() / data.block_count, 1e-300)[data.blocks]
