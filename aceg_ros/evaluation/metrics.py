"""Figures of a localization run: errors, recall, refusals, trajectory, availability, consistency, latency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from aceg_ros.estimate import PoseEstimate
from aceg_ros.geometry import invert, pose_error
from aceg_ros.mapping.calibration import INSIDE, squared_distance

RECALL_BOUNDS = ((0.05, 5.0), (0.1, 5.0), (0.25, 5.0), (0.5, 5.0))      # metres, degrees
FALSE_BOUNDS = (0.5, 10.0)          # an accepted pose beyond either is a false one: metres, degrees
AVAILABILITY_S = (0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class FrameResult:
    """One localized frame against its true pose. Errors are None for a refusal. latency_ms: wall time of localize."""

    name: str
    stamp_s: float
    truth: np.ndarray
    estimate: PoseEstimate
    latency_ms: float

    @property
    def errors(self) -> tuple[float, float] | None:
        """Translation in metres and rotation in degrees."""
        if self.estimate.map_from_camera is None:
            return None
        return pose_error(self.estimate.map_from_camera, self.truth)

    @property
    def deviations(self) -> tuple[float, float] | None:
        """What the covariance says: root of the summed variances, in metres and degrees."""
        if self.estimate.covariance is None:
            return None
        variances = np.diag(self.estimate.covariance)
        return float(np.sqrt(variances[:3].sum())), float(np.degrees(np.sqrt(variances[3:].sum())))

    @property
    def nees(self) -> float | None:
        """Normalized estimation error squared, 6 degrees of freedom."""
        if self.estimate.map_from_camera is None or self.estimate.covariance is None:
            return None
        return squared_distance(self.estimate.map_from_camera, self.estimate.covariance, self.truth)


@dataclass(frozen=True)
class Consistency:
    """Whether covariances tell the truth (NaN without poses). inside_95: share of poses in their 95 % ellipsoid.
    nees: chi-square of 6 degrees of freedom has the median 5.3. median_std_...: root of the summed variances."""

    inside_95: float
    median_nees: float
    mean_nees: float
    median_std_m: float
    median_std_deg: float


@dataclass(frozen=True)
class Summary:
    """What `aceg evaluate` reports. Medians over localized frames (NaN where none), recall over all frames.

    false_accepts: accepted poses beyond FALSE_BOUNDS. ate_m: root mean square of the position errors, both
    trajectories being in the map's frame. rpe: the same for the motion between successive localized frames.
    availability: share of the time of the recording at which the newest pose was no older than that; latency aside.
    """

    frames: int
    localized: int
    refused: dict[str, int]
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
    errors = np.array([r.errors for r in results if r.errors is not None]).reshape(-1, 2)
    refused = Counter(r.estimate.status.value for r in results if not r.estimate.accepted)
    count = max(len(results), 1)
    recall = {f"{metres:g}m_{degrees:g}deg": float((errors <= (metres, degrees)).all(1).sum() / count)
              for metres, degrees in RECALL_BOUNDS}
    medians = np.median(errors, axis=0) if len(errors) else np.full(2, np.nan)
    stages = sorted({stage for r in results for stage in r.estimate.stage_ms})
    stage_ms = {stage: float(np.median([r.estimate.stage_ms[stage] for r in results if stage in r.estimate.stage_ms]))
                for stage in stages}
    motion = _motion_errors(results)
    false_accepts = int((errors > FALSE_BOUNDS).any(1).sum())
    return Summary(len(results), len(errors), dict(sorted(refused.items())), false_accepts, float(medians[0]),
                   float(medians[1]), recall, _rms(errors[:, 0]), _rms(motion[:, 0]), _rms(motion[:, 1]),
                   availability(results), consistency(results), percentiles([r.latency_ms for r in results]), stage_ms)


def consistency(results: Sequence[FrameResult]) -> Consistency:
    nees = np.array([r.nees for r in results if r.nees is not None])
    deviations = np.array([r.deviations for r in results if r.deviations is not None]).reshape(-1, 2)
    if not len(nees):
        return Consistency(*[float("nan")] * 5)
    std_m, std_deg = np.median(deviations, axis=0)
    return Consistency(float((nees <= INSIDE).mean()), float(np.median(nees)), float(nees.mean()), float(std_m),
                       float(std_deg))


def availability(results: Sequence[FrameResult]) -> dict[str, float]:
    """Share of the time from the first to the last frame at which a pose no older than some seconds was there."""
    stamps = np.sort([r.stamp_s for r in results])
    found = np.sort([r.stamp_s for r in results if r.estimate.accepted])
    if len(stamps) < 2 or stamps[-1] <= stamps[0]:
        return {f"{age_s:g}s": float("nan") for age_s in AVAILABILITY_S}
    until = np.append(found[1:], stamps[-1])
    return {f"{age_s:g}s": float(np.minimum(until - found, age_s).sum() / (stamps[-1] - stamps[0]))
            for age_s in AVAILABILITY_S}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(values, q)) if len(values) else float("nan") for q in (50, 95, 99)}


def _motion_errors(results: Sequence[FrameResult]) -> np.ndarray:
    """(N, 2) metres and degrees between estimated and true motion of frames in a row that are both localized."""
    errors = [pose_error(invert(a.estimate.map_from_camera) @ b.estimate.map_from_camera, invert(a.truth) @ b.truth)
              for a, b in pairwise(results)
              if a.estimate.map_from_camera is not None and b.estimate.map_from_camera is not None]
    return np.array(errors).reshape(-1, 2)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2))) if len(values) else float("nan")
