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
from aceg_ros.pose import gates
from aceg_ros.pose.refinement import Correspondences, covariance, refine

Pose = tuple[np.ndarray, np.ndarray]  # camera_from_map: rotation (3, 3), translation (3,)

MAX_COORDINATE = 1e6  # metres or pixels: anything beyond is a broken prediction, not a place


@dataclass(frozen=True)
class SolverConfig:
    """backend: "poselib" or "opencv". inlier_threshold_px: reprojection error of an inlier of the final pose.

    ransac_threshold_px: of RANSAC; wide on purpose, a network's errors are smooth over the picture and a narrow one
    falls for the best-fitting corner. max_correspondences: size of the subset that RANSAC sees.
    min/max_iterations: RANSAC's. coarse_scales_px, fine_scales_px, refine_steps: annealed scales of the refinement,
    the coarse ones on the subset, the fine ones on all correspondences, and the steps at each.

    Gates. min_correspondences: usable ones. min_inliers, min_inlier_ratio: of the final pose, over all unmasked
    correspondences (the ratio with a margin, see `check_number`). min_spread_blocks: of 48 picture blocks. min_width:
    see `check_shape`. Below sure_inlier_ratio a pose must have min_mirror_gain times the inliers of the mirrored
    picture and min_peak of its residuals near zero, see `check_chance` and `check_peak`; below rivalled_inlier_ratio
    no rival with more than max_rival_share of its inliers, see `check_rival`.
    max_position_std: in units of the median inlier depth; max_position_std_m: whatever the depth (a skyline alone
    fixes no place); max_rotation_std_rad.

    residual_correlation: between correspondences, for the covariance; None measures it, 0 takes them as independent.
    """

    backend: str = "poselib"
    inlier_threshold_px: float = 10.0
    ransac_threshold_px: float = 30.0
    max_correspondences: int = 400
    min_iterations: int = 100
    max_iterations: int = 1000
    coarse_scales_px: tuple[float, ...] = (30.0, 15.0)
    fine_scales_px: tuple[float, ...] = (8.0, 4.0)
    refine_steps: int = 3
    min_correspondences: int = 12
    min_inliers: int = 12
    min_inlier_ratio: float = 0.1
    min_spread_blocks: float = 10.0
    min_width: float = 0.02
    sure_inlier_ratio: float = 0.3
    min_mirror_gain: float = 1.5
    min_peak: float = 0.33
    rivalled_inlier_ratio: float = 0.2
    max_rival_share: float = 0.28
    max_position_std: float = 0.1
    max_position_std_m: float = 5.0
    max_rotation_std_rad: float = 0.1
    residual_correlation: float | None = None

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
    clock = _Stages()
    data, indices, offered = _usable(pixels, points, camera, weights, mask)
    if indices.size < config.min_correspondences:
        return PoseEstimate(
            status=Status.TOO_FEW_CORRESPONDENCES,
            message=f"{indices.size} of {offered} correspondences are usable "
                    f"(finite, positive weight), need {config.min_correspondences}")

    subset = data.subset(_stratified_subset(data, config.max_correspondences, np.random.default_rng(seed)))
    pose = _hypothesis(subset, config, seed)
    clock.lap("ransac")
    if pose is None:
        return PoseEstimate(status=Status.NO_CONSENSUS,
                            message=f"RANSAC found no pose among {indices.size} correspondences", stage_ms=clock.stages)
    rotation, translation = refine(data, *pose, config.fine_scales_px, config.refine_steps)
    residuals = data.residuals(rotation, translation)
    inliers = residuals.squared_px < config.inlier_threshold_px**2
    clock.lap("refine")

    number = int(inliers.sum())
    ratio = number / offered
    refusal = gates.check_number(number, offered, config.min_inliers, config.min_inlier_ratio,
                                 config.inlier_threshold_px)
    spread = np.full((6, 6), np.inf)
    if refusal is None:
        depth = float(np.median(residuals.depth_m[inliers]))
        spread = covariance(data, rotation, translation, config.fine_scales_px[-1], inliers,
                            config.residual_correlation)
        max_position_m = min(config.max_position_std * depth, config.max_position_std_m)
        refusal = (gates.check_spread(data, inliers, config.min_spread_blocks)
                   or gates.check_shape(data, inliers, depth, config.min_width)
                   or gates.check_covariance(spread, max_position_m, config.max_rotation_std_rad)
                   or gates.check_planar_twin(data, rotation, inliers, config.inlier_threshold_px))
    if refusal is None and ratio < config.sure_inlier_ratio:
        mirror_ratio = _mirror_ratio(subset, config, seed) * indices.size / offered
        refusal = (gates.check_peak(residuals.squared_px, config.inlier_threshold_px, config.min_peak)
                   or gates.check_chance(ratio, mirror_ratio, config.min_mirror_gain))
    if refusal is None and ratio < config.rivalled_inlier_ratio:
        refusal = gates.check_rival(number, _rival(data, residuals.squared_px, config, seed), config.max_rival_share)
    clock.lap("gates")

    rms = float(np.sqrt(residuals.squared_px[inliers].mean())) if number else float("nan")
    if refusal is not None:
        return PoseEstimate(status=refusal.status, message=refusal.message, map_from_camera=None, covariance=None,
                            inliers=number, inlier_ratio=ratio, reprojection_rms_px=rms,
                            inlier_indices=indices[inliers], stage_ms=clock.stages)
    map_from_camera = np.eye(4)
    map_from_camera[:3, :3] = rotation.T
    map_from_camera[:3, 3] = -rotation.T @ translation
    return PoseEstimate(status=Status.ACCEPTED,
                        message=f"{number} of {offered} correspondences agree, {rms:.1f} px RMS",
                        map_from_camera=map_from_camera, covariance=spread, inliers=number, inlier_ratio=ratio,
                        reprojection_rms_px=rms, inlier_indices=indices[inliers], stage_ms=clock.stages)


