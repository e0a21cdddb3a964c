# SPDX-License-Identifier: Apache-2.0
"""Refines the given poses of mapping images together with the landmarks that they see.

Poses of a robot are off by centimetres between visits of the same spot, which a pixel-precise map cannot use. Bundle
adjustment makes them agree with what the images show. The map frame stays the robot's: each pose has a prior around
the given one, and the refined poses as a whole are neither shifted nor turned against the given ones. Observations that
are held out decide whether the refined poses are better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aceg_ros.geometry import invert, nearest_pose
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.bundle_adjustment import (
    BundleObservations,
    BundleState,
    PosePrior,
    adjust,
    residual_lengths,
    robust_scale,
)

HELD_OUT_SHARE = 0.1
MIN_HELD_OUT, MIN_IMAGES = 50, 3
MIN_OBSERVATIONS = 12               # of an image; with fewer, its pose stays
MIN_IMPROVEMENT = 0.05              # of the median error of held-out observations
NOISE_FACTOR = 3.0                  # of the prior, over what the residuals show: points hide a part of the noise


@dataclass(frozen=True, kw_only=True)
class RefinementProblem:
    """N observations of T points in F rectified images.

    intrinsics (F, 4): fx, fy, cx, cy. map_from_camera (F, 4, 4): the given poses. images (N,), tracks (N,): indices of
    image and point of each observation. pixels (N, 2). noise_px (N,): standard deviation on each axis. points (T, 3):
    triangulated with the given poses. position_noise, rotation_noise_rad: standard deviation of the given poses on each
    axis, positive, in the unit of the map; None takes them from the residuals.
    """

    intrinsics: np.ndarray
    map_from_camera: np.ndarray
    images: np.ndarray
    tracks: np.ndarray
    pixels: np.ndarray
    noise_px: np.ndarray
    points: np.ndarray
    position_noise: float | None = None
    rotation_noise_rad: float | None = None


@dataclass(frozen=True, kw_only=True)
class RefinedPoses:
    """map_from_camera (F, 4, 4) and points (T, 3): refined if `taken`, otherwise the given ones; `reason` says why.

    Errors are in pixels, with the given (before) and with the refined poses (after), each with points fitted to them;
    NaN where none were computed. held_out_...: median reprojection error of observations that were not used. scale_...:
    robust standard deviation, on each axis, of those that were. position_noise, rotation_noise_rad: of the prior.
    steps: of the solver.
    """

    map_from_camera: np.ndarray
    points: np.ndarray
    taken: bool
    reason: str
    held_out_before_px: float = float("nan")
    held_out_after_px: float = float("nan")
    scale_before_px: float = float("nan")
    scale_after_px: float = float("nan")
    position_noise: float = float("nan")
    rotation_noise_rad: float = float("nan")
    steps: int = 0


def refine_poses(problem: RefinementProblem, budget: MappingBudget, *, seed: int = 0) -> RefinedPoses:
    """Refine poses and points by bundle adjustment, within the budget.

    Args:
        problem: what was seen, where, and the given poses.
        budget: when to stop; what has been reached by then is taken if it is better.
        seed: chooses the observations that are held out.

    Returns:
        Refined poses and points; the given ones if there is too little data, or if held-out observations do not agree
        better with the refined ones.
    """
    observations = BundleObservations(
        intrinsics=np.asarray(problem.intrinsics, np.float64), images=np.asarray(problem.images),
        points=np.asarray(problem.tracks), pixels=np.asarray(problem.pixels, np.float64),
        noise_px=np.asarray(problem.noise_px, np.float64))
    given = np.stack([nearest_pose(pose) for pose in problem.map_from_camera]) if len(problem.map_from_camera) else \
        np.zeros((0, 4, 4))
    held_out = _held_out(observations.points, np.random.default_rng(seed))
    free = np.bincount(observations.images[~held_out], minlength=len(given)) >= MIN_OBSERVATIONS
    usable = free[observations.images]
    training, test = observations.subset(~held_out & usable), observations.subset(held_out & usable)
    if free.sum() < MIN_IMAGES or len(test.images) < MIN_HELD_OUT:
        return _rejected(problem, f"too little data: {int(free.sum())} images with {MIN_OBSERVATIONS} observations, "
                                  f"{len(test.images)} observations to compare with")
    start = BundleState(camera_from_map=invert(given), points=np.asarray(problem.points, np.float64))
    before, _ = adjust(training, start, None, budget)
    prior = _prior(problem, training, before)
    after, steps = adjust(training, before, prior, budget)
    after = _aligned(after, prior, free)
    return _decide(problem, training, test, before=before, after=after, prior=prior, steps=steps)


def _held_out(tracks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return which observations (N,) are held out: one of a track at most, of tracks with three or more."""
    shuffled = rng.permutation(len(tracks))
    _, first = np.unique(tracks[shuffled], return_index=True)
    candidates = shuffled[first]
    candidates = candidates[np.bincount(tracks, minlength=1)[tracks[candidates]] >= 3]
    chosen = np.zeros(len(tracks), bool)
    chosen[rng.permutation(candidates)[:int(HELD_OUT_SHARE * len(tracks))]] = True
    return chosen


