# SPDX-License-Identifier: Apache-2.0
"""Stores transforms over time and answers what joins two frames at a moment.

Follows tf2: linear interpolation of the translation, spherical of the rotation, no extrapolation; Time() asks for the
latest moment that the whole chain knows, and a chain of static transforms is good for any moment.
"""

from __future__ import annotations

import time as wall
from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass, field
from threading import RLock

import numpy as np
import rclpy
from geometry_msgs.msg import TransformStamped
from rclpy.clock import Clock, JumpThreshold
from rclpy.duration import Duration
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.time import Time
from scipy.spatial.transform import Rotation, Slerp

from tf2_ros.exceptions import (
    ConnectivityException,
    ExtrapolationException,
    InvalidArgumentException,
    LookupException,
    TransformException,
)

_MAX_DEPTH = 1000  # a longer chain is a loop


@dataclass(order=True)
class _Sample:
    """parent_from_child at one moment."""

    stamp_ns: int
    parent: str = field(compare=False)
    translation: np.ndarray = field(compare=False)
    rotation: Rotation = field(compare=False)


class _Track:
    """All samples of one child frame, by time."""

    def __init__(self, is_static: bool) -> None:
        self.is_static = is_static
        self.samples: list[_Sample] = []

    def add(self, sample: _Sample, cache_ns: int) -> bool:
        """Returns whether the sample was new enough to keep."""
        if self.is_static:
            self.samples = [sample]
            return True
        if self.samples and sample.stamp_ns < self.samples[-1].stamp_ns - cache_ns:
            return False
        insort(self.samples, sample)
        del self.samples[:bisect_left(self.samples, self.samples[-1].stamp_ns - cache_ns, key=lambda s: s.stamp_ns)]
        return True

    def parent_at(self, stamp_ns: int) -> str | None:
        """The parent at that time, or the nearest known: whether the time is covered is found later, by `at`.

        Of samples with the same stamp the newest counts: a frame that two nodes publish jumps between its parents.
        """
        if not self.samples:
            return None
        return self.samples[max(bisect_right(self.samples, stamp_ns, key=lambda s: s.stamp_ns) - 1, 0)].parent

    def at(self, stamp_ns: int, child: str) -> tuple[np.ndarray, Rotation]:
        """parent_from_child, interpolated. Raises ExtrapolationException."""
        if self.is_static:
            return self.samples[0].translation, self.samples[0].rotation
        index = bisect_right(self.samples, stamp_ns, key=lambda s: s.stamp_ns)
        if index and self.samples[index - 1].stamp_ns == stamp_ns:
            return self.samples[index - 1].translation, self.samples[index - 1].rotation
        if index in (0, len(self.samples)):
            direction = "future" if index else "past"
            known = self.samples[-1 if index else 0].stamp_ns
            raise ExtrapolationException(f"Lookup would require extrapolation into the {direction}: requested time "
                                         f"{stamp_ns * 1e-9:.6f} but '{child}' is known "
                                         f"{'until' if index else 'from'} {known * 1e-9:.6f}")
        before, after = self.samples[index - 1], self.samples[index]
        if before.parent != after.parent:
            return before.translation, before.rotation
        ratio = (stamp_ns - before.stamp_ns) / (after.stamp_ns - before.stamp_ns)
        translation = (1 - ratio) * before.translation + ratio * after.translation
        return translation, Slerp([0, 1], Rotation.concatenate([before.rotation, after.rotation]))(ratio)


