# SPDX-License-Identifier: Apache-2.0
"""Verifies a pose: counts its inliers again, applies the gates and computes its covariance.

The pose may come from any source: RANSAC, a transformer, motion averaging, tracking.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from aceg_ros.estimate import PoseEstimate, Status
from aceg_ros.geometry import is_pose, pose_difference
from aceg_ros.pose import gates
from aceg_ros.pose.config import GateConfig, SolverConfig
from aceg_ros.pose.correspondences import CameraFromMap, Consensus, Correspondences, UsableCorrespondences
from aceg_ros.pose.covariance import pose_covariance
from aceg_ros.pose.gates import Rejection
from aceg_ros.pose.guided import GuidedPose, refinement_spread, robust_scale_px
from aceg_ros.pose.ransac import run_ransac, stratified_subset
from aceg_ros.pose.significance import Significance
from aceg_ros.pose.solver import Hypothesis, estimate_pose
from aceg_ros.utils.stopwatch import Stopwatch

BLIND_FACTOR, MIN_BLIND_PX = 2.0, 2.0


def verify_pose(pose: np.ndarray | Hypothesis, correspondences: Correspondences, config: GateConfig | None = None, *,
                solver: SolverConfig | None = None, seed: int = 0) -> PoseEstimate:
    """Accept or reject a pose by the 2D-3D correspondences that agree with it.

    Args:
        pose: map_from_camera (4, 4) from any source, or a hypothesis of `estimate_pose`. It is not refined, but the
            covariance assumes that it minimises the reprojection error.
        correspondences: pixels and their map points.
        config: thresholds of the gates.
        solver: inlier threshold, and the RANSAC settings with which two of the gates search for a competing pose.
        seed: seed of these RANSAC runs.

    Returns:
        An accepted estimate with the given pose and its covariance, or a rejection with its reason. Unusable data is
        rejected; it does not raise.
    """
    config, solver = config or GateConfig(), solver or SolverConfig()
    stopwatch = Stopwatch()
    if isinstance(pose, Hypothesis):
        camera_from_map, map_from_camera, stage_ms = pose.camera_from_map, pose.map_from_camera, pose.stage_ms
    elif is_pose(pose):
        camera_from_map, map_from_camera, stage_ms = CameraFromMap.from_pose(pose), np.array(pose, np.float64), {}
    else:
        return PoseEstimate(status=Status.NO_CONSENSUS, message="the pose is not a finite rigid transform (4, 4)")
    consensus = Consensus.from_pose(correspondences.usable, camera_from_map, solver.inlier_threshold_px)
    covariance, rejection = _apply_gates(consensus, config, solver, seed)
    stopwatch.lap("gates")
    estimate = _estimate(consensus, map_from_camera, covariance, rejection)
    return replace(estimate, stage_ms=stage_ms | stopwatch.laps_ms)


def verify_unrefined_pose(pose: np.ndarray, refined: np.ndarray, correspondences: Correspondences,
                          config: GateConfig | None = None, *, threshold_px: float, seed: int = 0) -> PoseEstimate:
    """Accept or reject a pose that does not minimise the reprojection error, as a network regresses it.

    Args:
        pose: map_from_camera (4, 4).
        refined: the minimum of the reprojection error near it (4, 4). It must pass `verify_pose`.
        correspondences: pixels and their map points.
        config: thresholds of the gates.
        threshold_px: reprojection error below which a correspondence agrees with the pose itself.
        seed: as for `verify_pose`.

    Returns:
        An accepted estimate with `pose` and its own inliers, or a rejection. The covariance is that of the refined
        pose, plus the square of the distance to it.
    """
    config = config or GateConfig()
    estimate = verify_pose(refined, correspondences, config, seed=seed)
    if estimate.covariance is None:
        return estimate
    consensus = Consensus.from_pose(correspondences.usable, CameraFromMap.from_pose(pose), threshold_px)
    off = pose_difference(pose, refined)
    covariance = estimate.covariance + np.outer(off, off)
    rejection = gates.check_inlier_count(consensus.inlier_count, consensus.data.total_count, config, threshold_px)
    if rejection is None:
        depth_m = float(np.median(consensus.residuals.depth_m[consensus.inliers]))
        rejection = gates.check_covariance(covariance, depth_m, config)
    found = _estimate(consensus, np.array(pose, np.float64), covariance if rejection is None else None, rejection)
    return replace(found, stage_ms=estimate.stage_ms)


def estimate_verified_pose(correspondences: Correspondences, solver: SolverConfig | None = None,
                           gate_config: GateConfig | None = None, *, seed: int = 0) -> PoseEstimate:
    """Estimate a pose from correspondences and verify it: `estimate_pose`, then `verify_pose`."""
    hypothesis = estimate_pose(correspondences, solver, seed=seed)
    if isinstance(hypothesis, Rejection):
        return PoseEstimate(status=hypothesis.status, message=hypothesis.message, stage_ms=hypothesis.stage_ms)
    return verify_pose(hypothesis, correspondences, gate_config, solver=solver, seed=seed)


def verify_guided_pose(found: GuidedPose, competitor: Significance | None, blind: Correspondences,
                       config: GateConfig | None = None, *,
                       distinctive: Callable[[], float | None] | None = None) -> PoseEstimate:
    """Accept or reject a pose whose correspondences were searched for around their projections.

    The gates against chance of `verify_pose` do not apply to such correspondences, which are near the projections
    whether the pose is right or not. Their significance takes the windows into account.

    Args:
        found: the pose with its correspondences.
        competitor: the greatest significance of a pose at another place, None if there is none.
        blind: the matches that were found before any pose was known.
        config: thresholds of the gates.
        distinctive: counts the blind matches that agree and are distinctive, None where that is not asked for. It takes
            a while, and is called for significant poses alone.
    """
    config = config or GateConfig()
    significance = found.significance
    consensus = Consensus.from_pose(found.correspondences.usable, found.pose, significance.threshold_px)
    covariance, rejection = None, gates.check_significance(significance, config)
    if rejection is None:
        count = None if distinctive is None else distinctive()
        rejection = (gates.check_confirmation(found.overall, blind_consensus(found, blind), count, config)
                     or gates.check_competitor(significance, competitor, config)
                     or gates.check_spread(consensus, config.min_guided_blocks))
    if rejection is None:
        covariance, rejection = _determined(consensus, robust_scale_px(significance), config, config.max_leverage)
    if covariance is not None:
        covariance = covariance + refinement_spread(found)
    return _estimate(consensus, found.pose.map_from_camera, covariance, rejection)


def blind_consensus(found: GuidedPose, blind: Correspondences) -> Consensus:
    """Find the matches that were found before any pose was known and agree with this one, with some tolerance: the
    threshold of the pose was found on others."""
    return Consensus.from_pose(blind.usable, found.pose, BLIND_FACTOR * max(found.significance.threshold_px,
                                                                           MIN_BLIND_PX))


def _apply_gates(consensus: Consensus, config: GateConfig, solver: SolverConfig, seed: int
                 ) -> tuple[np.ndarray | None, Rejection | None]:
    """Return the covariance, or the rejection of the first gate that the pose does not pass; cheap gates come first."""
    data = consensus.data
    rejection = (gates.check_usable_count(data, solver.min_correspondences)
                 or gates.check_inlier_count(consensus.inlier_count, data.total_count, config, consensus.threshold_px)
                 or gates.check_spread(consensus, config.min_spread_blocks))
    if rejection is not None:
        return None, rejection
    covariance, rejection = _determined(consensus, solver.fine_scales_px[-1], config)
    if rejection is None and consensus.inlier_ratio < config.confident_inlier_ratio:
        rejection = (gates.check_peak(consensus, config)
                     or gates.check_chance(consensus.inlier_ratio, _mirror_ratio(data, solver, seed), config))
    if rejection is None and consensus.inlier_ratio < config.unique_inlier_ratio:
        second_count = _second_inlier_count(consensus, solver, seed)
        rejection = gates.check_second_pose(consensus.inlier_count, second_count, config)
    return (covariance, None) if rejection is None else (None, rejection)


def _determined(consensus: Consensus, scale_px: float, config: GateConfig, max_leverage: float | None = None
                ) -> tuple[np.ndarray | None, Rejection | None]:
    """Return the covariance of a pose that its inliers determine well enough, else a rejection."""
    depth_m = float(np.median(consensus.residuals.depth_m[consensus.inliers]))
    covariance = pose_covariance(consensus, scale_px, config.residual_correlation, max_leverage)
    rejection = (gates.check_extent(consensus, depth_m, config)
                 or gates.check_covariance(covariance, depth_m, config)
                 or gates.check_planar_ambiguity(consensus))
    return (covariance, None) if rejection is None else (None, rejection)


def _estimate(consensus: Consensus, map_from_camera: np.ndarray, covariance: np.ndarray | None,
              rejection: Rejection | None) -> PoseEstimate:
    """Make the result of a verification."""
    if rejection is None:
        status, message = Status.ACCEPTED, (f"{consensus.inlier_count} of {consensus.data.total_count} correspondences "
                                            f"agree, {consensus.rms_px:.1f} px RMS")
    else:
        status, message = rejection.status, rejection.message
    return PoseEstimate(status=status, message=message, map_from_camera=map_from_camera if rejection is None else None,
                        covariance=covariance, inliers=consensus.inlier_count, inlier_ratio=consensus.inlier_ratio,
                        reprojection_rms_px=consensus.rms_px, inlier_indices=consensus.inlier_indices)


def _mirror_ratio(data: UsableCorrespondences, solver: SolverConfig, seed: int) -> float:
    """Return the inlier ratio of the best pose for the mirrored image."""
    mirrored = stratified_subset(data, solver.max_correspondences, seed).mirrored()
    pose = run_ransac(mirrored, solver, seed)
    if pose is None:
        return 0.0
    ratio = float((mirrored.residuals(pose).squared_px < solver.inlier_threshold_px**2).mean())
    return ratio * data.count / data.total_count


def _second_inlier_count(consensus: Consensus, solver: SolverConfig, seed: int) -> int:
    """Count the inliers of the best pose for the clear outliers of the pose that is being verified."""
    far = consensus.residuals.squared_px > (3.0 * solver.inlier_threshold_px) ** 2
    rest = consensus.data.subset(np.flatnonzero(far))
    if rest.count < solver.min_correspondences:
        return 0
    pose = run_ransac(stratified_subset(rest, solver.max_correspondences, seed), solver, seed)
    return 0 if pose is None else Consensus.from_pose(rest, pose, solver.inlier_threshold_px).inlier_count
