# SPDX-License-Identifier: Apache-2.0
"""From relative poses with their matches to one pose that is accepted or rejected.

Motion averaging gives rotation and candidates for the centre, the matches of all keyframes decide between them and
refine, and the pose is accepted if the matches of several keyframes agree with it more than chance explains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from aceg_ros.camera import Camera
from aceg_ros.estimate import ImageCorrespondences, PoseEstimate, Status
from aceg_ros.geometry import invert
from aceg_ros.pose.config import SolverConfig
from aceg_ros.pose.correspondences import Correspondences
from aceg_ros.pose.epipolar import PairMatches, log10_nfa
from aceg_ros.pose.gates import Rejection
from aceg_ros.pose.hub_points import HubPoints, find_hub_points
from aceg_ros.pose.joint_pose import JointConfig, JointPose, estimate_jointly
from aceg_ros.pose.motion_averaging import (
    AveragingConfig,
    RelativePoses,
    average_robustly,
    consensus_rotation,
    meeting_points,
)
from aceg_ros.pose.solver import Hypothesis, estimate_pose

INLIER_PX = 2.0
NEAR_SHARES = (0.01, 0.03, 0.1)     # distances of candidates from a keyframe, as shares of the keyframes' extent


@dataclass(frozen=True, kw_only=True)
class MatchedPoseConfig:
    """What a pose must show to be accepted.

    Attributes:
        averaging: of the relative poses.
        joint: of the estimation on all matches.
        solver: RANSAC on the points of keypoints that match in several keyframes.
        max_log10_nfa: significance of a keyframe's matches under the pose from which the keyframe confirms it.
        min_keyframes: number of keyframes that must confirm the pose; one is enough if depths were measured in it.
        max_position_std_share: largest standard deviation of the position, as a share of its median distance from the
            confirming keyframes, of their extent, or of the median depth where that was measured, the largest of these.
        max_rotation_std_rad: largest standard deviation of the rotation.
        max_competing_share: largest significance of keyframes that contradict the pose, as a share of that of those
            that confirm it.
        covariance_factor: by which covariances are multiplied: the keyframes of a map, each localized by the others,
            tell where the matches of an image promise too much. Not below 1: later images are less like the keyframes
            than these are like each other.
    """

    averaging: AveragingConfig = field(default_factory=AveragingConfig)
    joint: JointConfig = field(default_factory=JointConfig)
    solver: SolverConfig = field(default_factory=lambda: SolverConfig(ransac_threshold_px=8.0,
                                                                      fine_scales_px=(6.0, 2.0)))
    max_log10_nfa: float = -5.0
    min_keyframes: int = 2
    max_position_std_share: float = 0.05
    max_rotation_std_rad: float = 0.1
    max_competing_share: float = 0.5
    covariance_factor: float = 1.0


def locate_by_matches(relative: RelativePoses, matches: Sequence[PairMatches], camera: Camera,
                      config: MatchedPoseConfig) -> PoseEstimate:
    """Estimate and verify a pose.

    Args:
        relative: relative poses to K keyframes, one of each pair.
        matches: of the pairs.
        camera: of the rectified image.
        config: thresholds.
    """
    if len(matches) == 0:
        return PoseEstimate(status=Status.NO_CONSENSUS, message="no keyframe has enough matches that agree with a"
                            " relative pose")
    rotation, agreeing = consensus_rotation(relative.map_rotations, config.averaging)
    hub = find_hub_points(matches)
    measured = any(np.isfinite(pair.key_depths_m).any() for pair in matches)
    shown = ImageCorrespondences(pixels=hub.pixels, points=hub.points, camera=camera)
    if len(agreeing) < config.min_keyframes and not measured:
        averaged = average_robustly(relative, config.averaging)
        reason = averaged if isinstance(averaged, Rejection) else Rejection(
            status=Status.NO_CONSENSUS, message=f"{len(agreeing)} of {len(relative)} keyframes agree, need"
            f" {config.min_keyframes}")
        return PoseEstimate(status=reason.status, message=reason.message, correspondences=shown)
    used = [matches[index] for index in agreeing.tolist()]
    found = estimate_jointly(rotation, _centres(relative.subset(agreeing)), used, config.joint, hub=hub,
                             poses=_hub_poses(hub, camera, config))
    return _verified(found, matches, shown, measured=measured, config=config)


def _centres(pairs: RelativePoses) -> np.ndarray:
    """Return candidates (N, 3) for the centre: where lines meet, and near each keyframe, in its direction.

    A camera near a keyframe has directions to the others that are nearly the same, and so are poor intersections.
    """
    spread = max(float(np.linalg.norm(np.ptp(pairs.centres, axis=0))), 1e-9)
    near = pairs.centres + np.array(NEAR_SHARES)[:, None, None] * spread * pairs.map_directions
    return np.concatenate([meeting_points(pairs), near.reshape(-1, 3)])


def _hub_poses(hub: HubPoints, camera: Camera, config: MatchedPoseConfig) -> list[np.ndarray]:
    """Return the pose (4, 4) of RANSAC on the points, if it finds one."""
    found = estimate_pose(Correspondences(pixels=hub.pixels, points=hub.points, camera=camera,
                                          weights=1.0 / (1.0 + np.square(hub.sigma_px))), config.solver,
                          seed=config.joint.seed)
    return [found.map_from_camera] if isinstance(found, Hypothesis) else []


def _verified(found: JointPose, matches: Sequence[PairMatches], shown: ImageCorrespondences, *, measured: bool,
              config: MatchedPoseConfig) -> PoseEstimate:
    errors = [pair.errors_px(invert(pair.map_from_keyframe) @ found.map_from_camera) for pair in matches]
    significance = np.array([log10_nfa(pair, error) for pair, error in zip(matches, errors, strict=True)])
    confirming = np.flatnonzero(significance < config.max_log10_nfa).tolist()
    keypoints = {int(keypoint) for index in confirming
                 for keypoint in matches[index].keypoints[np.abs(errors[index]) < INLIER_PX]}
    every = len({int(keypoint) for pair in matches for keypoint in pair.keypoints})
    rejection = (_check_confirmation(len(confirming), len(matches), measured, config)
                 or _check_competitors(significance, matches, config)
                 or _check_scale(found, [matches[index] for index in confirming], config))
    ratio = len(keypoints) / max(every, 1)
    if rejection is not None:
        return PoseEstimate(status=rejection.status, message=rejection.message, inliers=len(keypoints),
                            inlier_ratio=ratio, correspondences=shown)
    hub_errors = HubPoints(pixels=shown.pixels, points=shown.points, sigma_px=np.zeros(len(shown.points))).errors_px(
        found.map_from_camera, shown.camera.K).reshape(2, -1)
    inliers = np.flatnonzero(np.square(hub_errors).sum(0) < config.solver.inlier_threshold_px**2)
    inlying = np.concatenate([errors[index][np.abs(errors[index]) < INLIER_PX] for index in confirming])
    return PoseEstimate(
        status=Status.ACCEPTED, message=f"{len(keypoints)} keypoints agree with {len(confirming)} of {len(matches)}"
        " keyframes", map_from_camera=found.map_from_camera, inliers=len(keypoints),
        covariance=found.covariance * config.covariance_factor,
        inlier_ratio=ratio, inlier_indices=inliers, reprojection_rms_px=float(np.sqrt(np.square(inlying).mean())),
        correspondences=shown)


def _check_confirmation(count: int, total: int, measured: bool, config: MatchedPoseConfig) -> Rejection | None:
    needed = 1 if measured else config.min_keyframes
    if count >= needed:
        return None
    if count == 1:
        return Rejection(status=Status.NO_SCALE, message=f"the matches of 1 of {total} keyframes agree with the pose:"
                         f" it tells the direction of the camera, but not its distance, which takes {needed}")
    return Rejection(status=Status.NO_CONSENSUS, message=f"the matches of {count} of {total} keyframes agree with the"
                     f" pose, need {needed}")


def _check_competitors(significance: np.ndarray, matches: Sequence[PairMatches], config: MatchedPoseConfig
                       ) -> Rejection | None:
    """Reject a pose that other keyframes contradict whose own relative poses are significant."""
    confirming = significance < config.max_log10_nfa
    own = np.array([pair.own_log10_nfa for pair in matches])
    contradicting = (significance > -1.0) & (own < config.max_log10_nfa)
    for_it, against = float(-significance[confirming].sum()), float(-own[contradicting].sum())
    if against <= config.max_competing_share * for_it:
        return None
    return Rejection(status=Status.AMBIGUOUS_POSE, message=f"{int(contradicting.sum())} keyframes contradict the pose,"
                     f" {int(confirming.sum())} confirm it: the scene may repeat itself")


def _check_scale(found: JointPose, confirming: Sequence[PairMatches], config: MatchedPoseConfig) -> Rejection | None:
    centres = np.stack([pair.map_from_keyframe[:3, 3] for pair in confirming])
    distance = float(np.median(np.linalg.norm(centres - found.map_from_camera[:3, 3], axis=1)))
    reference = max(distance, float(np.linalg.norm(np.ptp(centres, axis=0))), 1e-9)
    depths = np.concatenate([pair.key_depths_m for pair in confirming])
    if np.isfinite(depths).any():                       # then a near keyframe is as good as any
        reference = max(reference, float(np.nanmedian(depths)))
    variances = found.covariance * config.covariance_factor
    if not np.isfinite(variances).all():
        return Rejection(status=Status.UNCERTAIN_POSE, message="the matches do not determine the pose")
    std = float(np.sqrt(max(np.linalg.eigvalsh(variances[:3, :3])[-1], 0.0)))
    turn = float(np.sqrt(max(np.linalg.eigvalsh(variances[3:, 3:])[-1], 0.0)))
    if std > config.max_position_std_share * reference:
        return Rejection(status=Status.NO_SCALE, message=f"{len(confirming)} keyframes tell the direction of the"
                         f" camera, but its distance only to {std / reference:.0%}")
    if turn > config.max_rotation_std_rad:
        return Rejection(status=Status.UNCERTAIN_POSE, message=f"the rotation is uncertain by {np.degrees(turn):.0f}"
                         " degrees")
    return None
