"""Reasons to refuse a pose that a solver is happy with.

Each gate takes the evidence at the final pose and returns a Refusal, or None to let it pass. Thresholds live in
`SolverConfig`; how they were chosen is in docs/benchmarks/2026-11-21-pose-solver.md.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from aceg_ros.estimate import Status
from aceg_ros.pose.refinement import BLOCK_COUNT, Correspondences, refine

PLANAR = 0.03  # thickness over length of an inlier cloud that counts as a plane
# Standard deviations by which the inliers have to pass the least share: of few correspondences, a tenth is soon found
# at a wrong place that looks alike (docs/benchmarks/2026-11-26-encoder.md).
SHARE_MARGIN = 2.0


class Refusal(NamedTuple):
    status: Status
    message: str


def check_number(number: int, offered: int, min_inliers: int, min_ratio: float, threshold_px: float
                 ) -> Refusal | None:
    """At least min_inliers, and a share of those offered that passes min_ratio by `SHARE_MARGIN` deviations."""
    if number < min_inliers:
        return Refusal(Status.TOO_FEW_INLIERS, f"{number} of {offered} correspondences agree with the best pose within "
                       f"{threshold_px:g} px and lie in front of the camera, need {min_inliers}")
    needed = min_ratio * offered + SHARE_MARGIN * np.sqrt(min_ratio * (1.0 - min_ratio) * offered)
    if number < needed:
        return Refusal(Status.LOW_INLIER_RATIO, f"{number} of {offered} correspondences ({number / offered:.1%}) agree "
                       f"with the best pose within {threshold_px:g} px, need {needed / offered:.1%}")
    return None


def check_spread(data: Correspondences, inliers: np.ndarray, min_blocks: float) -> Refusal | None:
    """Effective number of picture blocks the inliers cover, n (n - 1) / sum n_b (n_b - 1) (Simpson's index).

    A few stray inliers do not count as spread, and few inliers do not count against it.
    """
    counts = np.bincount(data.blocks[inliers], minlength=BLOCK_COUNT)
    number = int(counts.sum())
    blocks = number * (number - 1) / max(int((counts * (counts - 1)).sum()), 1)
    if blocks < min_blocks:
        return Refusal(Status.POOR_SPREAD, f"the {number} inliers cover {blocks:.1f} of {BLOCK_COUNT} "
                       f"picture blocks, need {min_blocks:g}")
    return None


def check_shape(data: Correspondences, inliers: np.ndarray, depth_m: float, min_width: float) -> Refusal | None:
    """Points in one spot or on a line do not fix a pose, nor do pixels on a line.

    depth_m: median depth of the inliers. min_width: least second singular value, of the points over the first (a
    line) and of both over the depth and the picture width (a spot).
    """
    for name, cloud, size in (("points", data.points, depth_m), ("pixels", data.pixels, data.camera.width)):
        length, width = _extents(cloud[:, inliers])[:2]
        if length < min_width * size:
            return Refusal(Status.DEGENERATE_POINTS, f"the inlier {name} lie in one spot: their spread is "
                           f"{length / size:.2%} of {size:.3g}, need {min_width:.0%}")
        if width < min_width * length:
            return Refusal(Status.DEGENERATE_POINTS, f"the inlier {name} lie on a line: width over length "
                           f"{width / length:.2%}, need {min_width:.0%}")
    return None


def check_planar_twin(data: Correspondences, rotation: np.ndarray, inliers: np.ndarray, threshold_px: float
                      ) -> Refusal | None:
    """A plane seen with little perspective fits two poses (Collins & Bartoli, IPPE, IJCV 2014): refuse a tie."""
    extents = _extents(data.points[:, inliers])
    if extents[2] > PLANAR * extents[0]:
        return None
    chosen = np.flatnonzero(inliers)
    part = data.subset(chosen[np.linspace(0, chosen.size - 1, min(chosen.size, 400)).astype(int)])
    try:
        _, vectors, translations, _ = cv2.solvePnPGeneric(part.points.T.copy(), part.pixels.T.copy(),
                                                          part.camera.K, None, flags=cv2.SOLVEPNP_IPPE)
    except cv2.error:
        return None
    for vector, translation in zip(vectors, translations, strict=True):
        twin, twin_translation = refine(part, cv2.Rodrigues(vector)[0], translation.ravel(), (threshold_px,), 6)
        angle = np.degrees(np.arccos(np.clip((np.trace(twin @ rotation.T) - 1.0) / 2.0, -1.0, 1.0)))
        share = float((part.residuals(twin, twin_translation).squared_px < threshold_px**2).mean())
        if angle > 3.0 and share > 0.9:
            return Refusal(Status.DEGENERATE_POINTS, "the inlier points lie on a plane seen with little perspective: "
                           f"a second pose, turned by {angle:.0f} deg, explains {share:.0%} of the inliers as well")
    return None


def check_chance(ratio: float, mirror_ratio: float, min_gain: float) -> Refusal | None:
    """Compare with the best pose for the mirrored picture.

    Mirrored pixels with the same points keep everything that lets nonsense find inliers (bunching, smoothness,
    outliers) and have no true pose. What does not clearly beat them is chance.
    """
    if ratio < min_gain * mirror_ratio:
        return Refusal(Status.CHANCE_CONSENSUS, f"{ratio:.1%} of the correspondences agree with the best pose, but "
                       f"{mirror_ratio:.1%} do when the picture is mirrored: need {min_gain:g} times as many")
    return None


def check_peak(squared_px: np.ndarray, threshold_px: float, min_peak: float) -> Refusal | None:
    """Share of the residuals within three thresholds that lie within one. Chance gives 1/9, a true pose a peak."""
    near = int((squared_px < threshold_px**2).sum())
    around = int((squared_px < (3.0 * threshold_px) ** 2).sum())
    if near < min_peak * around:
        return Refusal(Status.CHANCE_CONSENSUS, f"{near} correspondences agree with the best pose within "
                       f"{threshold_px:g} px, but {around} do within {3.0 * threshold_px:g} px: no peak "
                       f"({near / around:.0%}, need {min_peak:.0%})")
    return None


def check_rival(number: int, rival: int, max_share: float) -> Refusal | None:
    """Compare with the best pose for what the chosen one does not explain.

    Where a place repeats itself (doors, panels, tiles), its patches are divided among the copies, and the pose that
    wins may be at the wrong one; the others then have their share of inliers too.
    """
    if rival > max_share * number:
        return Refusal(Status.AMBIGUOUS_POSE, f"{number} correspondences agree with the best pose, but of the others"
                       f" {rival} agree with another one: at most {max_share:.0%} as many may")
    return None


def check_covariance(covariance: np.ndarray, max_position_m: float, max_rotation_rad: float) -> Refusal | None:
    """Largest standard deviations, over all directions, of the camera's position and rotation."""
    if not np.isfinite(covariance).all():
        return Refusal(Status.UNCERTAIN_POSE, "the correspondences do not determine the pose (singular Hessian)")
    smallest = np.linalg.eigvalsh(covariance)[0]
    position_m = float(np.sqrt(np.linalg.eigvalsh(covariance[:3, :3])[-1].clip(0.0)))
    rotation_rad = float(np.sqrt(np.linalg.eigvalsh(covariance[3:, 3:])[-1].clip(0.0)))
    if smallest <= 0.0 or position_m > max_position_m or rotation_rad > max_rotation_rad:
        return Refusal(Status.UNCERTAIN_POSE,
                       f"standard deviation {position_m:.3g} m and {np.degrees(rotation_rad):.2g} deg, at most "
                       f"{max_position_m:.3g} m and {np.degrees(max_rotation_rad):.2g} deg allowed")
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
