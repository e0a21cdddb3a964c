"""Calibration of covariances: the solver's are compared with true errors of images held out of the mapping.

The solver's covariance comes from how the scene coordinates of one image agree with each other; what they have in
common (errors of the map, of its poses, of the camera) is not in it. One factor per map makes up for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import binom, chi2

from aceg_ros.camera import Frame
from aceg_ros.estimate import PoseEstimate
from aceg_ros.geometry import pose_difference
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.maps.header import MIN_COVARIANCE_SCALE

DEGREES_OF_FREEDOM = 6
CHI2_95 = float(chi2.ppf(0.95, DEGREES_OF_FREEDOM))      # squared radius of the 95 % ellipsoid
MIN_HELD_OUT = 8            # images, or none
_STEP, _MAX_HELD_OUT = 10, 32       # every tenth image is held out, and no more than these
_QUANTILES = (0.5, 0.8)     # of the squared errors that the factor has to explain
_CONFIDENCE = 0.6           # that a quantile is no larger than it is taken to be: few images make larger factors
_MAX_SCALE = 6.0            # beyond, the poses are wrong, not uncertain


def held_out_indices(count: int) -> set[int]:
    """Which of `count` images to hold out of the mapping; none if there are too few to do without."""
    if count < _STEP * MIN_HELD_OUT:
        return set()
    step = max(_STEP, -(-count // _MAX_HELD_OUT))
    return set(range(step // 2, count, step))


def calibrate_covariance_scale(localize: Callable[[Frame], PoseEstimate], frames: Iterable[Frame],
                               budget: MappingBudget) -> float:
    """The factor by which a localizer's covariances fit its true errors on posed frames that its map has not seen.

    localize: of a localizer with a factor of 1. At the deadline of the budget, the frames localized so far have to do.
    """
    errors = []
    for frame in frames:
        if budget.remaining_s() <= 0.0:
            break
        estimate = localize(replace(frame, map_from_camera=None, depth_m=None))
        if estimate.map_from_camera is not None and estimate.covariance is not None:
            errors.append(normalized_error_squared(estimate.map_from_camera, estimate.covariance,
                                                   frame.map_from_camera))
    factors = [quantile_upper_bound(errors, q) / chi2.ppf(q, DEGREES_OF_FREEDOM) for q in _QUANTILES]
    return float(np.clip(max(factors), MIN_COVARIANCE_SCALE, _MAX_SCALE))


def quantile_upper_bound(sample: Sequence[float], quantile: float) -> float:
    """An upper bound of a distribution's quantile, with `_CONFIDENCE`, by a sample (an order statistic: David and
    Nagaraja, Order Statistics, 7.1). 0 if the sample is too small."""
    count = len(sample)
    rank = int(binom.ppf(_CONFIDENCE, count, quantile)) + 1          # P(rank - 1 or fewer below the quantile) is enough
    return sorted(sample)[rank - 1] if rank <= count else 0.0


def normalized_error_squared(pose: np.ndarray, covariance: np.ndarray, truth: np.ndarray | None) -> float:
    """Normalized estimation error squared (NEES): of pose (4, 4) with covariance (6, 6) from the true one (4, 4)."""
    assert truth is not None
    error = pose_difference(pose, truth)
    return float(error @ np.linalg.solve(covariance, error))
