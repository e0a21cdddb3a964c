"""2D-3D correspondences to a pose with covariance, or a typed refusal.

RANSAC on a spatially stratified subset finds the pose, robust refinement on all correspondences makes it accurate,
gates decide whether it may leave the house: every solver in the field returns "success" on pure noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import cv2
import numpy as np
import poselib

from aceg_ros.camera import Camera
from aceg_ros.estimate import PoseEstimate, Status
from aceg_ros.pose_refinement import Correspondences, covariance, refine

MAX_COORDINATE = 1e6  # metres or pixels: anything beyond is a broken prediction, not a place


@dataclass(frozen=True)
class SolverConfig:
    """backend: "poselib" or "opencv". inlier_threshold_px: reprojection error of an inlier.

    max_correspondences: size of the subset that RANSAC sees. min/max_iterations: RANSAC's.
    refine_scales_px, refine_steps: the annealed scales of the refinement and the steps at each.
    min_inliers, min_inlier_ratio: of the final pose, over all correspondences given.
    """

    backend: str = "poselib"
    inlier_threshold_px: float = 10.0
    max_correspondences: int = 600
    min_iterations: int = 50
    max_iterations: int = 100
    refine_scales_px: tuple[float, ...] = (30.0, 20.0, 10.0, 5.0)
    refine_steps: int = 2
    min_correspondences: int = 12
    min_inliers: int = 12
    min_inlier_ratio: float = 0.1

    def __post_init__(self) -> None:
        if self.backend not in _BACKENDS:
            raise ValueError(f"unknown pose solver backend '{self.backend}': use one of {', '.join(_BACKENDS)}")


def solve_pose(pixels: np.ndarray, points: np.ndarray, camera: Camera, config: SolverConfig | None = None, *,
               weights: np.ndarray | None = None, mask: np.ndarray | None = None, seed: int = 0) -> PoseEstimate:
    """Pose of a rectified camera from pixels (N, 2) and the map points (N, 3), in metres, that they show.

    weights: (N,), larger is more trusted; steers sampling and refinement. mask: (N,) bool, False is never used.
    Refuses (never raises) on bad data; mismatched shapes and a distorted camera are programming errors: ValueError.
    """
    config = config or SolverConfig()
    pixels, points = np.asarray(pixels, np.float64), np.asarray(points, np.float64)
    count = len(pixels)
    if pixels.shape != (count, 2) or points.shape != (count, 3):
        raise ValueError(f"pixels {pixels.shape} and points {points.shape} must be (N, 2) and (N, 3)")
    if not camera.is_pinhole:
        raise ValueError("the solver takes a rectified camera")
    weights = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    mask = np.ones(count, bool) if mask is None else np.asarray(mask, bool)
    if weights.shape != (count,) or mask.shape != (count,):
        raise ValueError(f"weights {weights.shape} and mask {mask.shape} must be ({count},)")

    with np.errstate(invalid="ignore"):
        usable = (mask & (np.abs(pixels) < MAX_COORDINATE).all(1) & (np.abs(points) < MAX_COORDINATE).all(1)
                  & np.isfinite(weights) & (weights > 0))
    indices = np.flatnonzero(usable)
    offered = int(mask.sum())
    if indices.size < config.min_correspondences:
        return PoseEstimate(Status.TOO_FEW_CORRESPONDENCES, f"{indices.size} of {offered} correspondences are usable "
                            f"(finite, unmasked, positive weight), need {config.min_correspondences}")
    data = Correspondences(pixels[indices].T.copy(), points[indices].T.copy(),
                           weights[indices] / weights[indices].mean(), camera)

    clock = _Stages()
    subset = _stratified_subset(data, config.max_correspondences, np.random.default_rng(seed))
    pose = _BACKENDS[config.backend](data.pixels[:, subset].T, data.points[:, subset].T, camera, config, seed)
    clock.lap("ransac")
    if pose is None or not all(np.isfinite(part).all() for part in pose):
        return PoseEstimate(Status.NO_CONSENSUS, f"RANSAC found no pose among {indices.size} correspondences",
                            stage_ms=clock.stages)
    rotation, translation = refine(data, *pose, config.refine_scales_px, config.refine_steps)
    residuals = data.residuals(rotation, translation)
    inliers = residuals.squared_px < config.inlier_threshold_px**2
    clock.lap("refine")

    number = int(inliers.sum())
    ratio = number / offered
    figures = {"inliers": number, "inlier_ratio": ratio, "inlier_indices": indices[inliers],
               "reprojection_rms_px": float(np.sqrt(residuals.squared_px[inliers].mean())) if number else float("nan")}
    if number < config.min_inliers:
        return PoseEstimate(Status.TOO_FEW_INLIERS, f"{number} inliers within {config.inlier_threshold_px:g} px, "
                            f"need {config.min_inliers}", **figures, stage_ms=clock.stages)
    if ratio < config.min_inlier_ratio:
        return PoseEstimate(Status.LOW_INLIER_RATIO, f"{number} of {offered} correspondences are inliers ({ratio:.1%}),"
                            f" need {config.min_inlier_ratio:.0%}", **figures, stage_ms=clock.stages)
    spread = covariance(data, rotation, translation, inliers)
    map_from_camera = np.eye(4)
    map_from_camera[:3, :3] = rotation.T
    map_from_camera[:3, 3] = -rotation.T @ translation
    clock.lap("gates")
    return PoseEstimate(Status.ACCEPTED, f"{number} inliers ({ratio:.0%})", map_from_camera, spread, **figures,
                        stage_ms=clock.stages)


class _Stages:
    """Wall-clock milliseconds of each stage."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._start = perf_counter()

    def lap(self, name: str) -> None:
        now = perf_counter()
        self.stages[name] = (now - self._start) * 1e3
        self._start = now


