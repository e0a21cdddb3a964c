# SPDX-License-Identifier: Apache-2.0
"""Accepts localized poses that agree with odometry; others stay pending until further poses confirm them.

A Kalman filter over the camera pose: odometry propagates the pose and increases its covariance, a localized pose
("fix") that agrees with the prediction corrects it. A fix outside the covariances becomes a candidate, and the filter
switches to it only after several consecutive fixes agree with each other. So a single wrong fix has no effect, and a
kidnapped robot is relocalized.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from scipy.spatial.transform import Rotation

from aceg_ros.estimate import PriorPose
from aceg_ros.geometry import invert, pose_difference, skew


@dataclass(frozen=True, kw_only=True)
class OdometryGateConfig:
    """Thresholds of the gate.

    sigmas: largest Mahalanobis distance between a fix and the prediction. floor_m, floor_rad: standard deviations that
    are added to this difference for errors that the covariances do not contain, such as errors of the map.
    agreeing_fixes: number of consecutive agreeing fixes that are accepted although they contradict the prediction.
    drift: error of the odometry as a fraction of the distance and of the angle travelled.
    """

    sigmas: float = 4.0
    floor_m: float = 0.05
    floor_rad: float = 0.03
    agreeing_fixes: int = 3
    drift: float = 0.1


@dataclass(frozen=True, kw_only=True)
class GatedPose:
    """A camera pose in the map together with its pose in the odometry frame at the same stamp.

    map_from_camera, odom_from_camera: (4, 4). covariance: (6, 6) of map_from_camera, ROS order (x, y, z, rotation about
    the fixed axes of the map). stamp_s: of the image. fix_count: number of fixes fused into it, 0 for a prior.
    """

    map_from_camera: np.ndarray
    odom_from_camera: np.ndarray
    covariance: np.ndarray
    stamp_s: float
    fix_count: int = 1

    @property
    def map_from_odom(self) -> np.ndarray:
        return self.map_from_camera @ invert(self.odom_from_camera)


class Verdict(Enum):
    ACCEPTED = "accepted"
    LATE = "late"            # agrees, but is older than the current pose, which is not changed
    PENDING = "pending"      # contradicts the current pose, or there is none: further fixes have to confirm it


class OdometryGate:
    """Fuses fixes with odometry; `pose` is the accepted pose, None before the first confirmed fix."""

    def __init__(self, config: OdometryGateConfig | None = None) -> None:
        self.config = config or OdometryGateConfig()
        self._pose: GatedPose | None = None
        self._candidate: GatedPose | None = None

    @property
    def pose(self) -> GatedPose | None:
        return self._pose if self._pose is not None and self._pose.fix_count else None

    def reset(self) -> None:
        self._pose = self._candidate = None

    def set_prior(self, prior: GatedPose) -> None:
        """Set a pose that the next fix is compared with, so that it is accepted at once if it agrees.

        The prior itself is never returned as a pose.
        """
        self._pose, self._candidate = replace(prior, fix_count=0), None

    def prior(self, odom_from_camera: np.ndarray) -> PriorPose | None:
        """Return where the accepted pose, carried on by odometry to odom_from_camera (4, 4), puts the camera."""
        if self.pose is None:
            return None
        pose, covariance = predict(self.pose, odom_from_camera, self.config.drift)
        return PriorPose(map_from_camera=pose, covariance=covariance + self._floor)

    @property
    def _floor(self) -> np.ndarray:
        return np.diag(np.repeat([self.config.floor_m**2, self.config.floor_rad**2], 3))

    def update(self, fix: GatedPose) -> Verdict:
        """Check the pose localized from one image against the prediction and, if it is accepted, fuse it."""
        if self._pose is not None and self._agrees(self._pose, fix):
            if fix.stamp_s < self._pose.stamp_s:
                return Verdict.LATE
            self._pose, self._candidate = self._fuse(self._pose, fix), None
            return Verdict.ACCEPTED
        if self._candidate is not None and self._agrees(self._candidate, fix):
            self._candidate = self._fuse(self._candidate, fix)
        else:
            self._candidate = fix
        if self._candidate.fix_count < self.config.agreeing_fixes:
            return Verdict.PENDING
        self._pose, self._candidate = self._candidate, None
        return Verdict.ACCEPTED

    def _agrees(self, reference: GatedPose, fix: GatedPose) -> bool:
        pose, covariance = predict(reference, fix.odom_from_camera, self.config.drift)
        error = pose_difference(fix.map_from_camera, pose)
        return bool(error @ np.linalg.solve(covariance + fix.covariance + self._floor, error)
                    <= self.config.sigmas**2)

    def _fuse(self, reference: GatedPose, fix: GatedPose) -> GatedPose:
        if reference.fix_count == 0:
            return fix          # a prior helps to accept a fix, but must not bias it
        pose, covariance = predict(reference, fix.odom_from_camera, self.config.drift)
        # Errors of images taken at one position are correlated: without this term, the covariance would get too small.
        covariance = covariance + 0.25 * fix.covariance
        gain = covariance @ np.linalg.inv(covariance + fix.covariance)
        step = gain @ pose_difference(fix.map_from_camera, pose)
        fused = pose.copy()
        fused[:3, 3] += step[:3]
        fused[:3, :3] = Rotation.from_rotvec(step[3:]).as_matrix() @ pose[:3, :3]
        covariance = (np.eye(6) - gain) @ covariance
        return GatedPose(map_from_camera=fused, odom_from_camera=fix.odom_from_camera, stamp_s=fix.stamp_s,
                         covariance=0.5 * (covariance + covariance.T), fix_count=reference.fix_count + 1)


def predict(reference: GatedPose, odom_from_camera: np.ndarray, drift: float) -> tuple[np.ndarray, np.ndarray]:
    """Propagate a pose by odometry to odom_from_camera (4, 4). Returns the pose (4, 4) and its covariance (6, 6)."""
    moved = invert(reference.odom_from_camera) @ odom_from_camera
    pose = reference.map_from_camera @ moved
    distance_m = np.linalg.norm(moved[:3, 3])
    angle_rad = Rotation.from_matrix(moved[:3, :3]).magnitude()
    noise = np.repeat([(drift * distance_m)**2, (drift * angle_rad)**2], 3)
    lever_m = pose[:3, 3] - reference.map_from_camera[:3, 3]
    return pose, transport_covariance(reference.covariance, lever_m) + np.diag(noise)


def transport_covariance(covariance: np.ndarray, lever_m: np.ndarray) -> np.ndarray:
    """Return the covariance (6, 6) of a pose that is rigidly attached to the one whose covariance is given.

    lever_m (3,): position of the attached pose relative to the other one, in the fixed axes of both covariances.
    """
    jacobian = np.eye(6)
    jacobian[:3, 3:] = -skew(lever_m)
    return jacobian @ covariance @ jacobian.T
