# SPDX-License-Identifier: Apache-2.0
"""Record the images of a camera with their true poses as an ACE folder, for mapping."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.task import Future
from sensor_msgs.msg import CameraInfo, Image

from aceg_ros.camera import Frame
from aceg_ros.datasets import write_ace_scene
from aceg_ros.errors import UserError
from aceg_ros.ros.common.messages import frame_from_messages, pose_from_message
from aceg_ros.ros.common.parameters import ParameterGroup, not_empty, parameter
from aceg_ros.ros.common.run import after_first_spin, run
from aceg_ros.utils.stamps import stamp_to_ns

_PENDING = 32       # messages of each topic that are kept until the others with the same stamp arrive
_RELIABLE = QoSProfile(depth=_PENDING)


@dataclass(frozen=True, kw_only=True)
class RecorderParameters:
    output: str = parameter("", "Folder to record into; it must not hold a recording yet.", read_only=True,
                            check=not_empty)
    image_format: str = parameter("png", "File format of the recorded images.", choices=("png", "jpg"),
                                  read_only=True)


class SceneRecorder(Node):
    """Pairs image, camera_info and pose by their stamps, and writes the complete sets in a separate thread."""

    def __init__(self) -> None:
        super().__init__("scene_recorder")
        self.done: Future[None] = Future()
        self._output = ParameterGroup(self, RecorderParameters).value
        self._pending: dict[str, dict[int, CameraInfo | PoseStamped | Image]] = {"info": {}, "pose": {}, "image": {}}
        self._complete: queue.Queue[tuple | None] = queue.Queue()
        self._written = 0
        self._writer = threading.Thread(target=self._write, name="writer")
        self.create_subscription(CameraInfo, "camera_info", lambda m: self._received("info", m), _RELIABLE)
        self.create_subscription(PoseStamped, "ground_truth", lambda m: self._received("pose", m), _RELIABLE)
        self.create_subscription(Image, "image", lambda m: self._received("image", m), _RELIABLE)
        after_first_spin(self, self._writer.start)

    def destroy_node(self) -> None:
        self._complete.put(None)
        if self._writer.is_alive():
            self._writer.join()
        print(f"Recorded {self._written} frames.", flush=True)
        super().destroy_node()

    def _received(self, kind: str, message: CameraInfo | PoseStamped | Image) -> None:
        stamp = stamp_to_ns(message.header.stamp)
        self._pending[kind][stamp] = message
        if all(stamp in waiting for waiting in self._pending.values()):
            self._complete.put(tuple(waiting.pop(stamp) for waiting in self._pending.values()))
        for waiting in self._pending.values():
            while len(waiting) > _PENDING:
                waiting.pop(next(iter(waiting)))

    def _write(self) -> None:
        try:
            self._written = write_ace_scene(self._output.output, self._frames(), self._output.image_format)
        except (UserError, OSError) as error:
            self.done.set_exception(UserError(f"Recording failed: {error}"))

    def _frames(self) -> Iterator[Frame]:
        while (messages := self._complete.get()) is not None:
            info, pose, image = messages
            try:
                frame = replace(frame_from_messages(image, info), map_from_camera=pose_from_message(pose.pose))
            except UserError as error:
                self.get_logger().warning(f"Left out a frame: {error}")
                continue
            yield frame


def main() -> int:
    return run(SceneRecorder)


if __name__ == "__main__":
    sys.exit(main())
