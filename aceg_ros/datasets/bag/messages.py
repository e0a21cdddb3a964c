"""Values of message fields: stamps, frames and poses, of whichever library and ROS version the messages are."""

from __future__ import annotations

from typing import Any

import numpy as np

from aceg_ros.geometry import pose_from_quaternion
from aceg_ros.utils.stamps import stamp_to_ns


def stamp_ns(message: Any) -> int:
    """The stamp in a message's header, in nanoseconds."""
    return stamp_to_ns(message.header.stamp)


def frame_name(name: str) -> str:
    """A TF frame without the leading slash of older recordings."""
    return name.lstrip("/")


def pose_matrix(position: Any, orientation: Any) -> np.ndarray:
    """The pose (4, 4) of a position (or translation) and a quaternion. Raises ValueError if it is no rotation."""
    p, q = position, orientation
    return pose_from_quaternion(np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w]))
