# SPDX-License-Identifier: Apache-2.0
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
    share = block_shares(data.blocks)
    thresholds = np.array([value for value in THRESHOLDS_PX if value < search_radius_px])
    inliers = (share[:, None] * (squared_px[:, None] < thresholds**2)).sum(0)
    total = float(share.sum())
    chance = (thresholds / search_radius_px) ** 2
    nfa = log10_false_alarms(inliers, total, chance, MINIMAL_SAMPLE)
    best = int(np.argmin(nfa))
    return Significance(log10_nfa=float(nfa[best]), threshold_px=float(thresholds[best]), inliers=float(inliers[best]))


def block_shares(blocks: np.ndarray) -> np.ndarray:
    """Return what each match (N,) counts, given its image block: those of one block as MAX_PER_BLOCK at most."""
    return np.minimum(1.0, MAX_PER_BLOCK / np.maximum(np.bincount(blocks, minlength=BLOCK_COUNT), 1))[blocks]


def log10_false_alarms(inliers: np.ndarray, total: float, chance: np.ndarray, minimal_sample: int) -> np.ndarray:
    """Return the logarithm of the number of models that agree with as many matches by chance, at each threshold.

    Args:
        inliers: (T,) effective number of matches that agree.
        total: effective number of matches.
        chance: (T,) probability that a wrong match agrees.
        minimal_sample: number of matches that determine a model, which agree with it by construction.
    """
    # P(at least k of n) as the incomplete beta function, which is defined for effective numbers too.
    tail = betainc(np.maximum(inliers - minimal_sample, 1e-3), np.maximum(total - inliers + 1.0, 1e-3), chance)
    nfa = minimal_sample * np.log10(total) + np.log10(np.maximum(tail, SMALLEST))
    return np.where(inliers > minimal_sample + 1, nfa, np.inf)
