# SPDX-License-Identifier: Apache-2.0
"""Calibrates the covariances of a map by the true errors of images that are held out of the mapping.

The solver computes a covariance from the residuals within one image. Errors that all of its scene coordinates share
(of the map, of its poses, of the camera) do not appear in these; one factor per map compensates for them.
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
MIN_HELD_OUT = 8            # images; if there would be fewer, none are held out
_STEP, _MAX_HELD_OUT = 10, 32       # every tenth image is held out, up to this number
_QUANTILES = (0.5, 0.8)     # of the squared normalized errors, which the factor is fitted to
_CONFIDENCE = 0.6           # of the upper bounds of these quantiles: with few images, factors are larger
_MAX_SCALE = 60.0           # errors that all keypoints share (of poses, of clocks) may be eight times their noise


def held_out_indices(count: int) -> set[int]:
    """Return the indices of the images, of `count`, to hold out of the mapping; none if there are too few images."""
    if count < _STEP * MIN_HELD_OUT:
        return set()
    step = max(_STEP, -(-count // _MAX_HELD_OUT))
    return set(range(step // 2, count, step))


def calibrate_covariance_scale(localize: Callable[[Frame], PoseEstimate], frames: Iterable[Frame],
                               budget: MappingBudget) -> float:
    """Compute the factor by which covariances must be multiplied to agree with the true errors on held-out frames.

    localize: of a localizer with a factor of 1. frames: posed frames that were not mapped. At the deadline of the
    budget, the frames localized so far are used.
    """
    errors = []
    for frame in frames:
        if budget.remaining_s() <= 0.0:
            break
        estimate = localize(replace(frame, map_from_camera=None, depth_m=None))
        if estimate.map_from_camera is not None and estimate.covariance is not None:
            errors.append(normalized_error_squared(estimate.map_from_camera, estimate.covariance,
                                                   frame.map_from_camera))
    return max(covariance_factor(errors), MIN_COVARIANCE_SCALE)


def covariance_factor(errors: Sequence[float]) -> float:
    """Return the factor, at most _MAX_SCALE, that makes covariances agree with squared normalized errors; 0 for too few
    errors."""
    factors = [quantile_upper_bound(errors, q) / chi2.ppf(q, DEGREES_OF_FREEDOM) for q in _QUANTILES]
    return float(min(max(factors), _MAX_SCALE))


def quantile_upper_bound(sample: Sequence[float], quantile: float) -> float:
    """Return an upper confidence bound (`_CONFIDENCE`) of a distribution's quantile, from a sample.

    It is an order statistic (David and Nagaraja, Order Statistics, 7.1); 0 if the sample is too small.
    """
    count = len(sample)
    rank = int(binom.ppf(_CONFIDENCE, count, quantile)) + 1          # P(rank - 1 or fewer below the quantile) is enough
    return sorted(sample)[rank - 1] if rank <= count else 0.0


def normalized_error_squared(pose: np.ndarray, covariance: np.ndarray, truth: np.ndarray | None) -> float:
    """Compute the normalized estimation error squared (NEES) of a pose (4, 4) with covariance (6, 6)."""
    assert truth is not None
    error = pose_difference(pose, truth)
    return float(error @ np.linalg.solve(covariance, error))
