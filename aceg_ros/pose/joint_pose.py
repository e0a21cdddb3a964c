# SPDX-License-Identifier: Apache-2.0
"""A pose from the matches of an image with several keyframes at once, without landmarks.

Each match has to lie on the epipolar line of its keypoint in the other image. The matches of one pair determine
rotation and direction; those of several keyframes with known poses determine where the camera is, since their epipolar
lines change with its centre. So what motion averaging finds is refined on all matches, which is several times more
accurate: the directions of single pairs are poor where the scene is far away or flat.

An epipolar line is taken from the point at infinity to the smallest depth that there is. Otherwise the centre of a
keyframe would attract the camera: so near to it, any direction is possible, and one fits the noise of its matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from aceg_ros.geometry import invert, pixel_rays, skew
from aceg_ros.pose.covariance import bounded_influence
from aceg_ros.pose.epipolar import STEP, PairMatches
from aceg_ros.pose.hub_points import HubPoints
from aceg_ros.pose.refinement import geman_mcclure

OUTLIER_SCALES = 10.0               # errors beyond tell nothing of the covariance, whatever their derivatives
# Nothing is nearer than this share of the distance of the nearest points, and a match is off by as much.
NEAREST_SHARE, NEAREST_QUANTILE, MIN_POINTS, SLACK_PX = 0.25, 0.05, 10, 2.0


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """matches: largest number of matches, and of points, that are used. samples: candidates for the centre, from three
    matches each. starts: of these, how many are refined, on matches_of_starts matches; the best is then refined on all.
    scales_px: decreasing scales of the robust loss. steps: at each scale. correlation: of the errors of two matches,
    for the covariance: a thousand keypoints of one image are not a thousand independent measurements. max_leverage: of
    one match there, of the six degrees of freedom."""

    matches: int = 1200
    matches_of_starts: int = 300
    correlation: float = 0.3
    samples: int = 200
    starts: int = 4
    scales_px: tuple[float, ...] = (4.0, 2.0, 1.0)
    steps: int = 3
    max_leverage: float = 0.1
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class JointPose:
    """A pose refined on the matches of several keyframes.

    map_from_camera (4, 4); covariance (6, 6) in ROS order; cost: mean robust loss.
    """

    map_from_camera: np.ndarray
    covariance: np.ndarray
    cost: float


def estimate_jointly(rotation: np.ndarray, centres: np.ndarray, pairs: Sequence[PairMatches],
                     config: JointConfig | None = None, *, hub: HubPoints | None = None,
                     poses: Sequence[np.ndarray] = ()) -> JointPose:
    """Estimate the pose that most matches agree with.

    Args:
        rotation: (3, 3) of the camera in the map, about right.
        centres: (N, 3) candidates for its centre.
        pairs: matches with keyframes, most of which are right; at least three.
        config: sizes.
        hub: points of keypoints that match in several keyframes.
        poses: further candidates (4, 4), which are always refined.
    """
    config = config or JointConfig()
    used, nearest = _subset(pairs, config), _nearest_distance(pairs, hub)
    rows = _Rows.from_pairs(rotation, used, nearest)
    candidates = np.concatenate([centres, rows.sample_centres(config.samples, config.seed)])
    order = np.argsort(rows.costs(candidates, config.scales_px[0]), kind="stable")
    starts = [np.array(pose, np.float64) for pose in poses]
    for centre in _distinct(candidates[order], rows.centres, config.starts):
        start = np.eye(4)
        start[:3, :3], start[:3, 3] = rotation, centre
        starts.append(start)
    few = _subset(pairs, replace(config, matches=config.matches_of_starts))
    coarse = [_Problem.start(start, few, None if hub is None else hub.best(config.matches_of_starts), nearest).refined(
        config) for start in starts]
    best = min(coarse, key=lambda problem: problem.cost(config.scales_px[-1]))
    final = _Problem.start(best.pose, used, None if hub is None else hub.best(config.matches), nearest).refined(config)
    return JointPose(map_from_camera=final.pose, covariance=final.covariance(config),
                     cost=final.cost(config.scales_px[-1]))


def _nearest_distance(pairs: Sequence[PairMatches], hub: HubPoints | None) -> float:
    """Return a distance that nothing is nearer to a keyframe; 0 if there are too few points to tell."""
    if hub is None or len(hub) < MIN_POINTS:
        return 0.0
    centres = np.stack([pair.map_from_keyframe[:3, 3] for pair in pairs])
    distances = np.linalg.norm(hub.points[:, None] - centres, axis=2)
    return NEAREST_SHARE * float(np.quantile(distances, NEAREST_QUANTILE))


def _subset(pairs: Sequence[PairMatches], config: JointConfig) -> list[PairMatches]:
    """Return pairs with at most config.matches in all, drawn at random."""
    total = sum(len(pair) for pair in pairs)
    if total <= config.matches:
        return list(pairs)
    rng = np.random.default_rng(config.seed)
    return [pair.subset(np.sort(rng.permutation(len(pair))[:max(round(len(pair) * config.matches / total), 3)]))
            for pair in pairs]


def _distinct(candidates: np.ndarray, centres: np.ndarray, count: int) -> list[np.ndarray]:
    """Return the first `count` candidates that are not next to one before, as seen from the keyframes."""
    near = 0.05 * max(float(np.linalg.norm(np.ptp(centres, axis=0))), 1e-9)
    chosen: list[np.ndarray] = []
    for candidate in candidates:
        if all(np.linalg.norm(candidate - other) > near for other in chosen):
            chosen.append(candidate)
        if len(chosen) == count:
            break
    return chosen


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Matches in the map frame, given the rotation of the camera: centres (M, 3) of their keyframes, rays (M, 3) of the
    keyframe and of the image, normals (M, 3) of the planes through them, which the camera's centre is on."""

    centres: np.ndarray
    key_rays: np.ndarray
    rays: np.ndarray
    normals: np.ndarray
    focal_px: float
    nearest: float

    @classmethod
    def from_pairs(cls, rotation: np.ndarray, pairs: Sequence[PairMatches], nearest: float) -> _Rows:
        key_rays = np.concatenate([_unit_rays(pair.key_pixels, pair.key_k) @ pair.map_from_keyframe[:3, :3].T
                                   for pair in pairs])
        rays = np.concatenate([_unit_rays(pair.pixels, pair.camera_k) @ rotation.T for pair in pairs])
        centres = np.repeat([pair.map_from_keyframe[:3, 3] for pair in pairs], [len(pair) for pair in pairs], axis=0)
        return cls(centres=centres, key_rays=key_rays, rays=rays, normals=np.cross(key_rays, rays), nearest=nearest,
                   focal_px=float(pairs[0].camera_k[0, 0]))

    def sample_centres(self, count: int, seed: int) -> np.ndarray:
        """Return points (N, 3) that each lie on the planes of three matches."""
        rng = np.random.default_rng(seed)
        chosen = rng.integers(0, len(self.normals), (count, 3))
        planes = self.normals[chosen]
        offsets = (planes * self.centres[chosen]).sum(2)
        solvable = np.abs(np.linalg.det(planes)) > 1e-9
        return np.linalg.solve(planes[solvable], offsets[solvable][..., None])[..., 0]

    def costs(self, centres: np.ndarray, scale_px: float) -> np.ndarray:
        """Return the mean Geman-McClure loss (N,) of the epipolar errors for each centre; of points behind, 1."""
        away = centres[:, None] - self.centres
        crossed, crossed_key = np.cross(away, self.rays), np.cross(away, self.key_rays)
        length = np.sqrt(np.square(crossed).sum(2) + np.square(crossed_key).sum(2))
        error = (away * self.normals).sum(2) * self.focal_px / np.maximum(length, 1e-12)
        in_front = ((crossed * self.normals).sum(2) > 0.0) & ((crossed_key * self.normals).sum(2) > 0.0)
        # Points at infinity are on either side by noise alone.
        sine = np.linalg.norm(self.normals, axis=1)
        far = sine * self.focal_px < 2.0 * scale_px
        excess = _excess_px(sine, np.linalg.norm(away, axis=2), self.nearest, self.focal_px)
        return np.where(in_front | far, _robust_cost(np.square(error) + np.square(excess), scale_px), 1.0).mean(1)


