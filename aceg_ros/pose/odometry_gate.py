"""Which fixes may be believed: each is compared with what odometry and the fixes before it predict.

A small filter over the pose of the camera: odometry moves the belief along and widens it, a fix that agrees narrows
it. A fix that the covariances do not explain is kept aside; only when several of them agree with each other, the
belief jumps there. One wrong pose therefore never teleports a robot, and a robot that was carried away is found again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from scipy.spatial.transform import Rotation

from aceg_ros.geometry import invert, pose_difference, skew


@dataclass(frozen=True)
class TrackingConfig:
    """sigmas: how far, in standard deviations of fix and prediction together, a fix may lie from the prediction.

    floor_m, floor_rad: standard deviations below which the difference of the two is never taken to be known; for what
    covariances leave out, such as errors of the map. agreeing_fixes: as many in a row, at one place, are believed
    although they lie elsewhere. drift: error of the odometry, as a share of the way and of the turn.
    """

    sigmas: float = 4.0
    floor_m: float = 0.05
    floor_rad: float = 0.03
    agreeing_fixes: int = 3
    drift: float = 0.1


@dataclass(frozen=True)
class Belief:
    """Where the camera is, and where odometry had it at that moment.

    map_from_camera, odom_from_camera: (4, 4). covariance: (6, 6) of map_from_camera, ROS order (x, y, z, rotation about
    the fixed axes of the map). stamp_s: of the fix. fixes: that it rests on, 0 for a prior.
    """

    map_from_camera: np.ndarray
    odom_from_camera: np.ndarray
    covariance: np.ndarray
    stamp_s: float
    fixes: int = 1

    @property
    def map_from_odom(self) -> np.ndarray:
        return self.map_from_camera @ invert(self.odom_from_camera)


class Verdict(Enum):
    BELIEVED = "believed"
    LATE = "late"            # agrees, but is older than the belief, which stays as it is
    WAITING = "waiting"      # lies elsewhere: others have to confirm it


class Tracker:
    """Feed it every fix; `belief` is what the robot may act upon, None before the first confirmed fix."""

    def __init__(self, config: TrackingConfig | None = None) -> None:
        self.config = config or TrackingConfig()
        self._belief: Belief | None = None
        self._candidate: Belief | None = None

    @property
    def belief(self) -> Belief | None:
        return self._belief if self._belief is not None and self._belief.fixes else None

    def reset(self) -> None:
        self._belief = self._candidate = None

    def expect(self, prior: Belief) -> None:
        """Take a place as likely: a fix that agrees with it is believed at once. It is no pose by itself."""
        self._belief, self._candidate = replace(prior, fixes=0), None

    def update(self, fix: Belief) -> Verdict:
        """fix: what one image said, with the odometry at its stamp."""
        if self._belief is not None and self._agrees(self._belief, fix):
            if fix.stamp_s < self._belief.stamp_s:
                return Verdict.LATE
            self._belief, self._candidate = self._fused(self._belief, fix), None
            return Verdict.BELIEVED
        if self._candidate is not None and self._agrees(self._candidate, fix):
            self._candidate = self._fused(self._candidate, fix)
        else:
            self._candidate = fix
        if self._candidate.fixes < self.config.agreeing_fixes:
            return Verdict.WAITING
        self._belief, self._candidate = self._candidate, None
        return Verdict.BELIEVED

    def _agrees(self, belief: Belief, fix: Belief) -> bool:
        pose, covariance = predict(belief, fix.odom_from_camera, self.config.drift)
        floor = np.repeat([self.config.floor_m**2, self.config.floor_rad**2], 3)
        error = pose_difference(fix.map_from_camera, pose)
        return bool(error @ np.linalg.solve(covariance + fix.covariance + np.diag(floor), error)
                    <= self.config.sigmas**2)

    def _fused(self, belief: Belief, fix: Belief) -> Belief:
        if belief.fixes == 0:
            return fix          # a prior helps to believe, it does not pull
        pose, covariance = predict(belief, fix.odom_from_camera, self.config.drift)
        # Pictures from one place err alike: however many they are, they are never worth more than a few.
        covariance = covariance + 0.25 * fix.covariance
        gain = covariance @ np.linalg.inv(covariance + fix.covariance)
        step = gain @ pose_difference(fix.map_from_camera, pose)
        fused = pose.copy()
        fused[:3, 3] += step[:3]
        fused[:3, :3] = Rotation.from_rotvec(step[3:]).as_matrix() @ pose[:3, :3]
        covariance = (np.eye(6) - gain) @ covariance
        return Belief(fused, fix.odom_from_camera, 0.5 * (covariance + covariance.T), fix.stamp_s, belief.fixes + 1)


def predict(belief: Belief, odom_from_camera: np.ndarray, drift: float) -> tuple[np.ndarray, np.ndarray]:
    """The believed pose (4, 4) moved along with the odometry, and its covariance (6, 6)."""
    moved = invert(belief.odom_from_camera) @ odom_from_camera
    pose = belief.map_from_camera @ moved
    way_m = np.linalg.norm(moved[:3, 3])
    turn_rad = Rotation.from_matrix(moved[:3, :3]).magnitude()
    noise = np.repeat([(drift * way_m)**2, (drift * turn_rad)**2], 3)
    return pose, carried(belief.covariance, pose[:3, 3] - belief.map_from_camera[:3, 3]) + np.diag(noise)


def carried(covariance: np.ndarray, lever_m: np.ndarray) -> np.ndarray:
    """The covariance (6, 6) of a pose that is rigidly joined to another one: lever_m (3,) is its position seen from
    there, in the fixed axes in which both covariances are."""
    jacobian = np.eye(6)
    jacobian[:3, 3:] = -skew(lever_m)
    return jacobian @ covariance @ jacobian.T
