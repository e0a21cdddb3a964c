"""Figures of a localization run: errors, recall, refusals, latency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aceg_ros.estimate import PoseEstimate
from aceg_ros.geometry import pose_error

RECALL_BOUNDS = ((0.05, 5.0), (0.1, 5.0), (0.25, 5.0), (0.5, 5.0))      # metres, degrees


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


@dataclass(frozen=True)
class Summary:
    """What `aceg evaluate` reports. Medians over localized frames (NaN where none), recall over all frames."""

    frames: int
    localized: int
    refused: dict[str, int]
    median_translation_m: float
    median_rotation_deg: float
    recall: dict[str, float]
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
    latency = percentiles([r.latency_ms for r in results])
    return Summary(len(results), len(errors), dict(sorted(refused.items())), float(medians[0]), float(medians[1]),
                   recall, latency, stage_ms)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(values, q)) if len(values) else float("nan") for q in (50, 95, 99)}