class Buffer:
    """cache_time: how far back transforms are kept, 10 s without it. node: whose clock to wait by."""

    def __init__(self, cache_time: Duration | None = None, node: Node | None = None) -> None:
        self._cache_ns = (cache_time or Duration(seconds=10)).nanoseconds
        self._tracks: dict[str, _Track] = {}
        self._frames: set[str] = set()
        self._lock = RLock()
        self.clock = node.get_clock() if node else Clock()
        self._context = node.context if node else None
        # A bag that starts again would otherwise be "too old" until it catches up with itself.
        threshold = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True)
        self._jump = self.clock.create_jump_callback(threshold, post_callback=lambda _: self.clear())

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        self._set(transform, authority, is_static=False)

    def set_transform_static(self, transform: TransformStamped, authority: str) -> None:
        self._set(transform, authority, is_static=True)

    def clear(self) -> None:
        """Forget all but the static transforms."""
        with self._lock:
            for track in self._tracks.values():
                if not track.is_static:
                    track.samples.clear()

    def can_transform(self, target_frame: str, source_frame: str, time: Time, timeout: Duration = Duration(),  # noqa: B008
                      return_debug_tuple: bool = False) -> bool | tuple[bool, str]:
        message = ""
        try:
            self.lookup_transform(target_frame, source_frame, time, timeout)
        except TransformException as error:
            message = str(error)
        return (not message, message) if return_debug_tuple else not message

    def lookup_transform(self, target_frame: str, source_frame: str, time: Time,
                         timeout: Duration = Duration()) -> TransformStamped:  # noqa: B008
        """target_from_source at a time, or the latest there is for Time(). Waits up to timeout for it to be known."""
        deadline = self.clock.now() + timeout
        while True:
            try:
                return self._lookup(target_frame, source_frame, time.nanoseconds)
            except (LookupException, ConnectivityException, ExtrapolationException):
                if self.clock.now() >= deadline or not rclpy.ok(context=self._context):
                    raise
            wall.sleep(0.02)

    def _set(self, transform: TransformStamped, authority: str, is_static: bool) -> None:
        parent, child = transform.header.frame_id.lstrip("/"), transform.child_frame_id.lstrip("/")
        t, q = transform.transform.translation, transform.transform.rotation
        translation, quaternion = np.array([t.x, t.y, t.z]), np.array([q.x, q.y, q.z, q.w])
        if (not parent or not child or parent == child or not np.isfinite([*translation, *quaternion]).all()
                or abs(quaternion @ quaternion - 1) > 1e-2):
            get_logger("tf2_ros").error(f"Ignoring transform '{parent}' -> '{child}' from {authority}: frame names or "
                                        "numbers are not usable")
            return
        stamp_ns = Time.from_msg(transform.header.stamp).nanoseconds
        with self._lock:
            track = self._tracks.get(child)
            if track is None or track.is_static != is_static:
                track = self._tracks[child] = _Track(is_static)
            if not track.add(_Sample(stamp_ns, parent, translation, Rotation.from_quat(quaternion)), self._cache_ns):
                get_logger("tf2_ros").warning(f"TF_OLD_DATA ignoring data from the past for frame '{child}'")
            self._frames |= {parent, child}

    def _lookup(self, target: str, source: str, stamp_ns: int) -> TransformStamped:
        for frame in (target, source):
            if not frame or frame.startswith("/"):
                raise InvalidArgumentException(f"Frame name '{frame}' is empty or starts with a slash")
        with self._lock:
            for frame in (target, source):
                if frame not in self._frames:
                    raise LookupException(f"'{frame}' passed to lookup_transform does not exist")
            if stamp_ns == 0:
                stamp_ns = self._latest_common(target, source)
            up, down = self._chains(target, source, stamp_ns)
            translation, rotation = self._compose(up, stamp_ns)
            from_target, target_rotation = self._compose(down, stamp_ns)
        inverse = target_rotation.inv()
        return _message(target, source, stamp_ns, inverse.apply(translation - from_target), inverse * rotation)

    def _ancestors(self, frame: str, stamp_ns: int) -> list[str]:
        """The frame, its parent, ... up to the root."""
        chain = [frame]
        while (track := self._tracks.get(chain[-1])) and (parent := track.parent_at(stamp_ns)):
            chain.append(parent)
            if len(chain) > _MAX_DEPTH:
                raise LookupException(f"The tf tree has a loop at '{frame}'")
        return chain

    def _chains(self, target: str, source: str, stamp_ns: int) -> tuple[list[str], list[str]]:
        """The frames from source and from target up to, and without, their nearest common ancestor."""
        up, down = self._ancestors(source, stamp_ns), self._ancestors(target, stamp_ns)
        common = next((frame for frame in up if frame in down), None)
        if common is None:
            raise ConnectivityException(f"Could not find a connection between '{target}' and '{source}' because they "
                                        "are not part of the same tree. Tf has two or more unconnected trees.")
        return up[:up.index(common)], down[:down.index(common)]

    def _latest_common(self, target: str, source: str) -> int:
        """The newest time that every moving transform between the frames is known at; 0 where none moves."""
        newest = 1 << 62
        up, down = self._chains(target, source, newest)
        tracks = [self._tracks[frame] for frame in up + down]
        return min((track.samples[-1].stamp_ns for track in tracks if not track.is_static), default=0)

    def _compose(self, chain: list[str], stamp_ns: int) -> tuple[np.ndarray, Rotation]:
        """ancestor_from_frame along a chain of child frames."""
        translation, rotation = np.zeros(3), Rotation.identity()
        for frame in chain:
            step, turn = self._tracks[frame].at(stamp_ns, frame)
            translation, rotation = step + turn.apply(translation), turn * rotation
        return translation, rotation


def _message(target: str, source: str, stamp_ns: int, translation: np.ndarray, rotation: Rotation) -> TransformStamped:
    message = TransformStamped(child_frame_id=source)
    message.header.frame_id = target
    message.header.stamp = Time(nanoseconds=stamp_ns).to_msg()
    t, q = message.transform.translation, message.transform.rotation
    t.x, t.y, t.z = map(float, translation)
    q.x, q.y, q.z, q.w = map(float, rotation.as_quat())
    return message
