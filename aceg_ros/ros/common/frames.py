"""Poses from TF at the stamp of an image."""

from __future__ import annotations

import time

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from rclpy.time import Time as RosTime
from tf2_ros import Buffer, TransformException, TransformListener

from aceg_ros.errors import UserError
from aceg_ros.geometry import pose_from_quaternion

_POLL_S = 0.01


class Frames:
    """All transforms that are heard."""

    def __init__(self, node: Node) -> None:
        self.buffer = Buffer(node=node)
        self._listener = TransformListener(self.buffer, node)

    def lookup(self, target: str, source: str, stamp: Time, timeout_s: float) -> np.ndarray:
        """target_from_source (4, 4). Waits for it, by the wall clock; not to be called from the executor.

        Raises UserError where it is not known by then.
        """
        return lookup(self.buffer, target, source, stamp, timeout_s)

    def clear(self) -> None:
        """Forget what moved."""
        self.buffer.clear()


def lookup(buffer: Buffer, target: str, source: str, stamp: Time, timeout_s: float) -> np.ndarray:
    """As `Frames.lookup`. tf2's own waiting follows the ROS clock, which may stand still for ever."""
    if target == source:
        return np.eye(4)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return matrix_of(buffer.lookup_transform(target, source, RosTime.from_msg(stamp)))
        except TransformException as error:
            if time.monotonic() >= deadline:
                raise UserError(f"TF has no {target} -> {source} at the image's stamp ({error}).") from None
        time.sleep(_POLL_S)


def matrix_of(transform: TransformStamped) -> np.ndarray:
    t, q = transform.transform.translation, transform.transform.rotation
    return pose_from_quaternion(np.array([t.x, t.y, t.z]), np.array([q.x, q.y, q.z, q.w]))


def clean(frame: str) -> str:
    """A frame name as tf2 wants it."""
    return frame.lstrip("/")
