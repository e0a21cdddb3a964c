"""Plays any SCENE that a reader knows as a camera."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from rclpy.node import Node
from rclpy.task import Future

from aceg_ros.datasets import open_scene
from aceg_ros.ros.camera_publisher import CameraPublisher
from aceg_ros.ros.parameters import ParameterGroup, not_empty, parameter
from aceg_ros.ros.playback import Playback
from aceg_ros.ros.run import run


@dataclass(frozen=True)
class SceneParameters:
    scene: str = parameter("", "Path of the scene to play.", read_only=True, check=not_empty)
    every: int = parameter(1, "Play every n-th frame only.", minimum=1, maximum=10000, read_only=True)


class ScenePlayer(Node):
    def __init__(self) -> None:
        super().__init__("scene_player")
        self.done: Future[None] = Future()
        parameters = ParameterGroup(self, SceneParameters).value
        self._scene = open_scene(parameters.scene, parameters.every)
        self.get_logger().info(f"Playing {len(self._scene)} frames of {self._scene.name}.")
        self._playback = Playback(self, self._scene, CameraPublisher(self), self.done)

    def destroy_node(self) -> None:
        self._playback.stop()
        for skipped in self._scene.skipped:
            print(f"Skipped {skipped.name}: {skipped.reason}", file=sys.stderr)
        super().destroy_node()


def main() -> int:
    return run(ScenePlayer)


if __name__ == "__main__":
    sys.exit(main())
