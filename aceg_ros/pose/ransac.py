# SPDX-License-Identifier: Apache-2.0
"""RANSAC on a subset of the correspondences that is spread over the image, with PoseLib or OpenCV."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import poselib

from aceg_ros.camera import Camera
from aceg_ros.pose.config import SolverConfig
from aceg_ros.pose.correspondences import CameraFromMap, UsableCorrespondences
from aceg_ros.pose.refinement import refine
from aceg_ros.pose.rig import UsableRigCorrespondences


def run_ransac(subset: UsableCorrespondences, config: SolverConfig, seed: int) -> CameraFromMap | None:
    """Find a pose by RANSAC and refine it at the coarse scales on the same subset; None if RANSAC finds none."""
    find = ransac_generalized if isinstance(subset, UsableRigCorrespondences) else RANSAC[config.backend]
    pose = find(subset, config, seed)
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
    pixels, points = subset.pixels.T.copy(), subset.points.T.copy()
    pose, report = poselib.estimate_absolute_pose(pixels, points, _poselib_camera(subset.camera),
                                                  _poselib_options(config, seed))
    return CameraFromMap(rotation=pose.R, translation=pose.t) if report["num_inliers"] >= 4 else None


def ransac_generalized(subset: UsableCorrespondences, config: SolverConfig, seed: int) -> CameraFromMap | None:
    """Run the LO-RANSAC of PoseLib on the rays of all cameras of a rig, for the pose of its base: generalized P3P."""
    assert isinstance(subset, UsableRigCorrespondences)
    seeing = [(part, view) for (_, part), view in zip(subset.parts, subset.views, strict=True) if part.count]
    if len(seeing) == 1:                # rays through one point: generalized P3P is degenerate
        part, view = seeing[0]
        found = RANSAC[config.backend](part, config, seed)
        return None if found is None else view.rig_pose(found)
    mounts = []
    for _, view in seeing:
        mount = poselib.CameraPose()
        mount.R, mount.t = view.camera_from_rig.rotation, view.camera_from_rig.translation
        mounts.append(mount)
    pose, report = poselib.estimate_generalized_absolute_pose(
        [part.pixels.T.copy() for part, _ in seeing], [part.points.T.copy() for part, _ in seeing], mounts,
        [_poselib_camera(part.camera) for part, _ in seeing], _poselib_options(config, seed))
    return CameraFromMap(rotation=pose.R, translation=pose.t) if report["num_inliers"] >= 4 else None


def _poselib_camera(camera: Camera) -> dict[str, Any]:
    return {"model": "PINHOLE", "width": camera.width, "height": camera.height,
            "params": [camera.fx, camera.fy, camera.cx, camera.cy]}


def _poselib_options(config: SolverConfig, seed: int) -> dict[str, Any]:
    return {"max_reproj_error": config.ransac_threshold_px, "min_iterations": config.min_iterations,
            "max_iterations": config.max_iterations, "seed": seed}


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
