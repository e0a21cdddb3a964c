# SPDX-License-Identifier: Apache-2.0
"""The results of a running localizer node, recorded from its topics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from aceg_ros.estimate import PoseEstimate, Status
from aceg_ros.evaluation.metrics import FrameResult
from aceg_ros.utils.stamps import ns_to_s

_STATUSES = {status.value: status for status in Status}


@dataclass(frozen=True, kw_only=True)
class ImageStatus:
    """The node's status message on one image. status: of `Status`, or of the node (replaced, no_map, ...)."""

    status: str
    message: str
    values: Mapping[str, str]


@dataclass(kw_only=True)        # mutable: filled message by message
class NodeRecording:
    """The images sent to a localizer node and its results, by image stamp in nanoseconds.

    images: the stamps in order. truths: true map_from_camera (4, 4). poses: published pose and covariance (6, 6).
    """

    images: list[int] = field(default_factory=list)
    truths: dict[int, np.ndarray] = field(default_factory=dict)
    poses: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    statuses: dict[int, ImageStatus] = field(default_factory=dict)

    def evaluated(self, stamp: int) -> bool:
        """Return whether the localizer accepted or rejected this image (as opposed to skipping or replacing it)."""
        return stamp in self.statuses and self.statuses[stamp].status in _STATUSES

    def not_evaluated(self) -> dict[str, int]:
        """Count the other images by the node's status for them, "lost" if there was none."""
        counts = Counter(self.statuses[stamp].status if stamp in self.statuses else "lost"
                         for stamp in self.images if not self.evaluated(stamp))
        return dict(sorted(counts.items()))

    def frame_results(self, recorded: Mapping[int, tuple[str, float]] | None = None,
                      speed: float = 1.0) -> list[FrameResult]:
        """Compare the images that were evaluated, and whose true pose is known, with the truth.

        Args:
            recorded: Name and recorded stamp in seconds of each frame, by image stamp; None: the images are numbered.
            speed: Playback speed in recorded seconds per second.

        Returns:
            Results in the order of the images; latency is the time from the image's stamp to the node's status.
        """
        results = []
        for index, stamp in enumerate(self.images):
            if self.evaluated(stamp) and stamp in self.truths:
                name, stamp_s = (recorded or {}).get(stamp, (f"image {index}", ns_to_s(stamp)))
                latency_ms = float(self.statuses[stamp].values["age_ms"]) / speed
                results.append(FrameResult(name=name, stamp_s=stamp_s, truth=self.truths[stamp],
                                           estimate=self._estimate(stamp), latency_ms=latency_ms))
        return results

    def _estimate(self, stamp: int) -> PoseEstimate:
        status, values = self.statuses[stamp], self.statuses[stamp].values
        pose, covariance = self.poses.get(stamp, (None, None))
        stage_ms = {key.removeprefix("stage_ms."): float(value) for key, value in values.items()
                    if key.startswith("stage_ms.")}
        return PoseEstimate(status=_STATUSES[status.status], message=status.message, map_from_camera=pose,
                            covariance=covariance, inliers=int(values.get("inliers", 0)),
                            inlier_ratio=float(values.get("inlier_ratio", 0)),
                            reprojection_rms_px=float(values.get("reprojection_rms_px", "nan")), stage_ms=stage_ms)
