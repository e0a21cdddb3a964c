"""Plays frames through a CameraPublisher at a steady rate, decoding one frame ahead."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from rclpy.node import Node
from rclpy.task import Future
from rclpy.time import Time

from aceg_ros.camera import Frame
from aceg_ros.errors import UserError
from aceg_ros.ros.camera_publisher import CameraPublisher
from aceg_ros.ros.parameters import ParameterGroup, parameter

LINGER_S = 1.0      # after the last frame, so that it reaches its readers before the process ends


class SizedFrames(Protocol):
    """Frames that can be played again; the length may count some that turn out to be unusable."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Frame]: ...


@dataclass(frozen=True)
class PlaybackParameters:
    rate: float = parameter(5.0, "Frames per second.", minimum=0.1, maximum=120.0, read_only=True)
    loop: bool = parameter(False, "Start again at the end, for ever.", read_only=True)
    wait_for_subscribers: int = parameter(1, "Wait until that many subscribers listen to the images.",
                                          minimum=0, maximum=100, read_only=True)
    start_delay: float = parameter(1.0, "Seconds to wait after that, before the first frame.",
                                   minimum=0.0, maximum=3600.0, read_only=True)


class Playback:
    """Publishes `frames`, stamped with the time of their publication; sets `done` after the last.

    Frames that cannot be decoded in time delay those after them; none is left out.
    """

    def __init__(self, node: Node, frames: SizedFrames, camera: CameraPublisher, done: Future) -> None:
        self._node, self._camera, self._done = node, camera, done
        self._parameters = ParameterGroup(node, PlaybackParameters).value
        self._count, self._frames = len(frames), self._repeated(frames)
        self._decoder = ThreadPoolExecutor(1)
        self._next = self._decoder.submit(next, self._frames, None)
        self._ready_since: Time | None = None
        self._published = 0
        self._timer = node.create_timer(1.0 / self._parameters.rate, self._tick)

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
        self._next = self._decoder.submit(next, self._frames, None)
        self._camera.publish(frame, self._node.get_clock().now().to_msg())
        self._published += 1
        self._node.get_logger().info(f"Played {self._published} of {self._count} frames.", throttle_duration_sec=5.0)

    def _ready(self) -> bool:
        """Whether enough subscribers have been there for long enough; once so, always so."""
        now = self._node.get_clock().now()
        if self._ready_since is None:
            if self._camera.subscribers < self._parameters.wait_for_subscribers:
                return False
            self._ready_since = now
        return (now - self._ready_since).nanoseconds >= self._parameters.start_delay * 1e9

    def _finish(self, error: UserError | None) -> None:
        self._timer.cancel()
        if error is not None:
            self._done.set_exception(error)
            return
        self._node.get_logger().info(f"Played {self._published} frames.")
        self._node.create_timer(LINGER_S, lambda: self._done.set_result(None))
