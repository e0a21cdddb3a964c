# SPDX-License-Identifier: Apache-2.0
"""Poses from correspondences that are searched for around projections: hypotheses, their significance, refinement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from aceg_ros.geometry import pose_difference
from aceg_ros.pose.config import GuidedConfig, SolverConfig
from aceg_ros.pose.correspondences import CameraFromMap, Correspondences
from aceg_ros.pose.ransac import run_ransac
from aceg_ros.pose.refinement import refine, refine_alternatives
from aceg_ros.pose.significance import Significance, compute_significance

MIN_CORRESPONDENCES = 8
MIN_SCALE_PX = 1.2                  # of the robust loss
AGREEING_FACTOR = 2.0               # times the inlier threshold: matches closer than this agree with a pose too
PRIOR_SCALES = 3                    # of the refinement from a prior: from half of its window to the narrow scale
FIRST_SCALES, FINAL_STEPS = 3.0, 5  # of the last refinement: begins wide, since narrow scales converge slowly
# Of the alternatives to the last refinement: smallest similarities, and factors of its scale.
ALTERNATIVE_SIMILARITIES, ALTERNATIVE_SCALES = (0.5, 0.6, 0.7), (0.5, 2.0)
MIN_ALTERNATIVE_CORRESPONDENCES, ALTERNATIVE_STEPS = 20, 3


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A pose that RANSAC found, and the logarithm of the number of poses that would agree as well by chance."""

    pose: CameraFromMap
    log10_nfa: float


@dataclass(frozen=True, kw_only=True)
class GuidedPose:
    """A pose with the correspondences found around its projections.

    correspondences: all that were found. similarity: (N,) of their descriptors. significance: of the pose with those
    that are similar enough to make it the most significant. overall: with all. The landmarks of a place that only looks
    alike are similar where it does, and missing elsewhere. moved_px: median distance between the projections before and
    after the refinement.
    """

    pose: CameraFromMap
    correspondences: Correspondences
    similarity: np.ndarray
    significance: Significance
    overall: Significance
    moved_px: float = 0.0


def find_hypothesis(correspondences: Correspondences, solver: SolverConfig, guided: GuidedConfig, *, seed: int
                    ) -> Hypothesis | None:
    """Run RANSAC at each threshold until a pose is clear, and return the most significant one; None without any."""
    data = correspondences.usable
    if data.count < max(solver.min_correspondences, MIN_CORRESPONDENCES):
        return None
    found: list[Hypothesis] = []
    for threshold in guided.ransac_thresholds_px:
        config = replace(solver, ransac_threshold_px=threshold, coarse_scales_px=(1.5 * threshold, 0.75 * threshold))
        pose = run_ransac(data, config, seed)
        if pose is not None:
            log10_nfa = blind_significance(correspondences, pose).log10_nfa
            found.append(Hypothesis(pose=pose, log10_nfa=log10_nfa))
            if log10_nfa < guided.clear_log10_nfa:
                break
    return min(found, key=lambda hypothesis: hypothesis.log10_nfa, default=None)


def blind_significance(correspondences: Correspondences, pose: CameraFromMap) -> Significance:
    """Compute the significance of a pose by matches that were found without it."""
    data, camera = correspondences.usable, correspondences.camera
    # Without a projection to search around, a match may lie anywhere in the image.
    radius_px = float(np.sqrt(camera.width * camera.height / np.pi))
    return compute_significance(data, data.residuals(pose).squared_px, radius_px)


def refine_guided(correspondences: Correspondences, similarity: np.ndarray, pose: CameraFromMap, config: GuidedConfig
                  ) -> GuidedPose | None:
    """Refine a pose on correspondences found around its projections, and compute its significance.

    Normally all correspondences are used. If the pose is not significant with all, because things have moved or most
    descriptors are dissimilar, it is refined on those at whose smallest similarity it is the most significant.

    Args:
        correspondences: matches found around the projections.
        similarity: (N,) of their descriptors.
        pose: to start from.
        config: settings.

    Returns:
        The refined pose, or None if there are too few correspondences.
    """
    if len(similarity) < MIN_CORRESPONDENCES:
        return None
    significance, best = _refine(correspondences, pose, config)
    if significance.log10_nfa > config.sufficient_log10_nfa:
        for some in _similar(correspondences, similarity, config):
            candidate, refined = _refine(some, best, config)
            if candidate.log10_nfa < significance.log10_nfa:
                significance, best = candidate, refined
    data = correspondences.usable
    moved = data.residuals(best).pixels - data.residuals(pose).pixels
    return GuidedPose(pose=best, correspondences=correspondences, similarity=similarity,
                      significance=_greatest_significance(correspondences, similarity, best, config),
                      overall=_significance(correspondences, best, config), moved_px=float(np.median(np.hypot(*moved))))


def refine_from_prior(correspondences: Correspondences, pose: CameraFromMap, radius_px: float, config: GuidedConfig
                      ) -> CameraFromMap | None:
    """Refine a pose that was known before on matches that were found without it, those within radius_px of where it
    puts their landmarks; None if there are too few."""
    data = correspondences.usable
    near = np.flatnonzero(data.residuals(pose).squared_px < radius_px**2)
    if len(near) < MIN_CORRESPONDENCES:
        return None
    scales_px = tuple(float(scale) for scale in np.geomspace(max(radius_px / 2, config.coarse_scales_px[0]),
                                                             config.coarse_scales_px[-1], PRIOR_SCALES))
    return refine(data.subset(near), pose, scales_px, config.refine_steps)