def _stratified_subset(data: Correspondences, size: int, rng: np.random.Generator) -> np.ndarray:
    """Up to `size` indices, spread evenly over the picture and drawn in proportion to the weights.

    Systematic sampling along an order that visits the picture block by block, at random within a block.
    """
    count = data.pixels.shape[1]
    if count <= size:
        return np.arange(count)
    column = np.floor(data.pixels[0] * 8 / data.camera.width)
    row = np.floor(data.pixels[1] * 6 / data.camera.height)
    order = np.lexsort((rng.random(count), column, row))
    cumulative = np.cumsum(data.weights[order])
    picks = (np.arange(size) + rng.random()) * (cumulative[-1] / size)
    return np.unique(order[np.minimum(np.searchsorted(cumulative, picks), count - 1)])


Pose = tuple[np.ndarray, np.ndarray]  # camera_from_map: rotation (3, 3), translation (3,)


def _solve_poselib(pixels: np.ndarray, points: np.ndarray, camera: Camera, config: SolverConfig, seed: int
                   ) -> Pose | None:
    """LO-RANSAC of PoseLib (Larsson): P3P, MSAC score, local bundle adjustment."""
    model = {"model": "PINHOLE", "width": camera.width, "height": camera.height,
             "params": [camera.fx, camera.fy, camera.cx, camera.cy]}
    options = {"max_reproj_error": config.inlier_threshold_px, "min_iterations": config.min_iterations,
               "max_iterations": config.max_iterations, "seed": seed}
    pose, report = poselib.estimate_absolute_pose(np.ascontiguousarray(pixels), np.ascontiguousarray(points), model,
                                                  options, {})
    return (pose.R, pose.t) if report["num_inliers"] >= 4 else None


def _solve_opencv(pixels: np.ndarray, points: np.ndarray, camera: Camera, config: SolverConfig, seed: int
                  ) -> Pose | None:
    """USAC of OpenCV (Ivashechkin et al. 2021): P3P, MSAC score, inner local optimisation."""
    usac = cv2.UsacParams()
    usac.threshold = config.inlier_threshold_px
    usac.maxIterations = config.max_iterations
    usac.randomGeneratorState = seed
    usac.score = cv2.SCORE_METHOD_MSAC
    usac.loMethod = cv2.LOCAL_OPTIM_INNER_LO
    try:
        found, _, vector, translation, _ = cv2.solvePnPRansac(np.ascontiguousarray(points),
                                                              np.ascontiguousarray(pixels), camera.K, None, params=usac)
    except cv2.error:
        return None
    return (cv2.Rodrigues(vector)[0], translation.ravel()) if found else None


_BACKENDS = {"poselib": _solve_poselib, "opencv": _solve_opencv}
