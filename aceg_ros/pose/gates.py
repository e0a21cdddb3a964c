"""Reasons to reject a pose that a solver is satisfied with.

Each gate takes the evidence at the final pose and returns a Rejection, or None to let it pass. Thresholds are in
`config.GateConfig`; how they were chosen is in docs/benchmarks/2026-11-21-pose-solver.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from aceg_ros.estimate import Status
from aceg_ros.pose.config import GateConfig
from aceg_ros.pose.correspondences import BLOCK_COUNT, CameraFromMap, Consensus, UsableCorrespondences
from aceg_ros.pose.refinement import refine

PLANAR_THICKNESS = 0.03     # thickness over length of an inlier cloud that counts as a plane
# Standard deviations by which the inliers have to exceed the minimal ratio: of few correspondences, a tenth agrees by
# chance with a pose at a position that looks similar (docs/benchmarks/2026-11-26-encoder.md).
RATIO_MARGIN_SIGMAS = 2.0


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Why there is no pose. stage_ms: milliseconds of the stages before it was clear."""

    status: Status
    message: str
    stage_ms: dict[str, float] = field(default_factory=dict)


def check_usable_count(data: UsableCorrespondences, min_correspondences: int) -> Rejection | None:
    """Need min_correspondences that are not masked and have finite values and a positive weight."""
    if data.count < min_correspondences:
        return Rejection(status=Status.TOO_FEW_CORRESPONDENCES,
                         message=f"{data.count} of {data.total_count} correspondences are usable (finite, positive "
                                 f"weight), need {min_correspondences}")
    return None


def check_inlier_count(inlier_count: int, correspondence_count: int, config: GateConfig, threshold_px: float
                       ) -> Rejection | None:
    """Need min_inliers, and a ratio that exceeds min_inlier_ratio by `RATIO_MARGIN_SIGMAS` standard deviations."""
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


def check_spread(consensus: Consensus, config: GateConfig) -> Rejection | None:
    """Effective number of image blocks that the inliers cover, n (n - 1) / sum n_b (n_b - 1) (Simpson's index).

    A few stray inliers do not count as spread, and few inliers do not count against it.
    """
    counts = np.bincount(consensus.data.blocks[consensus.inliers], minlength=BLOCK_COUNT)
    inlier_count = int(counts.sum())
    blocks = inlier_count * (inlier_count - 1) / max(int((counts * (counts - 1)).sum()), 1)
    if blocks < config.min_spread_blocks:
        return Rejection(status=Status.POOR_SPREAD,
                         message=f"the {inlier_count} inliers cover {blocks:.1f} of {BLOCK_COUNT} image blocks, "
                                 f"need {config.min_spread_blocks:g}")
    return None


def check_extent(consensus: Consensus, depth_m: float, config: GateConfig) -> Rejection | None:
    """Points in one spot or on a line do not determine a pose, nor do pixels on a line.

    depth_m: median depth of the inliers. Both the points and the pixels need a first singular value of at least
    min_extent_ratio times the depth or the image width (else a spot), and a second of as much of the first (else a
    line).
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
    """A plane seen with little perspective fits two poses (Collins & Bartoli, IPPE, IJCV 2014): reject a tie."""
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
    """Largest standard deviations, over all directions, of the camera's position and rotation."""
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
    """Need min_peak of the residuals within three thresholds to lie within one.

    Chance gives 1/9, a true pose a peak at zero.
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
    """Compare with the best pose for the mirrored image.

    Mirrored pixels with the same points keep everything that gives unrelated input its inliers (clustering, smoothness,
    outliers) but have no true pose. A pose that does not clearly exceed them is a product of chance.
    """
    if inlier_ratio < config.min_mirror_gain * mirror_ratio:
        return Rejection(status=Status.CHANCE_CONSENSUS,
                         message=f"{inlier_ratio:.1%} of the correspondences agree with the best pose, but "
                                 f"{mirror_ratio:.1%} do when the image is mirrored: need "
                                 f"{config.min_mirror_gain:g} times as many")
    return None


def check_second_pose(inlier_count: int, second_count: int, config: GateConfig) -> Rejection | None:
    """Compare with the best pose for the correspondences that the first pose does not explain.

    If a scene repeats itself (doors, panels, tiles), the matches of its patches are divided among the copies, and the
    pose with most inliers may be at the wrong copy; the others then have their share of inliers too.
    """
    if second_count > config.max_second_pose_share * inlier_count:
        return Rejection(status=Status.AMBIGUOUS_POSE,
                         message=f"{inlier_count} correspondences agree with the best pose, but of the others "
                                 f"{second_count} agree with another one: at most "
                                 f"{config.max_second_pose_share:.0%} as many may")
    return None


def _extents(cloud: np.ndarray) -> np.ndarray:
    """Singular values of a (D, N) cloud about its median, largest first, as standard deviations.

    Distances are clipped at 10 times their median, lest one far point make all others look like a spot.
    """
    centred = cloud - np.median(cloud, axis=1, keepdims=True)
    distance = np.linalg.norm(centred, axis=0)
    limit = 10.0 * np.median(distance)
    centred = centred * np.minimum(1.0, limit / np.maximum(distance, 1e-300))
    values = np.linalg.eigvalsh(centred @ centred.T / cloud.shape[1])[::-1]
    return np.sqrt(values.clip(0.0))
