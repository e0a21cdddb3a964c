# SPDX-License-Identifier: Apache-2.0
"""Averages relative poses of one image to several keyframes to its pose in the map (Reloc3r, Dong et al., CVPR 2025).

A relative pose turns the camera and tells a direction to move in, but not how far. Each pair so gives the rotation of
the image, and a line through the keyframe that its camera centre is on; where the lines meet is the centre.
`average_published` does that as in the paper. `average_robustly` leaves out pairs that disagree, and tells how well the
lines determine the centre: with one keyframe, or with lines that are nearly parallel, there is no scale.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from scipy.spatial.transform import Rotation

from aceg_ros.estimate import Status
from aceg_ros.pose.gates import Rejection

# Lines are parallel if this share of them is, within this many standard deviations: a centre near a keyframe that some
# of them happen to agree with would otherwise look well determined.
PARALLEL_SHARE, PARALLEL_SIGMAS = 0.75, 2.0


@dataclass(frozen=True, kw_only=True)
class RelativePoses:
    """The relative poses of an image to K keyframes.

    Attributes:
        map_from_keyframe: (K, 4, 4) poses of the keyframes.
        rotations: (K, 3, 3), keyframe_from_camera.
        directions: (K, 3) from the centre of each keyframe to that of the camera, in the keyframe, of any length.
        sigma_rad: (K,) standard deviation of the directions, radians.
        lengths_m: (K,) known distances of the centres, in units of the map; NaN where unknown.
    """

    map_from_keyframe: np.ndarray
    rotations: np.ndarray
    directions: np.ndarray
    sigma_rad: np.ndarray
    lengths_m: np.ndarray

    def __len__(self) -> int:
        return len(self.rotations)

    @classmethod
    def from_poses(cls, map_from_keyframe: np.ndarray, keyframe_from_camera: np.ndarray, sigma_rad: float = 0.05
                   ) -> RelativePoses:
        """Make them of poses (K, 4, 4) whose translations have no scale."""
        count = len(keyframe_from_camera)
        return cls(map_from_keyframe=map_from_keyframe, rotations=keyframe_from_camera[:, :3, :3],
                   directions=keyframe_from_camera[:, :3, 3], sigma_rad=np.full(count, sigma_rad),
                   lengths_m=np.full(count, np.nan))

    def subset(self, indices: np.ndarray) -> RelativePoses:
        """Return some of the pairs."""
        return RelativePoses(**{name: getattr(self, name)[indices] for name in self.__dataclass_fields__})

    @property
    def map_rotations(self) -> np.ndarray:
        """The rotations (K, 3, 3) of the camera in the map, one of each pair."""
        return self.map_from_keyframe[:, :3, :3] @ self.rotations

    @property
    def centres(self) -> np.ndarray:
        """The centres (K, 3) of the keyframes in the map."""
        return self.map_from_keyframe[:, :3, 3]

    @property
    def map_directions(self) -> np.ndarray:
        """The directions (K, 3) in the map, of unit length."""
        turned = np.einsum("kij,kj->ki", self.map_from_keyframe[:, :3, :3], self.directions)
        return turned / np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-12)


@dataclass(frozen=True, kw_only=True)
class AveragingConfig:
    """When pairs agree, and what they must determine.

    Attributes:
        max_rotation_rad: largest angle between the rotation of a pair and that of the pose.
        max_direction_sigmas: largest angle between the direction of a pair and the centre, in standard deviations.
        min_sigma_rad: standard deviations of directions are at least this.
        min_pairs: smallest number of pairs that agree.
        min_share: smallest share of all pairs that agree.
        max_position_std_share: largest standard deviation of the centre, as a share of its median distance from the
            keyframes, or of the extent of these where that is larger; above it, the lines have no scale.
        rotation_floor_rad: smallest standard deviation of the rotation, whatever the spread.
        iterations: Gauss-Newton steps.
    """

    max_rotation_rad: float = 0.2
    max_direction_sigmas: float = 3.0
    min_sigma_rad: float = 0.02
    min_pairs: int = 2
    min_share: float = 0.0
    max_position_std_share: float = 0.25
    rotation_floor_rad: float = 0.002
    iterations: int = 10


@dataclass(frozen=True, kw_only=True)
class AveragedPose:
    """A pose from several pairs.

    map_from_camera (4, 4); covariance (6, 6) in ROS order from the spread of the pairs; agreeing: indices of the pairs
    that agree with it.
    """

    map_from_camera: np.ndarray
    covariance: np.ndarray
    agreeing: np.ndarray = field(repr=False)


def average_published(pairs: RelativePoses) -> np.ndarray:
    """Average as published: the component-wise median of the quaternions, and the point nearest to all lines.

    Returns map_from_camera (4, 4). Raises ValueError if the lines do not determine a point.
    """
    quaternions = Rotation.from_matrix(pairs.map_rotations).as_quat()
    quaternions *= np.where(quaternions @ quaternions[0] < 0.0, -1.0, 1.0)[:, None]     # q and -q are one rotation
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_quat(np.median(quaternions, axis=0)).as_matrix()
    try:
        pose[:3, 3] = intersect_lines(pairs.centres, pairs.map_directions, np.ones(len(pairs)))
    except np.linalg.LinAlgError:
        raise ValueError("the lines are parallel") from None
    return pose


def intersect_lines(points: np.ndarray, directions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the point (3,) nearest to lines, by weighted least squares of the distances.

    points, directions: (K, 3), the latter of unit length. weights: (K,). Raises LinAlgError if the lines are parallel.
    """
    across = weights[:, None, None] * _projectors(directions)
    return np.linalg.solve(across.sum(0), np.einsum("kij,kj->i", across, points))


