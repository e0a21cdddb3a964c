# SPDX-License-Identifier: Apache-2.0
"""Statistics of localized frames: errors, recall, rejections, trajectory, availability, consistency, latency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from aceg_ros.estimate import PoseEstimate
from aceg_ros.geometry import invert, pose_error
from aceg_ros.mapping.calibration import CHI2_95, normalized_error_squared

RECALL_BOUNDS = ((0.05, 5.0), (0.1, 5.0), (0.25, 5.0), (0.5, 5.0))      # metres, degrees
FALSE_BOUNDS = (0.5, 10.0)          # metres, degrees: an accepted pose with a larger error in either is a false accept
AVAILABILITY_S = (0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class FrameResult:
    """The estimate for a frame, and its true pose (map_from_camera). latency_ms: wall time of `localize`."""

    name: str
    stamp_s: float
    truth: np.ndarray
    estimate: PoseEstimate
    latency_ms: float

    @property
    def errors(self) -> tuple[float, float] | None:
        """Translation error in metres and rotation error in degrees; None if the frame was rejected."""
        if self.estimate.map_from_camera is None:
            return None
        return pose_error(self.estimate.map_from_camera, self.truth)

    @property
    def standard_deviations(self) -> tuple[float, float] | None:
        """Root of the summed variances of the covariance, in metres and degrees; None if the frame was rejected."""
        if self.estimate.covariance is None:
            return None
        variances = np.diag(self.estimate.covariance)
        return float(np.sqrt(variances[:3].sum())), float(np.degrees(np.sqrt(variances[3:].sum())))

    @property
    def nees(self) -> float | None:
        """Normalized estimation error squared, 6 degrees of freedom; None if the frame was rejected."""
        if self.estimate.map_from_camera is None or self.estimate.covariance is None:
            return None
        return normalized_error_squared(self.estimate.map_from_camera, self.estimate.covariance, self.truth)


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """How well the covariances agree with the errors (all NaN without poses).

    inside_95: share of the true poses that lie in the 95 % ellipsoid of their estimate. nees: normalized estimation
    error squared; if the covariances are right, it is chi-square distributed with 6 degrees of freedom (median 5.3).
    median_std_...: median root of the summed variances.
    """

    inside_95: float
    median_nees: float
    mean_nees: float
    median_std_m: float
    median_std_deg: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The statistics of `aceg evaluate`. Medians are over localized frames (NaN if there are none), recall over all.

    rejected: frames by status. false_accepts: accepted poses beyond FALSE_BOUNDS. ate_m: absolute trajectory error,
    root mean square, without alignment: both trajectories are in the map frame. rpe_...: relative pose error between
    successive localized frames, root mean square. availability: share of the recorded time with a pose younger than
    each age, without latency.
    """

    frames: int
    localized: int
    rejected: dict[str, int]
    false_accepts: int
    median_translation_m: float
    median_rotation_deg: float
    recall: dict[str, float]
    ate_m: float
    rpe_m: float
    rpe_deg: float
    availability: dict[str, float]
    consistency: Consistency
    latency_ms: dict[str, float]
    stage_ms: dict[str, float]


def summarize(results: Sequence[FrameResult]) -> Summary:
    """Compute the statistics of the frames of one recording, in order."""
    errors = np.array([r.errors for r in results if r.errors is not None]).reshape(-1, 2)
    rejected = Counter(r.estimate.status.value for r in results if not r.estimate.accepted)
    count = max(len(results), 1)
    recall = {f"{metres:g}m_{degrees:g}deg": float((errors <= (metres, degrees)).all(1).sum() / count)
              for metres, degrees in RECALL_BOUNDS}
    medians = np.median(errors, axis=0) if len(errors) else np.full(2, np.nan)
    stages = sorted({stage for r in results for stage in r.estimate.stage_ms})
    stage_ms = {stage: float(np.median([r.estimate.stage_ms[stage] for r in results if stage in r.estimate.stage_ms]))
                for stage in stages}
    motion = _motion_errors(results)
    return Summary(
        frames=len(results), localized=len(errors), rejected=dict(sorted(rejected.items())),
        false_accepts=int((errors > FALSE_BOUNDS).any(1).sum()), median_translation_m=float(medians[0]),
        median_rotation_deg=float(medians[1]), recall=recall, ate_m=_rms(errors[:, 0]), rpe_m=_rms(motion[:, 0]),
        rpe_deg=_rms(motion[:, 1]), availability=availability(results), consistency=consistency(results),
        latency_ms=percentiles([r.latency_ms for r in results]), stage_ms=stage_ms)


def consistency(results: Sequence[FrameResult]) -> Consistency:
    """Compare the errors of the localized frames with their covariances."""
    nees = np.array([r.nees for r in results if r.nees is not None])
    nan = float("nan")
    if not len(nees):
        return Consistency(inside_95=nan, median_nees=nan, mean_nees=nan, median_std_m=nan, median_std_deg=nan)
    std_m, std_deg = np.median([r.standard_deviations for r in results if r.standard_deviations is not None], axis=0)
    return Consistency(inside_95=float((nees <= CHI2_95).mean()), median_nees=float(np.median(nees)),
                       mean_nees=float(nees.mean()), median_std_m=float(std_m), median_std_deg=float(std_deg))


def availability(results: Sequence[FrameResult]) -> dict[str, float]:
    """Return the share of the time from first to last frame with a pose younger than each of AVAILABILITY_S."""
    stamps = np.sort([r.stamp_s for r in results])
    found = np.sort([r.stamp_s for r in results if r.estimate.accepted])
    if len(stamps) < 2 or stamps[-1] <= stamps[0]:
        return {f"{age_s:g}s": float("nan") for age_s in AVAILABILITY_S}
    until = np.append(found[1:], stamps[-1])
    return {f"{age_s:g}s": float(np.minimum(until - found, age_s).sum() / (stamps[-1] - stamps[0]))
            for age_s in AVAILABILITY_S}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return p50, p95 and p99 of the values; NaN if there are none."""
    return {f"p{q}": float(np.percentile(values, q)) if len(values) else float("nan") for q in (50, 95, 99)}


def _motion_errors(results: Sequence[FrameResult]) -> np.ndarray:
    """Return the errors (N, 2), metres and degrees, of the motion between successive frames that are both localized."""
    errors = [pose_error(invert(a.estimate.map_from_camera) @ b.estimate.map_from_camera, invert(a.truth) @ b.truth)
              for a, b in pairwise(results)
              if a.estimate.map_from_camera is not None and b.estimate.map_from_camera is not None]
    return np.array(errors).reshape(-1, 2)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2))) if len(values) else float("nan")
