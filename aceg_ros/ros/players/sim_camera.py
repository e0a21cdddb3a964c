# SPDX-License-Identifier: Apache-2.0
"""Simulate a camera that drives through a rendered room, with exact true poses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from rclpy.node import Node
from rclpy.task import Future

from aceg_ros.camera import Frame
from aceg_ros.ros.common.parameters import ParameterGroup, parameter
from aceg_ros.ros.common.run import run
from aceg_ros.ros.players.camera_publisher import CameraPublisher
from aceg_ros.ros.players.playback import Playback
from aceg_ros.synthetic.demo_room import LIGHTS, demo_world, mapping_path, query_path

_PATHS = {"mapping": mapping_path, "query": query_path}


@dataclass(frozen=True, kw_only=True)
class SimParameters:
    path: str = parameter("mapping", "Path that the camera takes through the room.", choices=tuple(_PATHS),
                          read_only=True)
    light: str = parameter("day", "Light in the room.", choices=tuple(LIGHTS), read_only=True)
    frames: int = parameter(200, "Number of images on the path.", minimum=1, maximum=10000, read_only=True)
    prerender: bool = parameter(
        False, "Whether all images are rendered before the first one is played, for a constant rate that does not "
        "depend on the processor's load.", read_only=True)


class Drive:
    """The images of one drive, rendered at the first iteration and kept for further ones."""

    stopped = False

    def __init__(self, parameters: SimParameters) -> None:
        self._world = demo_world()
        self._light = LIGHTS[parameters.light]
        self._prerender = parameters.prerender
        self._poses = _PATHS[parameters.path](parameters.frames, self._world.room)
        self._frames: list[Frame] = []

    def __len__(self) -> int:
        return len(self._poses)

    def __iter__(self) -> Iterator[Frame]:
        if self._prerender:
            for _ in self._render_rest():
                pass
        yield from self._frames
        yield from self._render_rest()

    def _render_rest(self) -> Iterator[Frame]:
        """Render the images that are still missing."""
        for pose in self._poses[len(self._frames):]:
            if self.stopped:
                return
            self._frames.append(self._world.render_frame(pose, self._light))
            yield self._frames[-1]


class SimCamera(Node):
    def __init__(self) -> None:
        super().__init__("sim_camera")
        self.done: Future[None] = Future()
        self._drive = Drive(ParameterGroup(self, SimParameters).value)
        self._playback = Playback(self, self._drive, CameraPublisher(self), self.done)

    def destroy_node(self) -> None:
        self._drive.stopped = True
        self._playback.stop()
        super().destroy_node()


def main() -> int:
    return run(SimCamera)


if __name__ == "__main__":
    sys.exit(main())
