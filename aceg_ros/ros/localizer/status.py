"""Count images by their results, measure rates and ages, and report both in diagnostic messages.

The keys of these messages (received, answered, replaced, ...) must not change: users' programs read them.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_msgs.msg import Header

from aceg_ros.estimate import Status
from aceg_ros.ros.localizer.map_loader import MapState
from aceg_ros.ros.localizer.results import INTERNAL_ERROR, NO_MAP, REPLACED, LocalizationResult
from aceg_ros.ros.mapping.controller import COLLECTING, TRAINING, MappingController

_ERRORS = (NO_MAP, INTERNAL_ERROR)
WINDOW_S = 10.0


class StatusCounts:
    """Counts images: received = answered + replaced + skipped + those in progress (at most two).

    answered: accepted or rejected. skipped: by the rate limit, or while localization is switched off. `received` and
    `skipped` are written by the executor thread only, the rest under the lock of `StatusPublisher`.
    """

    def __init__(self) -> None:
        self.received = self.skipped = 0
        self.by_status: Counter[str] = Counter()

    def values(self) -> dict[str, int]:
        """Return the counts by their keys in messages."""
        replaced, accepted = self.by_status[REPLACED], self.by_status[Status.ACCEPTED.value]
        answered = self.by_status.total() - replaced
        rejected = {f"refused.{status}": count for status, count in sorted(self.by_status.items())
                    if status not in (REPLACED, Status.ACCEPTED.value)}
        return {"received": self.received, "answered": answered, "accepted": accepted,
                "refused": answered - accepted, **rejected, "replaced": replaced, "skipped": self.skipped}


class SlidingWindow:
    """Rates and durations over the last ten seconds (wall clock)."""

    def __init__(self) -> None:
        self._images: deque[float] = deque()
        self._results: deque[tuple[float, bool, float, dict[str, float]]] = deque()

    def add_image(self) -> None:
        self._images.append(time.monotonic())

    def add_result(self, result: LocalizationResult, age_ms: float) -> None:
        if result.status != REPLACED:
            self._results.append((time.monotonic(), result.accepted, age_ms, result.stage_ms))

    def values(self) -> dict[str, object]:
        """Return the statistics by their keys in messages."""
        now = time.monotonic()
        for entries, moment in ((self._images, lambda e: e), (self._results, lambda e: e[0])):
            while entries and moment(entries[0]) < now - WINDOW_S:
                entries.popleft()
        images, results = list(self._images), list(self._results)
        values: dict[str, object] = {
            "image_rate_hz": f"{len(images) / WINDOW_S:.1f}",
            "pose_rate_hz": f"{sum(accepted for _, accepted, _, _ in results) / WINDOW_S:.1f}",
            "input_age_s": f"{now - images[-1]:.2f}" if images else "nan"}
        ages = [age_ms for _, _, age_ms, _ in results]
        for name, quantile in (("p50", 50), ("p95", 95)):
            values[f"age_ms.{name}"] = f"{np.percentile(ages, quantile):.1f}" if ages else "nan"
        for stage in sorted({stage for *_, stages in results for stage in stages}):
            values[f"stage_ms.{stage}"] = f"{np.median([s[stage] for *_, s in results if stage in s]):.1f}"
        return values


def image_status(name: str, result: LocalizationResult, age_ms: float, counts: StatusCounts) -> DiagnosticArray:
    """Make the message on the result of one image, with the stamp of the image. name: of the node."""
    level = DiagnosticStatus.WARN
    if result.status in (Status.ACCEPTED.value, REPLACED):
        level = DiagnosticStatus.OK
    elif result.status in _ERRORS:
        level = DiagnosticStatus.ERROR
    values: dict[str, object] = {"status": result.status}
    if result.estimate is not None:
        values |= {"inliers": result.estimate.inliers, "inlier_ratio": f"{result.estimate.inlier_ratio:.3f}",
                   "reprojection_rms_px": f"{result.estimate.reprojection_rms_px:.2f}"}
    values |= {f"stage_ms.{stage}": f"{ms:.1f}" for stage, ms in result.stage_ms.items()}
    values |= {"age_ms": f"{age_ms:.1f}", **counts.values()}
    status = DiagnosticStatus(level=level, name=f"{name}: image", message=result.message,
                              hardware_id=result.header.frame_id, values=_pairs(values))
    return diagnostic_array(result.header, [status])


@dataclass(frozen=True, kw_only=True)
class NodeState:
    """The current state of the node."""

    lifecycle: str
    is_enabled: bool
    has_camera_info: bool
    device: str
    map_state: MapState

    def problem(self, counts: StatusCounts) -> tuple[bytes, str]:
        """Return level and message of the most important problem, or that there is none."""
        state, warning = self.map_state, DiagnosticStatus.WARN
        if self.lifecycle != "active":
            return warning, state.error or f"The node is {self.lifecycle}."
        if not state.path:
            return DiagnosticStatus.ERROR, state.error or ("No map is loaded: set the parameter map_path, or make one"
                                                           " with ~/start_mapping.")
        if state.error:
            return warning, f"{state.error} The map {state.path} stays in use."
        if not self.is_enabled:
            return warning, "Localization is switched off: call ~/enable."
        if not self.has_camera_info:
            return warning, "No camera_info has been received yet."
        if not counts.received:
            return warning, "No image has been received yet."
        return DiagnosticStatus.OK, "Localizing."


def node_status(name: str, state: NodeState, counts: StatusCounts, window: SlidingWindow) -> DiagnosticStatus:
    """Make the message on the state of the node. name: of the node."""
    level, message = state.problem(counts)
    values = {"lifecycle": state.lifecycle, "map": state.map_state.path, "device": state.device, **counts.values(),
              **window.values()}
    return DiagnosticStatus(level=level, name=f"{name}: node", message=message, values=_pairs(values))


def mapping_status(name: str, mapping: MappingController) -> DiagnosticStatus:
    """Make the message on the progress of mapping. name: of the node."""
    status = mapping.status
    level = DiagnosticStatus.ERROR if status.failed else DiagnosticStatus.OK
    values = mapping.values()
    message = status.message
    if status.state == COLLECTING and "keyframes" in values:       # missing for a moment when collecting ends
        message = f"Collecting: {values['keyframes']} keyframes."
        if values["last_problem"]:
            level, message = DiagnosticStatus.WARN, f"{message} Last problem: {values['last_problem']}"
    elif status.state == TRAINING and status.progress is not None:
        message = (f"Training, {status.progress.stage}: {100 * status.progress.fraction:.0f} %, at most"
                   f" {status.progress.remaining_s:.0f} s left.")
    return DiagnosticStatus(level=level, name=f"{name}: mapping", message=message, values=_pairs(values))


def diagnostic_array(header: Header, statuses: Iterable[DiagnosticStatus]) -> DiagnosticArray:
    return DiagnosticArray(header=header, status=list(statuses))


def _pairs(values: dict[str, object]) -> list[KeyValue]:
    return [KeyValue(key=key, value=str(value)) for key, value in values.items()]
