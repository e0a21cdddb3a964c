"""Poses from correspondences that are searched for around projections: hypotheses, their significance, refinement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from aceg_ros.pose.config import GuidedConfig, SolverConfig
from aceg_ros.pose.correspondences import CameraFromMap, Correspondences, UsableCorrespondences
from aceg_ros.pose.ransac import run_ransac
from aceg_ros.pose.refinement import refine
from aceg_ros.pose.significance import Significance, compute_significance

MIN_CORRESPONDENCES = 8
CLEAR_OUTLIER_PX = 12.0             # residuals from which correspondences may belong to another pose


@dataclass(frozen=True, kw_only=True)
class GuidedPose:
    """A pose with the correspondences found around its projections.

    correspondences: those at whose smallest similarity the pose is the most significant. significance: of the pose with
    them. overall: with all that were found, also dissimilar ones. The landmarks of a place that only looks alike are
    similar where it does, and missing elsewhere.
    """

    pose: CameraFromMap
    correspondences: Correspondences
    significance: Significance
    overall: Significance


def find_hypotheses(correspondences: Correspondences, solver: SolverConfig, guided: GuidedConfig, *, count: int,
                    seed: int) -> Iterator[CameraFromMap]:
    """Yield up to `count` poses, each from the correspondences that are clear outliers of those before."""
    data = correspondences.usable
    for _ in range(count):
        if data.count < max(solver.min_correspondences, MIN_CORRESPONDENCES):
            return
        pose = _best_of_thresholds(data, solver, guided, seed)
        if pose is None:
            return
        yield pose
        data = data.subset(np.flatnonzero(data.residuals(pose).squared_px > CLEAR_OUTLIER_PX**2))


def _best_of_thresholds(data: UsableCorrespondences, solver: SolverConfig, guided: GuidedConfig, seed: int
                        ) -> CameraFromMap | None:
    """Run RANSAC at each threshold and return the most significant pose; None if there is none."""
    camera = data.camera
    # Without a projection to search around, a match may lie anywhere in the image.
    radius_px = float(np.sqrt(camera.width * camera.height / np.pi))
    found: list[tuple[float, CameraFromMap]] = []
    for threshold in guided.ransac_thresholds_px:
        config = replace(solver, ransac_threshold_px=threshold, coarse_scales_px=(1.5 * threshold, 0.75 * threshold))
        pose = run_ransac(data, config, seed)
        if pose is not None:
            squared_px = data.residuals(pose).squared_px
            found.append((compute_significance(data, squared_px, radius_px).log10_nfa, pose))
    return min(found, key=lambda scored: scored[0])[1] if found else None


def refine_guided(correspondences: Correspondences, similarity: np.ndarray, pose: CameraFromMap, config: GuidedConfig
                  ) -> GuidedPose | None:
    """Refine a pose on correspondences found around its projections, at the similarity and inlier threshold at which it
    is the most significant. similarity: (N,) of the matches. Returns None if there are too few."""
    best: GuidedPose | None = None
    for least in config.min_similarities:
        chosen = np.flatnonzero(similarity >= least)
        if len(chosen) < MIN_CORRESPONDENCES:
            break
        some = _subset(correspondences, chosen)
        for candidate in (pose, refine(some.usable, pose, config.coarse_scales_px, config.refine_steps)):
            best = _better(best, some, candidate, config)
    if best is None:
        return None
    scale_px = max(best.significance.threshold_px, config.min_scale_px)
    refined = refine(best.correspondences.usable, best.pose, (scale_px,), config.refine_steps)
    best = _better(best, best.correspondences, refined, config)
    data = correspondences.usable
    overall = compute_significance(data, data.residuals(best.pose).squared_px, config.search_radius_px)
    return replace(best, overall=overall)


def _better(best: GuidedPose | None, correspondences: Correspondences, pose: CameraFromMap, config: GuidedConfig
            ) -> GuidedPose:
    data = correspondences.usable
    significance = compute_significance(data, data.residuals(pose).squared_px, config.search_radius_px)
    if best is not None and best.significance.log10_nfa <= significance.log10_nfa:
        return best
    return GuidedPose(pose=pose, correspondences=correspondences, significance=significance, overall=significance)


def _subset(correspondences: Correspondences, chosen: np.ndarray) -> Correspondences:
    return Correspondences(pixels=correspondences.pixels[chosen], points=correspondences.points[chosen],
                           camera=correspondences.camera)