def significance_beside(competitor: GuidedPose, best: GuidedPose, config: GuidedConfig) -> Significance:
    """Compute the significance of a pose by the correspondences that do not agree with a better pose too.

    Landmarks far away agree with both poses, and tell nothing about whether there is another place that looks alike.
    """
    theirs = competitor.correspondences
    chosen = np.flatnonzero(~np.isin(_row_ids(theirs), _row_ids(best.correspondences)[_agreeing(best)]))
    return _greatest_significance(theirs.subset(chosen), competitor.similarity[chosen], competitor.pose, config)


def greatest_beside(competing: Sequence[GuidedPose], best: GuidedPose, config: GuidedConfig) -> Significance | None:
    """Return the greatest significance beside a better pose; None without competing poses."""
    significances = [significance_beside(other, best, config) for other in competing]
    return min(significances, key=lambda value: value.log10_nfa, default=None)


def _agreeing(found: GuidedPose) -> np.ndarray:
    data = found.correspondences.usable
    return data.indices[data.residuals(found.pose).squared_px < (AGREEING_FACTOR * found.overall.threshold_px)**2]


def _row_ids(correspondences: Correspondences) -> np.ndarray:
    """Return a value (N,) for each pixel and point, equal where both are."""
    rows = np.ascontiguousarray(np.concatenate([correspondences.pixels, correspondences.points], axis=1))
    return rows.view([("", rows.dtype)] * rows.shape[1]).ravel()


def _greatest_significance(correspondences: Correspondences, similarity: np.ndarray, pose: CameraFromMap,
                           config: GuidedConfig) -> Significance:
    """Return the greatest significance of a pose, with all correspondences or only with similar ones."""
    every = [_significance(some, pose, config) for some in (correspondences,
                                                            *_similar(correspondences, similarity, config))]
    return min(every, key=lambda value: value.log10_nfa)


def robust_scale_px(significance: Significance) -> float:
    """Return the scale of the robust loss for a pose: its inlier threshold, unless that is very small."""
    return max(significance.threshold_px, MIN_SCALE_PX)


def refine_finally(found: GuidedPose) -> GuidedPose:
    """Refine a pose on all of its correspondences.

    Dissimilar matches tell little about whether the pose is right, but once it is, many are right too, and all count.
    """
    scale_px = robust_scale_px(found.significance)
    refined = refine(found.correspondences.usable, found.pose, (FIRST_SCALES * scale_px, scale_px), FINAL_STEPS)
    return replace(found, pose=refined)


def refinement_spread(found: GuidedPose) -> np.ndarray:
    """Compute how far reasonable alternatives to the last refinement move the pose: (6, 6) in the order of covariances.

    The alternatives use only matches of some similarity, or a narrower or wider loss. Where a few near landmarks
    determine the position, wrong ones among them move it to where they fit: no residual shows it, but the
    alternatives end elsewhere. The sum of the outer products of their differences is to be added to the covariance.
    """
    data = found.correspondences.usable
    similar = found.similarity[data.indices] >= np.array(ALTERNATIVE_SIMILARITIES)[:, None]
    similar = similar[similar.sum(1) >= MIN_ALTERNATIVE_CORRESPONDENCES]
    factors = [*((factor, factor) for factor in ALTERNATIVE_SCALES), *[(FIRST_SCALES, 1.0)] * len(similar)]
    poses = refine_alternatives(data, found.pose, steps_per_scale=ALTERNATIVE_STEPS,
                                chosen=np.concatenate([np.ones((len(ALTERNATIVE_SCALES), data.count), bool), similar]),
                                scales_px=np.array(factors) * robust_scale_px(found.significance))
    differences = np.array([pose_difference(pose.map_from_camera, found.pose.map_from_camera) for pose in poses])
    return differences.T @ differences


def _similar(correspondences: Correspondences, similarity: np.ndarray, config: GuidedConfig
             ) -> Iterator[Correspondences]:
    """Yield the correspondences of at least each of the smallest similarities, as long as there are enough."""
    for least in config.min_similarities:
        chosen = np.flatnonzero(similarity >= least)
        if len(chosen) < MIN_CORRESPONDENCES:
            return
        yield correspondences.subset(chosen)


def _refine(correspondences: Correspondences, pose: CameraFromMap, config: GuidedConfig
            ) -> tuple[Significance, CameraFromMap]:
    """Refine a pose on all of some correspondences, at the inlier threshold at which it is the most significant."""
    data = correspondences.usable
    coarse = refine(data, pose, config.coarse_scales_px, config.refine_steps)
    best = min(((_significance(correspondences, candidate, config), candidate) for candidate in (pose, coarse)),
               key=lambda scored: scored[0].log10_nfa)
    fine = refine(data, best[1], (robust_scale_px(best[0]),), config.refine_steps)
    significance = _significance(correspondences, fine, config)
    return (significance, fine) if significance.log10_nfa < best[0].log10_nfa else best


def _significance(correspondences: Correspondences, pose: CameraFromMap, config: GuidedConfig) -> Significance:
    data = correspondences.usable
    return compute_significance(data, data.residuals(pose).squared_px, config.search_radius_px)