def average_robustly(pairs: RelativePoses, config: AveragingConfig | None = None) -> AveragedPose | Rejection:
    """Average the pairs that agree in rotation and whose lines meet in front of the keyframes.

    Returns a rejection if too few agree (NO_CONSENSUS), or if their lines do not determine how far the camera is from
    the keyframes (NO_SCALE).
    """
    config = config or AveragingConfig()
    pairs = pairs.subset(np.flatnonzero(np.isfinite(pairs.map_rotations).all((1, 2))
                                        & np.isfinite(pairs.directions).all(1)))
    needed = max(config.min_pairs, int(np.ceil(config.min_share * len(pairs))))
    if len(pairs) == 0:
        return Rejection(status=Status.NO_CONSENSUS, message="no keyframe has a relative pose to the image")
    rotation, agreeing = consensus_rotation(pairs.map_rotations, config)
    known = np.isfinite(pairs.lengths_m[agreeing]).any()
    if len(agreeing) < 2 and not known and len(pairs) < 2:
        return Rejection(status=Status.NO_SCALE, message="one keyframe tells the rotation and the direction of the"
                         " camera, but not its distance: at least two keyframes at different places are needed")
    if len(agreeing) < needed:
        return Rejection(status=Status.NO_CONSENSUS, message=f"{len(agreeing)} of {len(pairs)} relative poses agree in"
                         f" rotation, need {needed}")
    found = _consensus_centre(pairs.subset(agreeing), config)
    if isinstance(found, Rejection):
        return found
    centre, meeting = found
    agreeing = agreeing[meeting]
    if len(agreeing) < needed:
        return Rejection(status=Status.NO_CONSENSUS, message=f"{len(agreeing)} of {len(pairs)} directions meet in a"
                         f" point, need {needed}")
    kept = pairs.subset(agreeing)
    covariance, rejection = _covariance(kept, rotation, centre, config)
    if rejection is not None:
        return rejection
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, centre
    return AveragedPose(map_from_camera=pose, covariance=covariance, agreeing=agreeing)


