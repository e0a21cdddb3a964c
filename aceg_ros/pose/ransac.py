"""RANSAC on a subset of the correspondences that is spread over the image, with PoseLib or OpenCV."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import poselib

from aceg_ros.pose.config import SolverConfig
from aceg_ros.pose.correspondences import CameraFromMap, UsableCorrespondences
from aceg_ros.pose.refinement import refine


def run_ransac(subset: UsableCorrespondences, config: SolverConfig, seed: int) -> CameraFromMap | None:
    """Find a pose by RANSAC and refine it at the coarse scales on the same subset; None if RANSAC finds none."""
    pose = RANSAC[config.backend](subset, config, seed)
    if pose is None or not np.isfinite(pose.rotation).all() or not np.isfinite(pose.translation).all():
        return None
    return refine(subset, pose, config.coarse_scales_px, config.refine_steps)


def stratified_subset(data: UsableCorrespondences, size: int, seed: int) -> UsableCorrespondences:
    """Draw up to `size` correspondences in proportion to their weights, spread over the image.

    Systematic sampling of the correspondences ordered by image block, in random order within a block.
    """
    rng = np.random.default_rng(seed)
    if data.count <= size:
        return data.subset(np.arange(data.count))
    order = np.argsort(data.blocks + rng.random(data.count))
    cumulative = np.cumsum(data.weights[order])
    picks = (np.arange(size) + rng.random()) * (cumulative[-1] / size)
    return data.subset(np.unique(order[np.minimum(np.searchsorted(cumulative, picks), data.count - 1)]))


def ransac_poselib(subset: UsableCorrespondences, config: SolverConfig, seed: int) -> CameraFromMap | None:
    """Run the LO-RANSAC of PoseLib (Larsson): P3P, MSAC score, local bundle adjustment."""
    camera = subset.camera
    model = {"model": "PINHOLE", "width": camera.width, "height": camera.height,
             "params": [camera.fx, camera.fy, camera.cx, camera.cy]}
    options = {"max_reproj_error": config.ransac_threshold_px, "min_iterations": config.min_iterations,
               "max_iterations": config.max_iterations, "seed": seed}
    pixels, points = subset.pixels.T.copy(), subset.points.T.copy()
    pose, report = poselib.estimate_absolute_pose(pixels, points, model, options)
    return CameraFromMap(rotation=pose.R, translation=pose.t) if report["num_inliers"] >= 4 else None


def ransac_opencv(subset: UsableCorrespondences, config: SolverConfig, seed: int) -> CameraFromMap | None:
    """Run the USAC of OpenCV (Ivashechkin et al. 2021): P3P, MSAC score, inner local optimisation."""
    usac = cv2.UsacParams()
    usac.threshold = config.ransac_threshold_px
    usac.maxIterations = config.max_iterations
    usac.randomGeneratorState = seed
    usac.score = cv2.SCORE_METHOD_MSAC
    usac.loMethod = cv2.LOCAL_OPTIM_INNER_LO
    points, pixels = subset.points.T.copy(), subset.pixels.T.copy()
    try:
        found, _, vector, translation, _ = cv2.solvePnPRansac(points, pixels, subset.camera.K, None, params=usac)
    except cv2.error:
        return None
    return CameraFromMap(rotation=cv2.Rodrigues(vector)[0], translation=translation.ravel()) if found else None


RANSAC: dict[str, Callable[[UsableCorrespondences, SolverConfig, int], CameraFromMap | None]] = {
    "poselib": ransac_poselib, "opencv": ransac_opencv}