def _prior(problem: RefinementProblem, observations: BundleObservations, state: BundleState) -> PosePrior:
    """Return the prior of each pose. If the noise is not known, the residuals could each be due to the position of the
    camera alone, or to its rotation alone."""
    error_px = _scale(observations, state, 0) * float(np.median(observations.noise_px))
    error_rad = NOISE_FACTOR * error_px / float(np.median(observations.intrinsics[:, :2]))
    poses = state.camera_from_map[observations.images]
    depth = np.einsum("nj,nj->n", poses[:, 2, :3], state.points[observations.points]) + poses[:, 2, 3]
    near = depth[depth > 0]
    position, rotation = problem.position_noise, problem.rotation_noise_rad
    if position is None:
        position = error_rad * (float(np.median(near)) if len(near) else 1.0)
    if rotation is None:
        rotation = error_rad
    return PosePrior(camera_from_map=state.camera_from_map, position=position, rotation_rad=rotation)


def _scale(observations: BundleObservations, state: BundleState, cameras: int) -> float:
    """Return the robust standard deviation of residuals, in units of noise_px, corrected for what was fitted to them:
    the points, and the poses of so many cameras."""
    values, fitted = 2 * len(observations.images), 3 * len(np.unique(observations.points)) + 6 * cameras
    return robust_scale(residual_lengths(observations, state)) * (values / max(values - fitted, 0.2 * values))**0.5


def _aligned(state: BundleState, prior: PosePrior, free: np.ndarray) -> BundleState:
    """Move everything by the rigid transform that brings the free cameras (F,), in the least-squares sense, to their
    given poses; the others keep theirs. The prior alone does this in the limit, but a solver stops earlier.
    """
    refined, given = invert(state.camera_from_map[free]), invert(prior.camera_from_map[free])
    centres, wanted = refined[:, :3, 3], given[:, :3, 3]
    middle, wanted_middle = centres.mean(0), wanted.mean(0)
    by_position = np.einsum("fi,fj->ij", wanted - wanted_middle, centres - middle) / prior.position**2
    by_rotation = np.einsum("fij,fkj->ik", given[:, :3, :3], refined[:, :3, :3]) * 0.5 / prior.rotation_rad**2
    moved_from_map = np.eye(4)
    moved_from_map[:3, :3] = by_position + by_rotation
    moved_from_map = nearest_pose(moved_from_map)
    moved_from_map[:3, 3] = wanted_middle - moved_from_map[:3, :3] @ middle
    poses = prior.camera_from_map.copy()
    poses[free] = invert(moved_from_map @ refined)
    return BundleState(camera_from_map=poses, points=state.points @ moved_from_map[:3, :3].T + moved_from_map[:3, 3])


def _decide(problem: RefinementProblem, training: BundleObservations, test: BundleObservations, *,
            before: BundleState, after: BundleState, prior: PosePrior, steps: int) -> RefinedPoses:
    """Take the refined poses if the held-out observations agree with them better, most of them each for itself."""
    errors_before, errors_after = residual_lengths(test, before), residual_lengths(test, after)
    medians = float(np.median(errors_before)), float(np.median(errors_after))
    improved = float((errors_after < errors_before).mean())
    taken = medians[1] < (1.0 - MIN_IMPROVEMENT) * medians[0] and improved > 0.5 + len(test.images)**-0.5
    reason = "" if taken else "held-out observations do not agree better with the refined poses"
    noise_px = float(np.median(training.noise_px))
    scales = _scale(training, before, 0), _scale(training, after, len(problem.map_from_camera))
    return RefinedPoses(
        map_from_camera=invert(after.camera_from_map) if taken else problem.map_from_camera,
        points=after.points if taken else problem.points, taken=taken, reason=reason,
        held_out_before_px=medians[0] * noise_px, held_out_after_px=medians[1] * noise_px,
        scale_before_px=scales[0] * noise_px, scale_after_px=scales[1] * noise_px,
        position_noise=prior.position, rotation_noise_rad=prior.rotation_rad, steps=steps)


def _rejected(problem: RefinementProblem, reason: str) -> RefinedPoses:
    return RefinedPoses(map_from_camera=problem.map_from_camera, points=problem.points, taken=False, reason=reason)


