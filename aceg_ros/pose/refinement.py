# SPDX-License-Identifier: Apache-2.0
"""Robust refinement of a camera pose on all 2D-3D correspondences.

Graduated non-convexity as in Black & Rangarajan (IJCV 1996): Gauss-Newton steps on a Geman-McClure loss whose scale
decreases from a few times the inlier threshold to below it. The wide first scales bring a pose that RANSAC fitted to a
subset into the basin of convergence of the whole image; at the narrow last ones, outliers have no influence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aceg_ros.pose.correspondences import CameraFromMap, UsableCorrespondences
from aceg_ros.pose.gauss_newton import refined_pose


def refine(data: UsableCorrespondences, pose: CameraFromMap, scales_px: Sequence[float] | np.ndarray,
           steps_per_scale: int, *, chosen: np.ndarray | None = None) -> CameraFromMap:
    """Minimize the robust reprojection error, starting from a pose, at each scale in turn.

    Args:
        data: N correspondences.
        pose: to start from.
        scales_px: of the loss.
        steps_per_scale: of Gauss-Newton.
        chosen: (N,) bool, those to refine on. None: all.
    """
    weights = data.weights if chosen is None else data.weights * chosen
    scales = np.repeat(np.array(scales_px, np.float64), steps_per_scale)
    rotation, translation = refined_pose(data.observations, weights, pose.rotation, pose.translation, scales_px=scales)
    return CameraFromMap(rotation=rotation, translation=translation)


def geman_mcclure(squared_px: np.ndarray, scale_px: float | np.ndarray) -> np.ndarray:
    """Return the weights of iteratively reweighted least squares for the Geman-McClure loss."""
    return 1.0 / (1.0 + squared_px / scale_px**2) ** 2
