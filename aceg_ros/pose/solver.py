# SPDX-License-Identifier: Apache-2.0
"""Estimates a pose hypothesis: RANSAC on a spatially stratified subset of correspondences, then robust refinement.

A solver finds some pose even for random correspondences, so `verify.verify_pose` decides whether it is accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from aceg_ros.estimate import Status
from aceg_ros.pose.config import SolverConfig
from aceg_ros.pose.correspondences import CameraFromMap, Consensus, Correspondences
from aceg_ros.pose.gates import Rejection, check_usable_count
from aceg_ros.pose.ransac import run_ransac, stratified_subset
from aceg_ros.pose.refinement import refine
from aceg_ros.utils.stopwatch import Stopwatch


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A pose that has not been verified yet.

    Attributes:
        camera_from_map: the pose in the form of the solver.
        inlier_indices: indices of the inliers in the original `Correspondences`.
        inlier_ratio: inliers over all unmasked correspondences.
        reprojection_rms_px: RMS reprojection error of the inliers, NaN if there are none.
        stage_ms: wall-clock milliseconds of "ransac" and "refine".
    """

    camera_from_map: CameraFromMap
    inlier_indices: np.ndarray = field(repr=False)
    inlier_ratio: float
    reprojection_rms_px: float
    stage_ms: dict[str, float]

    @property
    def map_from_camera(self) -> np.ndarray:
        """The pose (4, 4) of the camera in the map."""
        return self.camera_from_map.map_from_camera


def estimate_pose(correspondences: Correspondences, config: SolverConfig | None = None, *, seed: int = 0
                  ) -> Hypothesis | Rejection:
    """Estimate the camera pose that most correspondences agree with, by RANSAC and refinement.

    Args:
        correspondences: pixels and their map points; unusable ones are left out.
        config: settings of RANSAC and refinement.
        seed: seed of all random draws; the same seed gives bitwise the same pose.

    Returns:
        A hypothesis to be verified, or a rejection (too few correspondences, no consensus).
    """
    config = config or SolverConfig()
    stopwatch = Stopwatch()
    data = correspondences.usable
    rejection = check_usable_count(data, config.min_correspondences)
    if rejection is not None:
        return rejection
    pose = run_ransac(stratified_subset(data, config.max_correspondences, seed), config, seed)
    stopwatch.lap("ransac")
    if pose is None:
        return Rejection(status=Status.NO_CONSENSUS, message=f"RANSAC found no pose among {data.count} correspondences",
                         stage_ms=stopwatch.laps_ms)
    pose = refine(data, pose, config.fine_scales_px, config.refine_steps)
    consensus = Consensus.from_pose(data, pose, config.inlier_threshold_px)
    stopwatch.lap("refine")
    return Hypothesis(camera_from_map=pose, inlier_indices=consensus.inlier_indices,
                      inlier_ratio=consensus.inlier_ratio, reprojection_rms_px=consensus.rms_px,
                      stage_ms=stopwatch.laps_ms)
