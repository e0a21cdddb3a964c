# SPDX-License-Identifier: Apache-2.0
"""Poses from correspondences that are searched for around projections: hypotheses, their significance, refinement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from aceg_ros.geometry import pose_difference
from aceg_ros.pose.config import GuidedConfig, SolverConfig
from aceg_ros.pose.correspondences import CameraFromMap, Correspondences, UsableCorrespondences
from aceg_ros.pose.ransac import run_ransac
from aceg_ros.pose.refinement import refine
from aceg_ros.pose.significance import Significance, compute_significance, compute_significances

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
    data = correspondences.usable
    choices = _choices(data, similarity, config)
    significance, best = _refine(data, pose, config, choices[0])
    if significance.log10_nfa > config.sufficient_log10_nfa:
        for chosen in choices[1:]:
            candidate, refined = _refine(data, best, config, chosen)
            if candidate.log10_nfa < significance.log10_nfa:
                significance, best = candidate, refined
    residuals = data.residuals(best)
    moved = residuals.pixels - data.residuals(pose).pixels
    significances = compute_significances(data, residuals.squared_px, config.search_radius_px, choices)
    return GuidedPose(pose=best, correspondences=correspondences, similarity=similarity,
                      significance=_greatest(significances), overall=significances[0],
                      moved_px=float(np.median(np.hypot(*moved))))


def refine_from_prior(correspondences: Correspondences, pose: CameraFromMap, radius_px: float, config: GuidedConfig
                      ) -> CameraFromMap | None:
    """Refine a pose that was known before on matches that were found without it, those within radius_px of where it
    puts their landmarks; None if there are too few."""
    data = correspondences.usable
    near = data.residuals(pose).squared_px < radius_px**2
    if near.sum() < MIN_CORRESPONDENCES:
        return None
    scales_px = np.geomspace(max(radius_px / 2, config.coarse_scales_px[0]), config.coarse_scales_px[-1], PRIOR_SCALES)
    return refine(data, pose, scales_px, config.refine_steps, chosen=near)


def significance_beside(competitor: GuidedPose, best: GuidedPose, config: GuidedConfig) -> Significance:
    """Compute the significance of a pose by the correspondences that do not agree with a better pose too.

    Landmarks far away agree with both poses, and tell nothing about whether there is another place that looks alike.
    """
    rows, theirs = _row_ids(best.correspondences), competitor.correspondences
    shared = {rows[row] for row in _agreeing(best)}
    chosen = np.array([row not in shared for row in _row_ids(theirs)], bool)
    data = theirs.subset(chosen).usable
    return _greatest(compute_significances(data, data.residuals(competitor.pose).squared_px, config.search_radius_px,
                                           _choices(data, competitor.similarity[chosen], config)))


def greatest_beside(competing: Sequence[GuidedPose], best: GuidedPose, config: GuidedConfig) -> Significance | None:
    """Return the greatest significance beside a better pose; None without competing poses."""
    significances = [significance_beside(other, best, config) for other in competing]
    return _greatest(significances) if significances else None


def _agreeing(found: GuidedPose) -> np.ndarray:
    data = found.correspondences.usable
    return data.indices[data.residuals(found.pose).squared_px < (AGREEING_FACTOR * found.overall.threshold_px)**2]


def _row_ids(correspondences: Correspondences) -> list[bytes]:
    """Return what is equal for two correspondences where both pixel and point are."""
    rows = np.ascontiguousarray(np.concatenate([correspondences.pixels, correspondences.points], axis=1))
    return rows.view(np.dtype((np.void, rows.strides[0])))[:, 0].tolist() if len(rows) else []


def _greatest(significances: Sequence[Significance]) -> Significance:
    return min(significances, key=lambda value: value.log10_nfa)


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
    data, scale_px = found.correspondences.usable, robust_scale_px(found.significance)
    poses = [refine(data, found.pose, (factor * scale_px,), 2 * ALTERNATIVE_STEPS) for factor in ALTERNATIVE_SCALES]
    for least in ALTERNATIVE_SIMILARITIES:
        similar = found.similarity[data.indices] >= least
        if similar.sum() >= MIN_ALTERNATIVE_CORRESPONDENCES:
            poses.append(refine(data, found.pose, (FIRST_SCALES * scale_px, scale_px), ALTERNATIVE_STEPS,
                                chosen=similar))
    differences = np.array([pose_difference(pose.map_from_camera, found.pose.map_from_camera) for pose in poses])
    return differences.T @ differences


def _choices(data: UsableCorrespondences, similarity: np.ndarray, config: GuidedConfig) -> np.ndarray:
    """Return (S, N) bool: all correspondences, and those of at least each of the smallest similarities, as long as
    there are enough. similarity: of the correspondences that these are the usable ones of."""
    similar = similarity[data.indices] >= np.array([-np.inf, *config.min_similarities])[:, None]
    return similar[(similar.sum(1) >= MIN_CORRESPONDENCES) | (np.arange(len(similar)) == 0)]


def _refine(data: UsableCorrespondences, pose: CameraFromMap, config: GuidedConfig, chosen: np.ndarray
            ) -> tuple[Significance, CameraFromMap]:
    """Refine a pose on chosen correspondences (N,), at the inlier threshold at which it is the most significant."""
    coarse = refine(data, pose, config.coarse_scales_px, config.refine_steps, chosen=chosen)
    best = min(((_significance(data, candidate, config, chosen), candidate) for candidate in (pose, coarse)),
               key=lambda scored: scored[0].log10_nfa)
    fine = refine(data, best[1], (robust_scale_px(best[0]),), config.refine_steps, chosen=chosen)
    significance = _significance(data, fine, config, chosen)
    return (significance, fine) if significance.log10_nfa < best[0].log10_nfa else best


def _significance(data: UsableCorrespondences, pose: CameraFromMap, config: GuidedConfig, chosen: np.ndarray
                  ) -> Significance:
    return compute_significances(data, data.residuals(pose).squared_px, config.search_radius_px, chosen[None])[0]