def _usable(pixels: np.ndarray, points: np.ndarray, camera: Camera, weights: np.ndarray | None,
            mask: np.ndarray | None) -> tuple[Correspondences, np.ndarray, int]:
    """The usable correspondences, their indices among the given ones, and the number of unmasked ones."""
    pixels, points = np.asarray(pixels, np.float64), np.asarray(points, np.float64)
    count = len(pixels)
    weights = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    mask = np.ones(count, bool) if mask is None else np.asarray(mask, bool)
    if pixels.shape != (count, 2) or points.shape != (count, 3):
        raise ValueError(f"pixels {pixels.shape} and points {points.shape} must be (N, 2) and (N, 3)")
    if weights.shape != (count,) or mask.shape != (count,):
        raise ValueError(f"weights {weights.shape} and mask {mask.shape} must be ({count},)")
    if not camera.is_pinhole:
        raise ValueError("the solver takes a rectified camera")
    # Written so that NaN fails: every comparison with NaN is false.
    usable = (mask & (np.abs(pixels) < MAX_COORDINATE).all(1) & (np.abs(points) < MAX_COORDINATE).all(1)
              & (weights > 0) & (weights < np.inf))
    indices = np.flatnonzero(usable)
    kept = weights[indices]
    if kept.size:
        kept = kept / kept.max()
        kept = np.maximum(kept / kept.mean(), 1e-12)
    data = Correspondences(np.ascontiguousarray(pixels[indices].T), np.ascontiguousarray(points[indices].T), kept,
                           camera)
    return data, indices, int(mask.sum())


def _hypothesis(subset: Correspondences, config: SolverConfig, seed: int) -> Pose | None:
    """The pose that RANSAC finds, settled on the whole subset."""
    pose = _BACKENDS[config.backend](subset, config, seed)
    if pose is None or not all(np.isfinite(part).all() for part in pose):
        return None
    return refine(subset, *pose, config.coarse_scales_px, config.refine_steps)


def _mirror_ratio(subset: Correspondences, config: SolverConfig, seed: int) -> float:
    """Inlier ratio of the best pose for the mirrored picture."""
    mirrored = subset.mirrored()
    pose = _hypothesis(mirrored, config, seed)
    if pose is None:
        return 0.0
    return float((mirrored.residuals(*pose).squared_px < config.inlier_threshold_px**2).mean())


def _rival(data: Correspondences, squared_px: np.ndarray, config: SolverConfig, seed: int) -> int:
    """Inliers of the best pose for the correspondences that are far from the chosen one. squared_px: their errors."""
    rest = data.subset(np.flatnonzero(squared_px > (3.0 * config.inlier_threshold_px) ** 2))
    if rest.pixels.shape[1] < config.min_correspondences:
        return 0
    subset = rest.subset(_stratified_subset(rest, config.max_correspondences, np.random.default_rng(seed)))
    pose = _hypothesis(subset, config, seed)
    return 0 if pose is None else int((rest.residuals(*pose).squared_px < config.inlier_threshold_px**2).sum())


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
    order = np.argsort(data.blocks + rng.random(count))
    cumulative = np.cumsum(data.weights[order])
    picks = (np.arange(size) + rng.random()) * (cumulative[-1] / size)
    return np.unique(order[np.minimum(np.searchsorted(cumulative, picks), count - 1)])


def _solve_poselib(subset: Correspondences, config: SolverConfig, seed: int) -> Pose | None:
    """LO-RANSAC of PoseLib (Larsson): P3P, MSAC score, local bundle adjustment."""
    camera = subset.camera
    model = {"model": "PINHOLE", "width": camera.width, "height": camera.height,
             "params": [camera.fx, camera.fy, camera.cx, camera.cy]}
    options = {"max_reproj_error": config.ransac_threshold_px, "min_iterations": config.min_iterations,
               "max_iterations": config.max_iterations, "seed": seed}
    pose, report = poselib.estimate_absolute_pose(subset.pixels.T.copy(), subset.points.T.copy(), model, options, {})
    return (pose.R, pose.t) if report["num_inliers"] >= 4 else None


def _solve_opencv(subset: Correspondences, config: SolverConfig, seed: int) -> Pose | None:
    """USAC of OpenCV (Ivashechkin et al. 2021): P3P, MSAC score, inner local optimisation."""
    usac = cv2.UsacParams()
    usac.threshold = config.ransac_threshold_px
    usac.maxIterations = config.max_iterations
    usac.randomGeneratorState = seed
    usac.score = cv2.SCORE_METHOD_MSAC
    usac.loMethod = cv2.LOCAL_OPTIM_INNER_LO
    try:
        found, _, vector, translation, _ = cv2.solvePnPRansac(subset.points.T.copy(), subset.pixels.T.copy(),
                                                              subset.camera.K, None, params=usac)
    except cv2.error:
        return None
    return (cv2.Rodrigues(vector)[0], translation.ravel()) if found else None


_BACKENDS = {"poselib": _solve_poselib, "opencv": _solve_opencv}
