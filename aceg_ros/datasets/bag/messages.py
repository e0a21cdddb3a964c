# SPDX-License-Identifier: Apache-2.0
"""Reads stamps, frames and poses from messages of rclpy and rosbags, ROS 1 and ROS 2."""

from __future__ import annotations

from typing import Any

import numpy as np

from aceg_ros.geometry import pose_from_quaternion
from aceg_ros.utils.stamps import stamp_to_ns


def stamp_ns(message: Any) -> int:
    """Return the stamp in a message's header, in nanoseconds."""
    return stamp_to_ns(message.header.stamp)


def frame_name(name: str) -> str:
    """Return the name of a TF frame without the leading slash that older recordings have."""
    return name.lstrip("/")


def pose_matrix(position: Any, orientation: Any) -> np.ndarray:
    """Return the pose (4, 4) of a position and a quaternion. Raises ValueError if the quaternion is not usable."""
    p, q = position, orientation
    return pose_from_quaternion(np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w]))
