# SPDX-License-Identifier: Apache-2.0
"""Play frames through a CameraPublisher, at a constant rate or with their recorded times."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.task import Future
from rclpy.time import Time
from rosgraph_msgs.msg import Clock as ClockMessage

from aceg_ros.camera import Frame
from aceg_ros.errors import UserError
from aceg_ros.ros.common.parameters import ParameterGroup, parameter
from aceg_ros.ros.players.camera_publisher import CameraPublisher
from aceg_ros.utils.stamps import NS_PER_S, s_to_ns

CLOCK_PERIOD_S = 0.01
LINGER_S = 1.0      # time after the last frame for subscribers to receive it before the process ends


class SizedFrames(Protocol):
    """Frames that can be played again; the length may count some that turn out to be unusable."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Frame]: ...


@dataclass(frozen=True, kw_only=True)
class PlaybackParameters:
    rate: float = parameter(5.0, "Rate of the frames in Hz, if clock is false.", minimum=0.1, maximum=120.0,
                            read_only=True)
    clock: bool = parameter(
        False, "Whether /clock is published and the frames keep their recorded stamps; rate is not used then.",
        read_only=True)
    speed: float = parameter(1.0, "Playback speed in recorded seconds per second, if clock is true.",
                             minimum=0.01, maximum=100.0, read_only=True)
    loop: bool = parameter(False, "Whether playing starts again at the end, until the node is stopped.",
                           read_only=True)
    wait_for_subscribers: int = parameter(
        1, "Number of subscribers to the images that are waited for before the first frame.",
        minimum=0, maximum=100, read_only=True)
    start_delay: float = parameter(1.0, "Time in seconds between the last of these subscribers and the first frame.",
                                   minimum=0.0, maximum=3600.0, read_only=True)


class Playback:
    """Publishes `frames`, stamped with the current time or their recorded time, and sets `done` after the last one.

    One frame is decoded ahead. If decoding is too slow, later frames and the clock are delayed; no frame is dropped.
    """

    def __init__(self, node: Node, frames: SizedFrames, camera: CameraPublisher, done: Future) -> None:
        self._node, self._camera, self._done = node, camera, done
        self._parameters = ParameterGroup(node, PlaybackParameters).value
        self._count, self._frames = len(frames), self._repeated(frames)
        self._decoder = ThreadPoolExecutor(1)
        self._next = self._decoder.submit(next, self._frames, None)
        self._ready_since: float | None = None
        self._published = 0
        self._clock = RecordedClock(node, self._parameters.speed) if self._parameters.clock else None
        period_s = CLOCK_PERIOD_S if self._parameters.clock else 1.0 / self._parameters.rate
        self._timer = node.create_timer(period_s, self._tick, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def stop(self) -> None:
        self._decoder.shutdown(wait=True, cancel_futures=True)

    def _repeated(self, frames: SizedFrames) -> Iterator[Frame]:
        yield from frames
        while self._parameters.loop:
            yield from frames

    def _tick(self) -> None:
        if not self._ready() or not self._next.done():
            return
        try:
            frame = self._next.result()
        except UserError as error:
            self._finish(error)
            return
        if frame is None:
            self._finish(None)
            return
        if self._clock is not None and not self._clock.reaches(frame.stamp_s):
            return
        self._next = self._decoder.submit(next, self._frames, None)
        stamp = self._node.get_clock().now() if self._clock is None else self._clock.stamp(frame.stamp_s)
        self._camera.publish(frame, stamp.to_msg())
        self._published += 1
        self._node.get_logger().info(self._progress(), throttle_duration_sec=5.0)

    def _progress(self) -> str:
        if self._parameters.loop:
            return f"Played {self._published} frames of a loop of {self._count}."
        return f"Played {self._published} of {self._count} frames."

    def _ready(self) -> bool:
        """Return whether start_delay has passed since there were enough subscribers."""
        now = time.monotonic()
        if self._ready_since is None:
            if self._camera.subscribers < self._parameters.wait_for_subscribers:
                return False
            self._ready_since = now
        return now - self._ready_since >= self._parameters.start_delay

    def _finish(self, error: UserError | None) -> None:
        self._timer.cancel()
        if error is not None:
            self._done.set_exception(error)
            return
        self._node.get_logger().info(f"Played {self._published} frames.")
        self._node.create_timer(LINGER_S, lambda: self._done.set_result(None),
                                clock=Clock(clock_type=ClockType.STEADY_TIME))


class RecordedClock:
    """Publishes the recorded time on /clock. It stops while the next frame is being decoded."""

    def __init__(self, node: Node, speed: float) -> None:
        self._publisher = node.create_publisher(ClockMessage, "/clock", 10)
        self._speed = speed
        self._now_ns: int | None = None
        self._ticked_s = 0.0
        self._offset_ns = 0

    def stamp(self, stamp_s: float) -> Time:
        return Time(nanoseconds=s_to_ns(stamp_s) + self._offset_ns)

    def reaches(self, stamp_s: float) -> bool:
        """Advance the clock, at most to this frame's stamp. Returns whether it has reached it."""
        if self._now_ns is None:
            self._offset_ns = clock_offset_ns(stamp_s)
        target = self.stamp(stamp_s).nanoseconds
        ticked_s, before = self._ticked_s, self._now_ns
        self._ticked_s = time.monotonic()
        if before is None or target < before:           # the first frame, or the recording begins again
            self._now_ns = target
        else:
            self._now_ns = min(before + int((self._ticked_s - ticked_s) * self._speed * NS_PER_S), target)
        self._publisher.publish(ClockMessage(clock=Time(nanoseconds=self._now_ns).to_msg()))
        return self._now_ns == target


def clock_offset_ns(first_stamp_s: float) -> int:
    """Return the offset added to recorded stamps: zero, where recordings without times start, is no valid ROS stamp."""
    return 10_000_000_000 if first_stamp_s < 1.0 else 0
