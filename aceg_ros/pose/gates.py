# SPDX-License-Identifier: Apache-2.0
"""Gates: tests that an estimated pose must pass to be accepted.

Each gate returns a `Rejection`, or None if the pose passes. The thresholds are in `config.GateConfig`;
docs/benchmarks/2026-11-21-pose-solver.md says how they were chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from aceg_ros.estimate import Status
from aceg_ros.pose.config import GateConfig
from aceg_ros.pose.correspondences import CameraFromMap, Consensus, UsableCorrespondences
from aceg_ros.pose.refinement import refine
from aceg_ros.pose.significance import Significance

PLANAR_THICKNESS = 0.03     # largest thickness over length of an inlier cloud that is treated as a plane
# Standard deviations by which the inlier count must exceed that of the smallest ratio. Of few correspondences, a tenth
# may agree by chance with a pose at a similar-looking position (docs/benchmarks/2026-11-26-encoder.md).
RATIO_MARGIN_SIGMAS = 2.0


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """The reason why there is no pose. stage_ms: durations of the stages up to the rejection."""

    status: Status
    message: str
    stage_ms: dict[str, float] = field(default_factory=dict)


def check_usable_count(data: UsableCorrespondences, min_correspondences: int) -> Rejection | None:
    """Require min_correspondences that are unmasked and have finite values and a positive weight."""
    if data.count < min_correspondences:
        return Rejection(status=Status.TOO_FEW_CORRESPONDENCES,
                         message=f"{data.count} of {data.total_count} correspondences are usable (finite, positive "
                                 f"weight), need {min_correspondences}")
    return None


def check_inlier_count(inlier_count: int, correspondence_count: int, config: GateConfig, threshold_px: float
                       ) -> Rejection | None:
    """Require min_inliers, and an inlier ratio `RATIO_MARGIN_SIGMAS` standard deviations above min_inlier_ratio."""
    if inlier_count < config.min_inliers:
        return Rejection(status=Status.TOO_FEW_INLIERS,
                         message=f"{inlier_count} of {correspondence_count} correspondences agree with the best "
                                 f"pose within {threshold_px:g} px and lie in front of the camera, need "
                                 f"{config.min_inliers}")
    min_ratio = config.min_inlier_ratio
    needed = (min_ratio * correspondence_count
              + RATIO_MARGIN_SIGMAS * np.sqrt(min_ratio * (1.0 - min_ratio) * correspondence_count))
    if inlier_count < needed:
        return Rejection(status=Status.LOW_INLIER_RATIO,
                         message=f"{inlier_count} of {correspondence_count} correspondences "
                                 f"({inlier_count / correspondence_count:.1%}) agree with the best pose within "
                                 f"{threshold_px:g} px, need {needed / correspondence_count:.1%}")
    return None


def effective_blocks(consensus: Consensus) -> float:
    """Return the effective number of image blocks with inliers, n (n - 1) / sum n_b (n_b - 1) (Simpson's index).

    A few stray inliers hardly raise this number, and a small number of inliers does not lower it.
    """
    counts = np.bincount(consensus.data.blocks[consensus.inliers])
    inlier_count = int(counts.sum())
    return inlier_count * (inlier_count - 1) / max(int((counts * (counts - 1)).sum()), 1)


def check_spread(consensus: Consensus, min_blocks: float) -> Rejection | None:
    """Require inliers in enough image blocks."""
    blocks = effective_blocks(consensus)
    if blocks < min_blocks:
        return Rejection(status=Status.POOR_SPREAD,
                         message=f"the {consensus.inlier_count} inliers cover {blocks:.1f} of "
                                 f"{consensus.data.block_count} image blocks, need {min_blocks:g}")
    return None


def check_extent(consensus: Consensus, depth_m: float, config: GateConfig) -> Rejection | None:
    """Require inlier points and pixels that are neither in one spot nor on a line: these do not determine a pose.

    Their first singular value must be at least min_extent_ratio times the depth (points) or the image width (pixels),
    and the second at least min_extent_ratio times the first. depth_m: median depth of the inliers.
    """
    data = consensus.data
    for name, cloud, size in (("points", data.points, depth_m), ("pixels", data.pixels, data.camera.width)):
        length, width = _extents(cloud[:, consensus.inliers])[:2]
        if length < config.min_extent_ratio * size:
            return Rejection(status=Status.DEGENERATE_POINTS,
                             message=f"the inlier {name} lie in one spot: their extent is {length / size:.2%} of "
                                     f"{size:.3g}, need {config.min_extent_ratio:.0%}")
        if width < config.min_extent_ratio * length:
            return Rejection(status=Status.DEGENERATE_POINTS,
                             message=f"the inlier {name} lie on a line: width over length {width / length:.2%}, "
                                     f"need {config.min_extent_ratio:.0%}")
    return None


def check_planar_ambiguity(consensus: Consensus) -> Rejection | None:
    """Reject inliers on a plane that two poses explain equally well (Collins & Bartoli, IPPE, IJCV 2014).

    This happens if the perspective effect is weak, and in one image only: the rays of several cameras exclude it.
    """
    in_one_image = consensus.data.of_main_image(consensus)
    if in_one_image is None:
        return None
    consensus = in_one_image
    extents = _extents(consensus.data.points[:, consensus.inliers])
    if extents[2] > PLANAR_THICKNESS * extents[0]:
        return None
    chosen = np.flatnonzero(consensus.inliers)
    part = consensus.data.subset(chosen[np.linspace(0, chosen.size - 1, min(chosen.size, 400)).astype(int)])
    points, pixels = part.points.T.copy(), part.pixels.T.copy()
    try:
        _, vectors, translations, _ = cv2.solvePnPGeneric(points, pixels, part.camera.K, None,
                                                          flags=cv2.SOLVEPNP_IPPE)
    except cv2.error:
        return None
    for vector, translation in zip(vectors, translations, strict=True):
        start = CameraFromMap(rotation=cv2.Rodrigues(vector)[0], translation=translation.ravel())
        other = refine(part, start, (consensus.threshold_px,), 6)
        cosine = (np.trace(other.rotation @ consensus.pose.rotation.T) - 1.0) / 2.0
        angle = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
        share = float((part.residuals(other).squared_px < consensus.threshold_px**2).mean())
        if angle > 3.0 and share > 0.9:
            return Rejection(status=Status.DEGENERATE_POINTS,
                             message="the inlier points lie on a plane seen with little perspective: a second pose, "
                                     f"turned by {angle:.0f} deg, explains {share:.0%} of the inliers as well")
    return None


def check_covariance(covariance: np.ndarray, depth_m: float, config: GateConfig) -> Rejection | None:
    """Require small standard deviations of position and rotation in every direction."""
    max_position_m = min(config.max_position_std_per_depth * depth_m, config.max_position_std_m)
    max_rotation_rad = config.max_rotation_std_rad
    if not np.isfinite(covariance).all():
        return Rejection(status=Status.UNCERTAIN_POSE,
                         message="the correspondences do not determine the pose (singular Hessian)")
    smallest = np.linalg.eigvalsh(covariance)[0]
    position_m = float(np.sqrt(np.linalg.eigvalsh(covariance[:3, :3])[-1].clip(0.0)))
    rotation_rad = float(np.sqrt(np.linalg.eigvalsh(covariance[3:, 3:])[-1].clip(0.0)))
    if smallest <= 0.0 or position_m > max_position_m or rotation_rad > max_rotation_rad:
        return Rejection(status=Status.UNCERTAIN_POSE,
                         message=f"standard deviation {position_m:.3g} m and {np.degrees(rotation_rad):.2g} deg, at "
                                 f"most {max_position_m:.3g} m and {np.degrees(max_rotation_rad):.2g} deg allowed")
    return None


def check_peak(consensus: Consensus, config: GateConfig) -> Rejection | None:
    """Require that a share of min_peak of the residuals below three thresholds is below one threshold.

    Residuals of random correspondences give 1/9; those of a correct pose have a peak at zero.
    """
    threshold_px = consensus.threshold_px
    within = int((consensus.residuals.squared_px < threshold_px**2).sum())
    around = int((consensus.residuals.squared_px < (3.0 * threshold_px) ** 2).sum())
    if within < config.min_peak * around:
        return Rejection(status=Status.CHANCE_CONSENSUS,
                         message=f"{within} correspondences agree with the best pose within {threshold_px:g} px, but "
                                 f"{around} do within {3.0 * threshold_px:g} px: no peak ({within / around:.0%}, need "
                                 f"{config.min_peak:.0%})")
    return None


def check_chance(inlier_ratio: float, mirror_ratio: float, config: GateConfig) -> Rejection | None:
    """Require clearly more inliers than the best pose for the mirrored image has.

    The mirrored pixels with the same points have no correct pose, but as many inliers by chance, since clustering,
    smoothness and outliers are the same.
    """
    if inlier_ratio < config.min_mirror_gain * mirror_ratio:
        return Rejection(status=Status.CHANCE_CONSENSUS,
                         message=f"{inlier_ratio:.1%} of the correspondences agree with the best pose, but "
                                 f"{mirror_ratio:.1%} do when the image is mirrored: need "
                                 f"{config.min_mirror_gain:g} times as many")
    return None


def check_second_pose(inlier_count: int, second_count: int, config: GateConfig) -> Rejection | None:
    """Reject a pose if another pose explains many of its outliers.

    second_count: inliers of the best pose for the outliers of the first. In scenes with repeated structure (doors,
    panels, tiles), patches match any of the copies, and the pose with the most inliers may be at the wrong copy; poses
    at other copies then have many inliers as well.
    """
    if second_count > config.max_second_pose_share * inlier_count:
        return Rejection(status=Status.AMBIGUOUS_POSE,
                         message=f"{inlier_count} correspondences agree with the best pose, but of the others "
                                 f"{second_count} agree with another one: at most "
                                 f"{config.max_second_pose_share:.0%} as many may")
    return None


def check_significance(significance: Significance, config: GateConfig) -> Rejection | None:
    """Require that far less than one such pose is to be expected by chance."""
    if significance.log10_nfa > config.max_log10_nfa:
        return Rejection(status=Status.CHANCE_CONSENSUS,
                         message=f"only {significance.inliers:.0f} landmarks are where the best pose puts them, within "
                                 f"{significance.threshold_px:g} px: chance would give 10^"
                                 f"{significance.log10_nfa:.1f} poses as good, at most 10^{config.max_log10_nfa:g} are "
                                 "accepted")
    return None


def is_confirmed(blind: Consensus, config: GateConfig) -> bool:
    """Return whether enough matches that were found before any pose was known agree with a pose, all over the image."""
    return blind.inlier_count >= config.min_blind_inliers and effective_blocks(blind) >= config.min_blind_blocks


def check_confirmation(overall: Significance, blind: Consensus, distinctive: float | None, config: GateConfig
                       ) -> Rejection | None:
    """Require that the landmarks that should be visible are there, or that matches found before agree with the pose.

    A place that looks like another one shares some landmarks with it, and these very exactly. If hardly any match from
    before agrees, the matches speak for another place, whatever is found around the projections; and if hardly any that
    agrees is distinctive, they may be of another place with the same things.

    Args:
        overall: significance of the pose with all correspondences.
        blind: the matches that were found before any pose was known, under the pose.
        distinctive: number of them that agree and are distinctive; None: not asked for.
        config: thresholds.
    """
    if blind.inlier_count < config.min_supporting_inliers:
        return Rejection(status=Status.CHANCE_CONSENSUS,
                         message=f"only {blind.inlier_count} of the {blind.data.total_count} matches that were found "
                                 f"before agree with the best pose, need {config.min_supporting_inliers}")
    needed = max(config.min_distinctive_inliers, config.min_distinctive_share * blind.inlier_count)
    if distinctive is not None and distinctive < needed:
        return Rejection(status=Status.AMBIGUOUS_POSE,
                         message=f"only {distinctive:.0f} of the {blind.inlier_count} matches that agree with the best "
                                 f"pose are distinctive, need {needed:.0f}: other places of the map have landmarks as "
                                 "similar as these")
    # Matches from before may all be of one thing that was moved: then chance explains all the rest as well.
    limit = config.max_confirmed_log10_nfa if is_confirmed(blind, config) else config.max_overall_log10_nfa
    if overall.log10_nfa > limit:
        return Rejection(status=Status.CHANCE_CONSENSUS,
                         message=f"landmarks are missing that the best pose should see, and {blind.inlier_count} of "
                                 f"{blind.data.total_count} matches agree with it, in {effective_blocks(blind):.1f} of "
                                 f"{blind.data.block_count} image blocks: it may be at a place that looks alike")
    return None


def check_competitor(significance: Significance, competitor: Significance | None, config: GateConfig
                     ) -> Rejection | None:
    """Reject a pose if another one at another place is nearly as significant, as in scenes that repeat themselves."""
    if competitor is not None and competitor.log10_nfa < config.max_competitor_significance * significance.log10_nfa:
        return Rejection(status=Status.AMBIGUOUS_POSE,
                         message=f"{significance.inliers:.0f} landmarks are where the best pose puts them, but "
                                 f"{competitor.inliers:.0f} are where a pose at another place does")
    return None


def _extents(cloud: np.ndarray) -> np.ndarray:
    """Return the extents (D,) of a (D, N) cloud about its median: standard deviations along its axes, largest first.

    Distances are clipped at 10 times their median, so that a single outlier does not dominate them.
    """
    centred = cloud - np.median(cloud, axis=1, keepdims=True)
    distance = np.linalg.norm(centred, axis=0)
    limit = 10.0 * np.median(distance)
    centred = centred * np.minimum(1.0, limit / np.maximum(distance, 1e-300))
    values = np.linalg.eigvalsh(centred @ centred.T / cloud.shape[1])[::-1]
    return np.sqrt(values.clip(0.0))