def _excess_px(sine: np.ndarray, baselines: np.ndarray, nearest: float, focal_px: float) -> np.ndarray:
    """Return by how much the parallax of matches is larger than of the nearest point that there is, in pixels."""
    if nearest <= 0.0:
        return np.zeros(np.broadcast_shapes(sine.shape, baselines.shape))
    return np.maximum(focal_px * (sine - baselines / nearest) - SLACK_PX, 0.0)


def _unit_rays(pixels: np.ndarray, k: np.ndarray) -> np.ndarray:
    rays = pixel_rays(pixels, k)
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


@dataclass(frozen=True, kw_only=True)
class _Stack:
    """The matches of all pairs in one, which is faster: for M matches of K pairs, pair (M,), homogeneous pixels (M, 3)
    of keyframe and image; keyframe_from_map (K, 4, 4), transposed inverse intrinsics (K, 3, 3), those of the image."""

    pair: np.ndarray
    key_pixels: np.ndarray
    pixels: np.ndarray
    keyframe_from_map: np.ndarray
    key_inverse: np.ndarray
    inverse: np.ndarray

    @classmethod
    def from_pairs(cls, pairs: Sequence[PairMatches]) -> _Stack:
        key_pixels, pixels = (np.concatenate([getattr(pair, name) for pair in pairs]) for name in
                              ("key_pixels", "pixels"))
        ones = np.ones((len(pixels), 1))
        return cls(pair=np.repeat(np.arange(len(pairs)), [len(pair) for pair in pairs]),
                   key_pixels=np.hstack([key_pixels, ones]), pixels=np.hstack([pixels, ones]),
                   keyframe_from_map=invert(np.stack([pair.map_from_keyframe for pair in pairs])),
                   key_inverse=np.linalg.inv(np.stack([pair.key_k for pair in pairs])).transpose(0, 2, 1),
                   inverse=np.linalg.inv(pairs[0].camera_k))

    def errors_px(self, pose: np.ndarray) -> np.ndarray:
        """Return what `PairMatches.errors_px` does, (M,), for all pairs."""
        relative = self.keyframe_from_map @ pose
        skewed = np.stack([skew(translation) for translation in relative[:, :3, 3]])
        fundamental = (self.key_inverse @ skewed @ relative[:, :3, :3] @ self.inverse)[self.pair]
        lines = (fundamental @ self.pixels[:, :, None])[:, :, 0]
        back = (self.key_pixels[:, None] @ fundamental)[:, 0]
        length = np.sqrt(np.square(lines[:, :2]).sum(1) + np.square(back[:, :2]).sum(1))
        return (self.key_pixels * lines).sum(1) / np.maximum(length, 1e-12)

    def excess_px(self, pose: np.ndarray, nearest: float) -> np.ndarray:
        """Return the excess of the parallaxes (M,), see `_excess_px`."""
        relative = self.keyframe_from_map @ pose
        rays = (relative[self.pair, :3, :3] @ (self.pixels @ self.inverse.T)[:, :, None])[:, :, 0]
        key_rays = (self.key_pixels[:, None] @ self.key_inverse[self.pair])[:, 0]
        sine = np.linalg.norm(np.cross(rays, key_rays), axis=1) / (np.linalg.norm(rays, axis=1)
                                                                   * np.linalg.norm(key_rays, axis=1))
        baselines = np.linalg.norm(relative[:, :3, 3], axis=1)[self.pair]
        return _excess_px(sine, baselines, nearest, 1.0 / float(self.inverse[0, 0]))


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """The residuals of a pose: epipolar errors of matches, and reprojection errors of points.

    scene: unit of the centre's steps, about the distance of the keyframes. nearest: see `_nearest_distance`.
    """

    pose: np.ndarray
    pairs: Sequence[PairMatches]
    stack: _Stack
    hub: HubPoints | None
    scene: float
    nearest: float

    @classmethod
    def start(cls, pose: np.ndarray, pairs: Sequence[PairMatches], hub: HubPoints | None, nearest: float) -> _Problem:
        distances = [np.linalg.norm(pair.map_from_keyframe[:3, 3] - pose[:3, 3]) for pair in pairs]
        return cls(pose=pose, pairs=pairs, stack=_Stack.from_pairs(pairs), hub=hub,
                   scene=max(float(np.median(distances)), 1e-6), nearest=nearest)

    def cost(self, scale_px: float) -> float:
        """Return the mean robust loss of the pose."""
        return float(_robust_cost(self.squared_px(self.errors_px(self.pose)), scale_px).mean())

    def squared_px(self, errors_px: np.ndarray) -> np.ndarray:
        """Return squared errors (M + 2 N,) at the pose, matches with too large a parallax being off by that as well."""
        squared = np.square(errors_px)
        squared[:len(self.stack.pair)] += np.square(self.stack.excess_px(self.pose, self.nearest))
        return squared

    def errors_px(self, pose: np.ndarray) -> np.ndarray:
        """Return the errors (M + 2 N,) of the matches, and of the points in x and y."""
        errors = self.stack.errors_px(pose)
        if self.hub is None or len(self.hub) == 0:
            return errors
        return np.concatenate([errors, self.hub.errors_px(pose, self.pairs[0].camera_k)])

    def refined(self, config: JointConfig) -> _Problem:
        """Minimise the robust errors, at each Geman-McClure scale in turn."""
        problem = self
        for scale in config.scales_px:
            for _ in range(config.steps):
                errors, jacobian = problem._linearize()
                weights = geman_mcclure(problem.squared_px(errors), scale)
                hessian = jacobian.T @ (weights[:, None] * jacobian)
                step = -np.linalg.solve(hessian + np.diag(1e-6 * np.diag(hessian) + 1e-9),
                                        jacobian.T @ (weights * errors))
                step *= min(1.0, 0.3 / max(float(np.abs(step).max()), 1e-12))     # farther is not linear
                problem = replace(problem, pose=problem._moved(step))
        return problem

    def covariance(self, config: JointConfig) -> np.ndarray:
        """Return the covariance (6, 6) of the pose, infinite if the errors do not determine it.

        For independent errors, times Kish's design effect for correlated ones (see `pose.covariance`), and with bounded
        influence: matches near an epipole, and points beside the camera, would else determine it alone.
        """
        scale_px = config.scales_px[-1]
        errors, jacobian = self._linearize()
        squared = self.squared_px(errors)
        weights = np.where(squared < (OUTLIER_SCALES * scale_px) ** 2, geman_mcclure(squared, scale_px), 0.0)
        weights = bounded_influence(weights, jacobian.T[:, None], config.max_leverage)
        hessian = jacobian.T @ (weights[:, None] * jacobian)
        noise = float((weights * np.square(errors)).sum() / max(weights.sum() - 6.0, 1.0)) + 0.1**2
        effective = float(weights.sum()) ** 2 / max(float(np.square(weights).sum()), 1e-9)
        noise *= 1.0 + config.correlation * max(effective - 1.0, 0.0)
        units = np.array([self.scene] * 3 + [1.0] * 3)
        try:
            return noise * np.linalg.inv(hessian + 1e-12 * np.trace(hessian) * np.eye(6)) * np.outer(units, units)
        except np.linalg.LinAlgError:
            return np.full((6, 6), np.inf)

    def _linearize(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the errors and their derivatives (M, 6): centre in units of `scene`, turn about the map's axes."""
        base = self.errors_px(self.pose)
        columns = [(self.errors_px(self._moved(axis)) - base) / STEP for axis in np.eye(6) * STEP]
        return base, np.stack(columns, 1)

    def _moved(self, step: np.ndarray) -> np.ndarray:
        moved = self.pose.copy()
        moved[:3, :3] = Rotation.from_rotvec(step[3:]).as_matrix() @ self.pose[:3, :3]
        moved[:3, 3] += self.scene * step[:3]
        return moved


def _robust_cost(squared_px: np.ndarray, scale_px: float) -> np.ndarray:
    ratio = squared_px / scale_px**2
    return ratio / (1.0 + ratio)
