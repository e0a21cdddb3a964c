"""Look up poses in TF at the stamp of an image."""

from __future__ import annotations

import time

import numpy as np
from builtin_interfaces.msg import Time
from rclpy.node import Node
from rclpy.time import Time as RosTime
from tf2_ros import Buffer, TransformException, TransformListener

from aceg_ros.errors import UserError
from aceg_ros.ros.common.messages import pose_from_transform

_POLL_S = 0.01


class TransformLookup:
    """Listens to /tf and /tf_static, and looks up where a frame was at a stamp."""

    def __init__(self, node: Node) -> None:
        self._buffer = Buffer(node=node)
        self._listener = TransformListener(self._buffer, node)

    def lookup(self, target: str, source: str, stamp: Time, timeout_s: float) -> np.ndarray:
        """Return target_from_source (4, 4) at the stamp.

        Waits (wall clock) until TF has it, so it must not be called from the executor, which fills the buffer.

        Raises:
            UserError: if TF does not have it within timeout_s.
        """
        return wait_for_transform(self._buffer, target, source, stamp=stamp, timeout_s=timeout_s)

    def clear(self) -> None:
        """Drop the moving transforms; static ones stay."""
        self._buffer.clear()


def wait_for_transform(buffer: Buffer, target: str, source: str, *, stamp: Time, timeout_s: float) -> np.ndarray:
    """Look up target_from_source (4, 4) in a buffer, as `TransformLookup.lookup` does.

    Polls, because tf2 waits by the ROS clock, which may stand still.
    """
    if target == source:
        return np.eye(4)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return pose_from_transform(buffer.lookup_transform(target, source, RosTime.from_msg(stamp)))
        except TransformException as error:
            if time.monotonic() >= deadline:
                raise UserError(f"TF has no {target} -> {source} at the image's stamp ({error}).") from None
        time.sleep(_POLL_S)


def normalize_frame_id(frame_id: str) -> str:
    """Return a frame name without the leading slash, which tf2 does not accept."""
    return frame_id.lstrip("/")
