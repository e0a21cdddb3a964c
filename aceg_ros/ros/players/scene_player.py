# SPDX-License-Identifier: Apache-2.0
"""Play a recording of any supported format as a camera."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from rclpy.node import Node
from rclpy.task import Future

from aceg_ros.datasets import BagOptions, Scene, bag, open_scene
from aceg_ros.ros.common.parameters import ParameterGroup, not_empty, parameter
from aceg_ros.ros.common.run import run
from aceg_ros.ros.players.camera_publisher import CameraPublisher
from aceg_ros.ros.players.playback import Playback


@dataclass(frozen=True, kw_only=True)
class SceneParameters:
    scene: str = parameter("", "Path of the scene to play: a ROS bag, or a folder in any format that is read.",
                           read_only=True, check=not_empty)
    every: int = parameter(1, "Only every n-th frame is played, beginning with the first.", minimum=1, maximum=10000,
                           read_only=True)
    bag_image: str = parameter("", "Topic of the images in the bag; empty means the only one.", read_only=True)
    bag_camera_info: str = parameter("", "Topic of their camera_info in the bag; empty means the only one.",
                                     read_only=True)
    bag_pose_topic: str = parameter("", "Topic of the true poses in the bag; empty means the only one.",
                                    read_only=True)
    bag_pose_of: str = parameter("", "TF frame whose pose that topic gives; empty means the camera.", read_only=True)
    bag_tf_map: str = parameter(
        "", "TF frame of the map, if the true poses are taken from TF in the bag; empty means from the topic.",
        read_only=True)
    bag_tf_camera: str = parameter(
        "", "TF frame of the camera, if the true poses are taken from TF in the bag; empty means the frame_id of the "
        "images.", read_only=True)
    bag_tf_topic: str = parameter(
        "", "Topic of the transforms in the bag; empty means the one in the images' namespace or the nearest around "
        "it.", read_only=True)
    bag_start: float = parameter(0.0, "Time in seconds after the beginning of the bag at which playing starts.",
                                 minimum=0.0, maximum=1e9, read_only=True)
    bag_end: float = parameter(1e9, "Time in seconds after the beginning of the bag at which playing ends.",
                               minimum=0.0, maximum=1e9, read_only=True)
    bag_rectified: bool = parameter(
        False, "Whether the images in the bag are free of distortion already; those on a topic named image_rect... are "
        "taken to be.", read_only=True)
    bag_distorted: bool = parameter(
        False, "Whether the images in the bag have distortion although their topic or camera_info looks rectified.",
        read_only=True)

    def open(self, posed: bool = True) -> Scene:
        """Open the scene. posed: as in `BagOptions`. Raises UserError."""
        end_s = self.bag_end if self.bag_end < 1e9 else float("inf")
        chosen = BagOptions(image=self.bag_image, camera_info=self.bag_camera_info, pose_topic=self.bag_pose_topic,
                            pose_of=self.bag_pose_of,
                            tf=(self.bag_tf_map, self.bag_tf_camera) if self.bag_tf_map else None,
                            start_s=self.bag_start, end_s=end_s, tf_topic=self.bag_tf_topic,
                            rectified=False if self.bag_distorted else self.bag_rectified or None)
        is_bag = bag.can_read(Path(self.scene))
        options = replace(chosen, posed=posed) if is_bag or chosen != BagOptions() else None
        return open_scene(self.scene, self.every, options)


class ScenePlayer(Node):
    def __init__(self) -> None:
        super().__init__("scene_player")
        self.done: Future[None] = Future()
        parameters = ParameterGroup(self, SceneParameters).value
        self._scene = parameters.open(posed=False)
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
