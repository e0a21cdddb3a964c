# SPDX-License-Identifier: Apache-2.0
"""Count images by their results, measure rates and ages, and report both in diagnostic messages.

The keys of these messages (received, answered, replaced, ...) must not change: users' programs read them.
"""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_msgs.msg import Header

from aceg_ros.estimate import Status
from aceg_ros.ros.localizer.map_loader import MapState
from aceg_ros.ros.localizer.results import INTERNAL_ERROR, NO_MAP, NO_MAP_MESSAGE, REPLACED, LocalizationResult
from aceg_ros.ros.mapping.controller import COLLECTING, TRAINING, MappingController

_ERRORS = (NO_MAP, INTERNAL_ERROR)
WINDOW_S = 10.0
_LASTING_S = 3.0        # a problem that is over sooner is not worth a line in the log


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
        self._results: deque[tuple[float, LocalizationResult, float]] = deque()

    def add_image(self) -> None:
        self._images.append(time.monotonic())

    def add_result(self, result: LocalizationResult, age_ms: float) -> None:
        if result.status != REPLACED:
            kept = replace(result, frame=None, estimate=None)       # without what takes memory
            self._results.append((time.monotonic(), kept, age_ms))

    def commonest_rejection(self) -> tuple[str, str] | None:
        """Return status and message of the commonest rejection, with its share, if nothing is accepted."""
        self._forget()
        results = [result for _, result, _ in list(self._results)]
        if not results or any(result.accepted for result in results):
            return None
        (status, count), = Counter(result.status for result in results).most_common(1)
        newest = next(result for result in reversed(results) if result.status == status)
        return status, (f"No image of the last {WINDOW_S:.0f} s gave a pose. {count} of {len(results)} for this reason:"
                        f" {newest.message}")

    def values(self) -> dict[str, object]:
        """Return the statistics by their keys in messages."""
        now = self._forget()
        images, results = list(self._images), list(self._results)
        values: dict[str, object] = {
            "image_rate_hz": f"{len(images) / WINDOW_S:.1f}",
            "pose_rate_hz": f"{sum(result.accepted for _, result, _ in results) / WINDOW_S:.1f}",
            "input_age_s": f"{now - images[-1]:.2f}" if images else "nan"}
        ages, stages = [age_ms for *_, age_ms in results], [result.stage_ms for _, result, _ in results]
        for name, quantile in (("p50", 50), ("p95", 95)):
            values[f"age_ms.{name}"] = f"{np.percentile(ages, quantile):.1f}" if ages else "nan"
        for name in sorted({name for stage_ms in stages for name in stage_ms}):
            values[f"stage_ms.{name}"] = f"{np.median([s[name] for s in stages if name in s]):.1f}"
        return values

    def _forget(self) -> float:
        """Drop what has left the window, and return the time."""
        now = time.monotonic()
        while self._images and self._images[0] < now - WINDOW_S:
            self._images.popleft()
        while self._results and self._results[0][0] < now - WINDOW_S:
            self._results.popleft()
        return now


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
class Problem:
    """What keeps the node from localizing. kind: the same as long as it is the same problem."""

    kind: str
    level: bytes
    message: str


@dataclass(frozen=True, kw_only=True)
class NodeState:
    """What the node has and lacks at the moment.

    Attributes:
        advice: What to do for it to become active.
        missing_input: The sentence that names the clock, camera_info or images that do not come; empty if all come.
        transform_problem: The sentence that says why TF is not published, if it cannot be; else empty.
    """

    lifecycle: str
    advice: str
    is_enabled: bool
    device: str
    map_state: MapState
    missing_input: str
    transform_problem: str

    def problem(self, window: SlidingWindow) -> Problem | None:
        """Return what is missing most, or None."""
        state, warning = self.map_state, DiagnosticStatus.WARN
        if self.lifecycle != "active":
            return Problem(kind="lifecycle", level=warning, message=state.error or self.advice)
        if not state.path:
            return Problem(kind="map error" if state.error else "no map", level=DiagnosticStatus.ERROR,
                           message=state.error or NO_MAP_MESSAGE)
        if state.error:
            return Problem(kind="map error", level=warning,
                           message=f"{state.error} The map {state.path} stays in use.")
        if not self.is_enabled:
            return Problem(kind="switched off", level=warning, message="Localization is switched off: call ~/enable.")
        if self.missing_input:
            kind = re.sub(r"\d", "", self.missing_input.split(":")[0])       # without the seconds, which go on
            return Problem(kind=kind, level=warning, message=self.missing_input)
        rejection = window.commonest_rejection()
        if rejection is not None:
            status, message = rejection
            return Problem(kind=f"rejected {status}", level=warning, message=message)
        if self.transform_problem:
            return Problem(kind="transform", level=warning, message=self.transform_problem)
        return None


class ProblemLog:
    """Logs what keeps the node from localizing: a line for each kind of problem that lasts, until there is none."""

    # Logged elsewhere, or wanted by somebody.
    _SILENT = ("lifecycle", "map error", "switched off", "transform")

    def __init__(self, warn: Callable[[str], object]) -> None:
        self._warn = warn
        self._told: set[str] = set()
        self._kind, self._since_s = "", 0.0

    def update(self, problem: Problem | None) -> None:
        if problem is None:
            self._kind = ""
            self._told.clear()
            return
        now_s = time.monotonic()
        if problem.kind != self._kind:
            self._kind, self._since_s = problem.kind, now_s
        lasts = now_s - self._since_s >= (0.0 if problem.kind == "no map" else _LASTING_S)
        if lasts and problem.kind not in (*self._SILENT, *self._told):
            self._told.add(problem.kind)
            self._warn(problem.message)


def activation_advice(name: str, lifecycle: str) -> str:
    """Return the sentence that says how a node that is not active becomes so. name: of the node, with its namespace."""
    command = f"'ros2 lifecycle set {name} "
    advice = {"unconfigured": f"{command}configure', then 'activate'", "inactive": f"{command}activate'",
              "configuring": "it is loading its map", "finalized": "it has to be started anew"}
    return f"The node is {lifecycle}{': ' if lifecycle in advice else ''}{advice.get(lifecycle, '')}."


def node_status(name: str, state: NodeState, counts: StatusCounts, window: SlidingWindow) -> DiagnosticStatus:
    """Return whether the node has what it needs. name: of the node."""
    problem = state.problem(window) or Problem(kind="", level=DiagnosticStatus.OK, message="Localizing.")
    values = {"lifecycle": state.lifecycle, "map": state.map_state.path, "device": state.device, **counts.values(),
              **window.values()}
    return DiagnosticStatus(level=problem.level, name=f"{name}: node", message=problem.message, values=_pairs(values))


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
