"""How unlikely it is that a pose agrees with its correspondences by chance, and the inlier threshold that shows it.

A-contrario reasoning (Moisan and Stival, A Probabilistic Criterion to Detect Rigid Point Matches, IJCV 2004; Moisan,
Moulon and Monasse, IPOL 2012). If the pose were wrong, every match would lie somewhere in the window that it was
searched for in, and k of n within a distance of their projections with a binomial probability. Times the number of
poses that could have been tried, this is the number of such poses to expect by chance (NFA). The threshold with the
smallest one is that of the image: sharp images repeat their keypoints to a pixel, blurred ones to five.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import betainc

from aceg_ros.pose.correspondences import BLOCK_COUNT, UsableCorrespondences

THRESHOLDS_PX = (1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
MINIMAL_SAMPLE = 3                  # correspondences that determine a pose
# Matches of one image block count as this many at most: neighbours are right or wrong together, which independence
# forbids. A wrong pose that fits one moved object or one repeated panel exactly is insignificant for that reason.
MAX_PER_BLOCK = 8.0
SMALLEST = 1e-300


@dataclass(frozen=True, kw_only=True)
class Significance:
    """log10_nfa: logarithm of the number of poses that would agree as well by chance. threshold_px: inlier threshold at
    which it is smallest. inliers: effective number of inliers there, at most MAX_PER_BLOCK a block."""

    log10_nfa: float
    threshold_px: float
    inliers: float


NOT_SIGNIFICANT = Significance(log10_nfa=np.inf, threshold_px=THRESHOLDS_PX[0], inliers=0.0)


def compute_significance(data: UsableCorrespondences, squared_px: np.ndarray, search_radius_px: float) -> Significance:
    """Compute the significance of a pose.

    Args:
        data: correspondences that were searched for around their projections.
        squared_px: (N,) their squared reprojection errors under the pose.
        search_radius_px: radius of the windows that they were searched in.
    """
    if data.count <= MINIMAL_SAMPLE:
        return NOT_SIGNIFICANT
    share = np.minimum(1.0, MAX_PER_BLOCK / np.maximum(np.bincount(data.blocks, minlength=BLOCK_COUNT), 1))[data.blocks]
    thresholds = np.array([value for value in THRESHOLDS_PX if value < search_radius_px])
    inliers = (share[:, None] * (squared_px[:, None] < thresholds**2)).sum(0)
    total = float(share.sum())
    chance = (thresholds / search_radius_px) ** 2
    # P(at least k of n) as the incomplete beta function, which is defined for effective numbers too. The minimal sample
    # agrees with its pose by construction.
    tail = betainc(np.maximum(inliers - MINIMAL_SAMPLE, 1e-3), np.maximum(total - inliers + 1.0, 1e-3), chance)
    nfa = MINIMAL_SAMPLE * np.log10(total) + np.log10(np.maximum(tail, SMALLEST))
    nfa = np.where(inliers > MINIMAL_SAMPLE + 1, nfa, np.inf)
    best = int(np.argmin(nfa))
    return Significance(log10_nfa=float(nfa[best]), threshold_px=float(thresholds[best]), inliers=float(inliers[best]))