def consensus_rotation(rotations: np.ndarray, config: AveragingConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the rotation (3, 3) that most of (K, 3, 3) agree with, and which these are, as indices.

    Starts at the one with the most others nearby, and goes to their L1 mean by Weiszfeld's algorithm (Hartley et al.,
    Rotation Averaging, IJCV 2013), which one outlier among them moves little.
    """
    between = np.linalg.norm(np.stack([_rotation_errors(rotations, rotation) for rotation in rotations]), axis=2)
    near = between < config.max_rotation_rad
    # Of equally many, the one that is nearest to the others.
    best = int(np.argmax(near.sum(1) - np.where(near, between, 0.0).sum(1) / (10.0 * config.max_rotation_rad
                                                                              * len(rotations))))
    mean, agreeing = rotations[best], np.flatnonzero(near[best])
    for _ in range(config.iterations):
        errors = _rotation_errors(rotations[agreeing], mean)
        weights = 1.0 / np.maximum(np.linalg.norm(errors, axis=1), 1e-6)
        mean = Rotation.from_rotvec((weights[:, None] * errors).sum(0) / weights.sum()).as_matrix() @ mean
        agreeing = np.flatnonzero(np.linalg.norm(_rotation_errors(rotations, mean), axis=1) < config.max_rotation_rad)
        if len(agreeing) == 0:
            return rotations[best], np.flatnonzero(near[best])
    return mean, agreeing


def _rotation_errors(rotations: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the vectors (K, 3), in the map, that turn the mean to each rotation."""
    return Rotation.from_matrix(rotations @ mean.T).as_rotvec()


def _consensus_centre(pairs: RelativePoses, config: AveragingConfig) -> tuple[np.ndarray, np.ndarray] | Rejection:
    """Return the centre (3,) that most directions point to, and which these are.

    Tries where every two lines meet, and every known distance; the best is refined by Gauss-Newton on the angles.
    """
    candidates = meeting_points(pairs)
    if len(candidates) == 0 or (_parallel_share(pairs, config) >= PARALLEL_SHARE
                                and not np.isfinite(pairs.lengths_m).any()):
        return Rejection(status=Status.NO_SCALE, message="the directions to the camera from all keyframes are parallel:"
                         " they do not tell how far it is")
    costs = np.stack([_costs(pairs, candidate, config) for candidate in candidates])
    centre = candidates[int(np.argmin(costs.sum(1)))]
    for _ in range(config.iterations):
        step = _gauss_newton_step(pairs, centre, config)
        if step is None:
            break
        moved = centre + step
        if _costs(pairs, moved, config).sum() > _costs(pairs, centre, config).sum():
            break
        centre = moved
    return centre, np.flatnonzero(_costs(pairs, centre, config) < 0.5)


def _parallel_share(pairs: RelativePoses, config: AveragingConfig) -> float:
    """Return the largest share of directions that are parallel as far as their noise tells."""
    angles = np.arccos(np.clip(pairs.map_directions @ pairs.map_directions.T, -1.0, 1.0))
    sigmas = _sigmas(pairs, config)
    return float((angles < PARALLEL_SIGMAS * np.hypot(sigmas[:, None], sigmas)).mean(1).max())


def meeting_points(pairs: RelativePoses) -> np.ndarray:
    """Return points (N, 3) where two lines meet in front of both keyframes, and those of known distances."""
    centres, directions = pairs.centres, pairs.map_directions
    found = [centres[index] + pairs.lengths_m[index] * directions[index]
             for index in np.flatnonzero(np.isfinite(pairs.lengths_m))]
    for both in combinations(range(len(pairs)), 2):
        rows = list(both)
        cosine = float(directions[rows[0]] @ directions[rows[1]])
        if 1.0 - cosine**2 < 1e-8:
            continue
        point = intersect_lines(centres[rows], directions[rows], np.ones(2))
        if (((point - centres[rows]) * directions[rows]).sum(1) > 0.0).all():
            found.append(point)
    return np.array(found).reshape(-1, 3)


def _sigmas(pairs: RelativePoses, config: AveragingConfig) -> np.ndarray:
    return np.maximum(pairs.sigma_rad, config.min_sigma_rad)


def _costs(pairs: RelativePoses, centre: np.ndarray, config: AveragingConfig) -> np.ndarray:
    """Return the Geman-McClure cost (K,) of each direction; it is 0.5 at max_direction_sigmas, and 1 behind."""
    ratio = np.square(_angles(pairs, centre) / (config.max_direction_sigmas * _sigmas(pairs, config)))
    return ratio / (1.0 + ratio)


