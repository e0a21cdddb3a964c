"""Counts what became of the images, measures rates and ages, and puts it into diagnostic messages."""

from __future__ import annotations

import time
from collections import Counter, deque

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_msgs.msg import Header

from aceg_ros.estimate import Status
from aceg_ros.ros.localizer.worker import INTERNAL_ERROR, NO_MAP, REPLACED, Answer, MapState
from aceg_ros.ros.mapping.mapping import COLLECTING, TRAINING, Mapping

_ERRORS = (NO_MAP, INTERNAL_ERROR)
WINDOW_S = 10.0


class Tally:
    """received = answered + replaced + skipped + the (at most two) images still at work; answered = accepted + refused.

    skipped: by the rate limit, or while localization is switched off. `received` and `skipped` are written by the
    executor, the rest under the caller's lock.
    """

    def __init__(self) -> None:
        self.received = self.skipped = 0
        self.by_status: Counter[str] = Counter()

    def values(self) -> dict[str, int]:
        """Flat figures by the names that users see."""
        replaced, accepted = self.by_status[REPLACED], self.by_status[Status.ACCEPTED.value]
        answered = self.by_status.total() - replaced
        refused = {f"refused.{status}": count for status, count in sorted(self.by_status.items())
                   if status not in (REPLACED, Status.ACCEPTED.value)}
        return {"received": self.received, "answered": answered, "accepted": accepted,
                "refused": answered - accepted, **refused, "replaced": replaced, "skipped": self.skipped}


class Window:
    """Rates and times of the last ten seconds, by the wall clock."""

    def __init__(self) -> None:
        self._images: deque[float] = deque()
        self._answers: deque[tuple[float, bool, float, dict[str, float]]] = deque()

    def received(self) -> None:
        self._images.append(time.monotonic())

    def answered(self, answer: Answer, age_ms: float) -> None:
        if answer.status != REPLACED:
            self._answers.append((time.monotonic(), answer.accepted, age_ms, answer.stage_ms))

    def values(self) -> dict[str, object]:
        """Flat figures by the names that users see."""
        now = time.monotonic()
        for entries, moment in ((self._images, lambda e: e), (self._answers, lambda e: e[0])):
            while entries and moment(entries[0]) < now - WINDOW_S:
                entries.popleft()
        images, answers = list(self._images), list(self._answers)
        values: dict[str, object] = {
            "image_rate_hz": f"{len(images) / WINDOW_S:.1f}",
            "pose_rate_hz": f"{sum(accepted for _, accepted, _, _ in answers) / WINDOW_S:.1f}",
            "input_age_s": f"{now - images[-1]:.2f}" if images else "nan"}
        ages = [age_ms for _, _, age_ms, _ in answers]
        for name, quantile in (("p50", 50), ("p95", 95)):
            values[f"age_ms.{name}"] = f"{np.percentile(ages, quantile):.1f}" if ages else "nan"
        for stage in sorted({stage for *_, stages in answers for stage in stages}):
            values[f"stage_ms.{stage}"] = f"{np.median([s[stage] for *_, s in answers if stage in s]):.1f}"
        return values


def answer_status(name: str, answer: Answer, age_ms: float, tally: Tally) -> DiagnosticArray:
    """What became of one image, stamped as the image."""
    level = DiagnosticStatus.WARN
    if answer.status in (Status.ACCEPTED.value, REPLACED):
        level = DiagnosticStatus.OK
    elif answer.status in _ERRORS:
        level = DiagnosticStatus.ERROR
    values: dict[str, object] = {"status": answer.status}
    if answer.estimate is not None:
        values |= {"inliers": answer.estimate.inliers, "inlier_ratio": f"{answer.estimate.inlier_ratio:.3f}",
                   "reprojection_rms_px": f"{answer.estimate.reprojection_rms_px:.2f}"}
    values |= {f"stage_ms.{stage}": f"{ms:.1f}" for stage, ms in answer.stage_ms.items()}
    values |= {"age_ms": f"{age_ms:.1f}", **tally.values()}
    return array(answer.header, _status(f"{name}: image", level, answer.message, answer.header.frame_id, values))


def node_status(name: str, lifecycle: str, enabled: bool, map_state: MapState, has_info: bool, device: str,
                tally: Tally, window: Window) -> DiagnosticStatus:
    """Whether the node has what it needs."""
    level, message = DiagnosticStatus.OK, "Localizing."
    if lifecycle != "active":
        level, message = DiagnosticStatus.WARN, map_state.error or f"The node is {lifecycle}."
    elif not map_state.served:
        level = DiagnosticStatus.ERROR
        message = map_state.error or "No map is loaded: set the parameter map_path, or make one with ~/start_mapping."
    elif map_state.error:
        level, message = DiagnosticStatus.WARN, f"{map_state.error} The map {map_state.served} stays in use."
    elif not enabled:
        level, message = DiagnosticStatus.WARN, "Localization is switched off: call ~/enable."
    elif not has_info:
        level, message = DiagnosticStatus.WARN, "No camera_info has been received yet."
    elif not tally.received:
        level, message = DiagnosticStatus.WARN, "No image has been received yet."
    values = {"lifecycle": lifecycle, "map": map_state.served, "device": device, **tally.values(), **window.values()}
    return _status(f"{name}: node", level, message, "", values)


def mapping_status(name: str, mapping: Mapping) -> DiagnosticStatus:
    """How mapping gets on."""
    status = mapping.status
    level = DiagnosticStatus.ERROR if status.failed else DiagnosticStatus.OK
    values = mapping.values()
    message = status.message
    if status.state == COLLECTING and "keyframes" in values:       # not for a moment at its end
        message = f"Collecting: {values['keyframes']} keyframes."
        if values["last_problem"]:
            level, message = DiagnosticStatus.WARN, f"{message} Last problem: {values['last_problem']}"
    elif status.state == TRAINING and status.progress is not None:
        message = (f"Training, {status.progress.stage}: {100 * status.progress.fraction:.0f} %, at most"
                   f" {status.progress.remaining_s:.0f} s left.")
    return _status(f"{name}: mapping", level, message, "", values)


def array(header: Header, *statuses: DiagnosticStatus) -> DiagnosticArray:
    return DiagnosticArray(header=header, status=list(statuses))


def _status(name: str, level: bytes, message: str, hardware_id: str, values: dict[str, object]) -> DiagnosticStatus:
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return DiagnosticStatus(level=level, name=name, message=message, hardware_id=hardware_id, values=pairs)
