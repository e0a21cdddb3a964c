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

from aceg_ros.pose.correspondences import UsableCorrespondences
from aceg_ros.utils.compiled import compiled

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
    return compute_significances(data, squared_px, search_radius_px, np.ones((1, data.count), bool))[0]


def compute_significances(data: UsableCorrespondences, squared_px: np.ndarray, search_radius_px: float,
                          chosen: np.ndarray) -> list[Significance]:
    """Compute the significance of a pose, as `compute_significance` does, with each of S choices (S, N) bool of the
    correspondences."""
    thresholds = np.array([value for value in THRESHOLDS_PX if value < search_radius_px])
    inliers, totals = effective_counts(data.blocks, squared_px, thresholds**2, chosen)
    nfa = log10_false_alarms(inliers, totals[:, None], (thresholds / search_radius_px) ** 2, MINIMAL_SAMPLE)
    return [Significance(log10_nfa=float(nfa[row, best]), threshold_px=float(thresholds[best]),
                         inliers=float(inliers[row, best])) if totals[row] > MINIMAL_SAMPLE else NOT_SIGNIFICANT
            for row, best in enumerate(nfa.argmin(1))]


@compiled
def effective_counts(blocks: np.ndarray, errors: np.ndarray, thresholds: np.ndarray, chosen: np.ndarray
                     ) -> tuple[np.ndarray, np.ndarray]:
    """Count matches so that those of one image block count as MAX_PER_BLOCK at most.

    Args:
        blocks: (N,) image block of each match.
        errors: (N,) of the matches.
        thresholds: (T,) of the errors, ascending.
        chosen: (S, N) bool, choices of the matches.

    Returns:
        The effective numbers (S, T) of the chosen matches below each threshold, and (S,) of all chosen ones.
    """
    inliers, totals = np.zeros((len(chosen), len(thresholds))), np.zeros(len(chosen))
    per_block = np.zeros((blocks.max() + 1 if len(blocks) else 0, len(thresholds) + 1))
    for choice in range(len(chosen)):
        per_block[:] = 0.0
        for i in range(len(blocks)):
            if chosen[choice, i]:
                level = 0
                while level < len(thresholds) and not errors[i] < thresholds[level]:
                    level += 1
                per_block[blocks[i], level] += 1.0
        for block in range(len(per_block)):
            count = 0.0
            for level in range(len(thresholds) + 1):
                count += per_block[block, level]
            share = min(1.0, MAX_PER_BLOCK / max(count, 1.0))
            totals[choice] += share * count
            below = 0.0
            for level in range(len(thresholds)):
                below += per_block[block, level]
                inliers[choice, level] += share * below
    return inliers, totals


def log10_false_alarms(inliers: np.ndarray, total: np.ndarray, chance: np.ndarray, minimal_sample: int) -> np.ndarray:
    """Return the logarithm of the number of models that agree with as many matches by chance, at each threshold.

    Args:
        inliers: (..., T) effective number of matches that agree.
        total: (..., 1) effective number of matches.
        chance: (T,) probability that a wrong match agrees.
        minimal_sample: number of matches that determine a model, which agree with it by construction.
    """
    # P(at least k of n) as the incomplete beta function, which is defined for effective numbers too.
    tail = betainc(np.maximum(inliers - minimal_sample, 1e-3), np.maximum(total - inliers + 1.0, 1e-3), chance)
    nfa = minimal_sample * np.log10(np.maximum(total, 1.0)) + np.log10(np.maximum(tail, SMALLEST))
    return np.where(inliers > minimal_sample + 1, nfa, np.inf)