def _information(pairs: RelativePoses, centre: np.ndarray, config: AveragingConfig, directions: np.ndarray
                 ) -> np.ndarray:
    """Return the information (K, 3, 3) of each pair about the centre: none along its direction, little from afar."""
    distance = np.linalg.norm(centre - pairs.centres, axis=1)
    scale = np.maximum(distance, 1e-6 * max(float(distance.max()), 1e-9)) * _sigmas(pairs, config)
    return _projectors(directions) / np.square(scale)[:, None, None]


def _gauss_newton_step(pairs: RelativePoses, centre: np.ndarray, config: AveragingConfig) -> np.ndarray | None:
    weights = np.square(1.0 - _costs(pairs, centre, config))
    information = weights[:, None, None] * _information(pairs, centre, config, pairs.map_directions)
    away = centre - pairs.centres
    total, gradient = information.sum(0), np.einsum("kij,kj->i", information, away)
    along, mean = _length_terms(pairs, centre, config)
    try:
        return -np.linalg.solve(total + along, gradient + mean)
    except np.linalg.LinAlgError:
        return None


def _length_terms(pairs: RelativePoses, centre: np.ndarray, config: AveragingConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return information (3, 3) and gradient (3,) of the known distances, as certain as the directions, robustly."""
    information, gradient = np.zeros((3, 3)), np.zeros(3)
    away = centre - pairs.centres
    for index in np.flatnonzero(np.isfinite(pairs.lengths_m)):
        length = float(np.linalg.norm(away[index]))
        sigma = float(_sigmas(pairs, config)[index]) * max(float(pairs.lengths_m[index]), 1e-6)
        error = (length - float(pairs.lengths_m[index])) / sigma
        weight = 1.0 / np.square(1.0 + np.square(error / config.max_direction_sigmas)) / sigma**2
        unit = away[index] / max(length, 1e-9)
        information += weight * np.outer(unit, unit)
        gradient += weight * error * sigma * unit
    return information, gradient


def _covariance(pairs: RelativePoses, rotation: np.ndarray, centre: np.ndarray, config: AveragingConfig
                ) -> tuple[np.ndarray, Rejection | None]:
    """Return the covariance (6, 6) of pairs that agree, or a rejection if they leave the centre undetermined."""
    # Directions to the centre, not the predicted ones: of parallel lines, noise would pretend to an intersection.
    away = centre - pairs.centres
    true_directions = away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-12)
    information = (_information(pairs, centre, config, true_directions).sum(0)
                   + _length_terms(pairs, centre, config)[0])
    values, vectors = np.linalg.eigh(information)
    distance = float(np.median(np.linalg.norm(centre - pairs.centres, axis=1)))
    reference = max(distance, float(np.linalg.norm(np.ptp(pairs.centres, axis=0))))
    std = 1.0 / np.sqrt(np.maximum(values, 1e-18))
    if std[0] > config.max_position_std_share * reference:
        share = min(std[0] / max(reference, 1e-12), 1e3)
        return np.zeros((6, 6)), Rejection(
            status=Status.NO_SCALE, message=f"{len(pairs)} keyframes tell the direction of the camera, but its distance"
            f" only to {share:.0%}: their lines to it are nearly parallel")
    # The spread of the directions, where it is larger than was assumed.
    excess = float(np.sum(np.square(_angles(pairs, centre) / _sigmas(pairs, config)))) / max(2 * len(pairs) - 3, 1)
    position = (vectors * np.square(std)) @ vectors.T * max(excess, 1.0)
    errors = _rotation_errors(pairs.map_rotations, rotation)
    variance = np.square(errors).sum() / max(3 * (len(pairs) - 1), 1) / len(pairs)
    covariance = np.zeros((6, 6))
    covariance[:3, :3] = position
    covariance[3:, 3:] = np.eye(3) * (variance + config.rotation_floor_rad**2)
    return covariance, None


def _angles(pairs: RelativePoses, centre: np.ndarray) -> np.ndarray:
    """Return the angles (K,) between the directions and the centre."""
    away = centre - pairs.centres
    return np.arctan2(np.linalg.norm(np.cross(pairs.map_directions, away), axis=1),
                      (away * pairs.map_directions).sum(1))


def _projectors(directions: np.ndarray) -> np.ndarray:
    """Return the projections (K, 3, 3) to the planes across unit vectors (K, 3)."""
    return np.eye(3) - directions[:, :, None] * directions[:, None]
