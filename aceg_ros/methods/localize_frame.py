# SPDX-License-Identifier: Apache-2.0
"""What localizers that first extract something of an image do with a frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from aceg_ros.camera import Frame
from aceg_ros.encoders.preprocess import reject_image
from aceg_ros.estimate import PoseEstimate
from aceg_ros.utils.stopwatch import Stopwatch

Query = TypeVar("Query")


def localize_frame(frame: Frame, extract: Callable[[Frame], Query],
                   localize: Callable[[Query, Stopwatch], PoseEstimate]) -> PoseEstimate:
    """Reject an unusable image, or extract what localizes it, which is timed as "encode", and localize that."""
    rejection = reject_image(frame)
    if rejection is not None:
        return rejection
    stopwatch = Stopwatch()
    query = extract(frame)
    stopwatch.lap("encode")
    return localize(query, stopwatch)
