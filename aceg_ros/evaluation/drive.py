"""A drive through a running node, as its topics tell of it, and the results that make of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from aceg_ros.estimate import PoseEstimate, Status
from aceg_ros.evaluation.metrics import FrameResult

STATUSES = {status.value: status for status in Status}


@dataclass
class Drive:
    """All by stamp in ns. images: stamps in order. truths: map_from_camera. poses: pose and covariance. answers: status
    and message of an image, and the values beside them."""

    images: list[int] = field(default_factory=list)
    truths: dict[int, np.ndarray] = field(default_factory=dict)
    poses: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    answers: dict[int, tuple[str, str, dict[str, str]]] = field(default_factory=dict)


def frame_results(drive: Drive, recorded: dict[int, tuple[str, float]] | None = None,
                  speed: float = 1.0) -> list[FrameResult]:
    """The answered images of known truth, against it; latency is the time from image stamp to answer.

    recorded: name and own stamp in seconds of each frame, by stamp; else the images are numbered. speed: seconds of the
    stamps in a real one.
    """
    results = []
    for index, stamp in enumerate(drive.images):
        status, message, values = drive.answers.get(stamp, ("", "", {}))
        if status not in STATUSES or stamp not in drive.truths:
            continue
        pose, covariance = drive.poses.get(stamp, (None, None))
        stage_ms = {key.removeprefix("stage_ms."): float(value) for key, value in values.items()
                    if key.startswith("stage_ms.")}
        estimate = PoseEstimate(status=STATUSES[status], message=message, map_from_camera=pose, covariance=covariance,
                                inliers=int(values.get("inliers", 0)),
                                inlier_ratio=float(values.get("inlier_ratio", 0)),
                                reprojection_rms_px=float(values.get("reprojection_rms_px", "nan")), stage_ms=stage_ms)
        name, stamp_s = (recorded or {}).get(stamp, (f"image {index}", stamp * 1e-9))
        results.append(FrameResult(name, stamp_s, drive.truths[stamp], estimate, float(values["age_ms"]) / speed))
    return results
