"""Counts what became of the images and puts it into diagnostic messages."""

from __future__ import annotations

from collections import Counter

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_msgs.msg import Header

from aceg_ros.estimate import Status
from aceg_ros.ros.worker import INTERNAL_ERROR, NO_MAP, REPLACED, Answer, MapState

_ERRORS = (NO_MAP, INTERNAL_ERROR)


class Tally:
    """received = answered + replaced + the (at most two) images still at work; answered = accepted + refused.

    `received` is written by the executor, the rest under the caller's lock.
    """

    def __init__(self) -> None:
        self.received = 0
        self.by_status: Counter[str] = Counter()

    def values(self) -> dict[str, int]:
        """Flat figures by the names that users see."""
        replaced, accepted = self.by_status[REPLACED], self.by_status[Status.ACCEPTED.value]
        answered = self.by_status.total() - replaced
        refused = {f"refused.{status}": count for status, count in sorted(self.by_status.items())
                   if status not in (REPLACED, Status.ACCEPTED.value)}
        return {"received": self.received, "answered": answered, "accepted": accepted,
                "refused": answered - accepted, **refused, "replaced": replaced}


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
    return _array(answer.header, f"{name}: image", level, answer.message, answer.header.frame_id, values)


def node_status(name: str, header: Header, map_state: MapState, has_info: bool, tally: Tally) -> DiagnosticArray:
    """Whether the node has what it needs, once a second and whenever a map was loaded or refused."""
    level, message = DiagnosticStatus.OK, "Localizing."
    if not map_state.served:
        level, message = DiagnosticStatus.ERROR, map_state.error or "No map is loaded: set the parameter map_path."
    elif map_state.error:
        level, message = DiagnosticStatus.WARN, f"{map_state.error} The map {map_state.served} stays in use."
    elif not has_info:
        level, message = DiagnosticStatus.WARN, "No camera_info has been received yet."
    elif not tally.received:
        level, message = DiagnosticStatus.WARN, "No image has been received yet."
    return _array(header, f"{name}: node", level, message, "", {"map": map_state.served, **tally.values()})


def _array(header: Header, name: str, level: bytes, message: str, hardware_id: str,
           values: dict[str, object]) -> DiagnosticArray:
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    status = DiagnosticStatus(level=level, name=name, message=message, hardware_id=hardware_id, values=pairs)
    return DiagnosticArray(header=header, status=[status])
