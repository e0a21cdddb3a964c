# SPDX-License-Identifier: Apache-2.0
"""Look up poses in TF at the stamp of an image, and who is whose parent there."""

from __future__ import annotations

import time
from collections import deque

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from rclpy.time import Time as RosTime
from tf2_ros import Buffer, TransformException, TransformListener

from aceg_ros.errors import UserError
from aceg_ros.ros.common.messages import pose_from_transform
from aceg_ros.utils.stamps import stamp_to_ns

_POLL_S = 0.01
_PARENT_HOLDS_S = 10.0      # after the last transform from it; a static one holds for ever
_OTHERS_TO_TELL = 3         # transforms that this node did not send: one may be the last of a node that has ended


class _NotingBuffer(Buffer):
    """A buffer that notes the parents of each frame, and until when they hold by time.monotonic()."""

    def __init__(self, node: Node) -> None:
        self.parents: dict[str, dict[str, float]] = {}
        self.sent_ns: deque[int] = deque(maxlen=1000)           # stamps of the transforms that this node sent itself
        self.others: dict[tuple[str, str], deque[float]] = {}   # when transforms (parent, child) of others came
        super().__init__(node=node)

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        self._note(transform, time.monotonic() + _PARENT_HOLDS_S)
        if stamp_to_ns(transform.header.stamp) not in self.sent_ns:
            edge = normalize_frame_id(transform.header.frame_id), normalize_frame_id(transform.child_frame_id)
            self.others.setdefault(edge, deque(maxlen=_OTHERS_TO_TELL)).append(time.monotonic())
        super().set_transform(transform, authority)

    def set_transform_static(self, transform: TransformStamped, authority: str) -> None:
        self._note(transform, float("inf"))
        super().set_transform_static(transform, authority)

    def _note(self, transform: TransformStamped, until_s: float) -> None:
        parents = self.parents.setdefault(normalize_frame_id(transform.child_frame_id), {})
        parents[normalize_frame_id(transform.header.frame_id)] = until_s


class TransformLookup:
    """Listens to /tf and /tf_static, and looks up where a frame was at a stamp."""

    def __init__(self, node: Node) -> None:
        self._buffer = _NotingBuffer(node)
        self._listener = TransformListener(self._buffer, node)

    def lookup(self, target: str, source: str, stamp: Time, timeout_s: float) -> np.ndarray:
        """Return target_from_source (4, 4) at the stamp.

        Waits (wall clock) until TF has it, so it must not be called from the executor, which fills the buffer.

        Raises:
            UserError: if TF does not have it within timeout_s.
        """
        return wait_for_transform(self._buffer, target, source, stamp=stamp, timeout_s=timeout_s)

    def parents(self, frame: str) -> list[str]:
        """Return the parents that TF has of a frame at present: more than one if several nodes publish one."""
        now_s = time.monotonic()
        return [parent for parent, until_s in list(self._buffer.parents.get(frame, {}).items()) if until_s > now_s]

    def note_sent(self, stamp_ns: int) -> None:
        """Note the stamp of a transform that this node sends, which comes back from TF."""
        self._buffer.sent_ns.append(stamp_ns)

    def others_publish(self, parent: str, child: str) -> bool:
        """Return whether another node publishes this transform at present."""
        came_s = list(self._buffer.others.get((parent, child), ()))
        return len(came_s) == _OTHERS_TO_TELL and time.monotonic() - came_s[0] < _PARENT_HOLDS_S

    def ancestors(self, frame: str, without: tuple[str, str] | None = None) -> list[str]:
        """Return parent, grandparent, ... of a frame. without: a transform (parent, child) that does not count."""
        found: list[str] = []
        child = frame
        while True:
            parents = [parent for parent in self.parents(child) if (parent, child) != without]
            if not parents or parents[0] in (frame, *found):
                return found
            found.append(parents[0])
            child = parents[0]

    def clear(self) -> None:
        """Drop the moving transforms; static ones stay."""
        self._buffer.clear()
        for parents in list(self._buffer.parents.values()):
            for parent in [parent for parent, until_s in list(parents.items()) if until_s != float("inf")]:
                parents.pop(parent, None)


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
