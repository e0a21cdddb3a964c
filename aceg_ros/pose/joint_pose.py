"""A pose from the matches of an image with several keyframes at once, without landmarks.

Each match has to lie on the epipolar line of its keypoint in the other image. The matches of one pair determine
rotation and direction; those of several keyframes with known poses determine where the camera is, since their epipolar
lines change with its centre. So what motion averaging finds is refined on all matches, which is several times more
accurate: the directions of single pairs are poor where the scene is far away or flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from aceg_ros.geometry import invert, pixel_rays, skew
from aceg_ros.pose.epipolar import STEP, PairMatches
from aceg_ros.pose.hub_points import HubPoints
from aceg_ros.pose.refinement import geman_mcclure


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """matches: largest number of matches, and of points, that are used. samples: candidates for the centre, from three
    matches each. starts: of these, how many are refined, on matches_of_starts matches; the best is then refined on all.
    scales_px: decreasing scales of the robust loss. steps: at each scale. correlation: of the errors of two matches,
    for the covariance: a thousand keypoints of one image are not a thousand independent measurements."""

    matches: int = 1200
    matches_of_starts: int = 300
    correlation: float = 0.3
    samples: int = 200
    starts: int = 4
    scales_px: tuple[float, ...] = (4.0, 2.0, 1.0)
    steps: int = 3
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
    used = _subset(pairs, config)
    rows = _Rows.from_pairs(rotation, used)
    candidates = np.concatenate([centres, rows.sample_centres(config.samples, config.seed)])
    order = np.argsort(rows.costs(candidates, config.scales_px[0]), kind="stable")
    starts = [np.array(pose, np.float64) for pose in poses]
    for centre in _distinct(candidates[order], rows.centres, config.starts):
        start = np.eye(4)
        start[:3, :3], start[:3, 3] = rotation, centre
        starts.append(start)
    few = _subset(pairs, replace(config, matches=config.matches_of_starts))
    coarse = [_Problem.start(start, few, None if hub is None else hub.best(config.matches_of_starts)).refined(config)
              for start in starts]
    best = min(coarse, key=lambda problem: problem.cost(config.scales_px[-1]))
    final = _Problem.start(best.pose, used, None if hub is None else hub.best(config.matches)).refined(config)
    covariance = final.covariance(config.scales_px[-1], config.correlation)
    return JointPose(map_from_camera=final.pose, covariance=covariance,
                     cost=final.cost(config.scales_px[-1]))


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

    @classmethod
    def from_pairs(cls, rotation: np.ndarray, pairs: Sequence[PairMatches]) -> _Rows:
        key_rays = np.concatenate([_unit_rays(pair.key_pixels, pair.key_k) @ pair.map_from_keyframe[:3, :3].T
                                   for pair in pairs])
        rays = np.concatenate([_unit_rays(pair.pixels, pair.camera_k) @ rotation.T for pair in pairs])
        centres = np.repeat([pair.map_from_keyframe[:3, 3] for pair in pairs], [len(pair) for pair in pairs], axis=0)
        return cls(centres=centres, key_rays=key_rays, rays=rays, normals=np.cross(key_rays, rays),
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
        far = np.linalg.norm(self.normals, axis=1) * self.focal_px < 2.0 * scale_px
        return np.where(in_front | far, _robust_cost(error, scale_px), 1.0).mean(1)


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


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """The residuals of a pose: epipolar errors of matches, and reprojection errors of points.

    scene: unit of the centre's steps, about the distance of the keyframes.
    """

    pose: np.ndarray
    pairs: Sequence[PairMatches]
    stack: _Stack
    hub: HubPoints | None
    scene: float

    @classmethod
    def start(cls, pose: np.ndarray, pairs: Sequence[PairMatches], hub: HubPoints | None) -> _Problem:
        distances = [np.linalg.norm(pair.map_from_keyframe[:3, 3] - pose[:3, 3]) for pair in pairs]
        return cls(pose=pose, pairs=pairs, stack=_Stack.from_pairs(pairs), hub=hub,
                   scene=max(float(np.median(distances)), 1e-6))

    def cost(self, scale_px: float) -> float:
        """Return the mean robust loss of the pose."""
        return float(_robust_cost(self.errors_px(self.pose), scale_px).mean())

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
                weights = geman_mcclure(np.square(errors), scale)
                hessian = jacobian.T @ (weights[:, None] * jacobian)
                step = -np.linalg.solve(hessian + np.diag(1e-6 * np.diag(hessian) + 1e-9),
                                        jacobian.T @ (weights * errors))
                step *= min(1.0, 0.3 / max(float(np.abs(step).max()), 1e-12))     # farther is not linear
                problem = replace(problem, pose=problem._moved(step))
        return problem

    def covariance(self, scale_px: float, correlation: float) -> np.ndarray:
        """Return the covariance (6, 6) of the pose, infinite if the errors do not determine it.

        For independent errors, times Kish's design effect for correlated ones (see `pose.covariance`).
        """
        errors, jacobian = self._linearize()
        weights = geman_mcclure(np.square(errors), scale_px)
        hessian = jacobian.T @ (weights[:, None] * jacobian)
        noise = float((weights * np.square(errors)).sum() / max(weights.sum() - 6.0, 1.0)) + 0.1**2
        effective = float(weights.sum()) ** 2 / max(float(np.square(weights).sum()), 1e-9)
        noise *= 1.0 + correlation * max(effective - 1.0, 0.0)
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


def _robust_cost(errors_px: np.ndarray, scale_px: float) -> np.ndarray:
    ratio = np.square(errors_px / scale_px)
    return ratio / (1.0 + ratio)
