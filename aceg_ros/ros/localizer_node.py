"""Localizes a camera in a map: image + camera_info in, pose + TF + status out."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from tf2_ros import TransformBroadcaster

from aceg_ros.camera import Camera, Frame
from aceg_ros.estimate import PoseEstimate
from aceg_ros.heap import keep_heap
from aceg_ros.ros.messages import estimate_to_pose, pose_to_transform, stamp_ns
from aceg_ros.ros.parameters import ParameterGroup, not_empty, parameter
from aceg_ros.ros.run import run
from aceg_ros.ros.status import Tally, answer_status, node_status
from aceg_ros.ros.worker import REPLACED, Answer, MapState, Request, Worker

if TYPE_CHECKING:      # a node starts seconds sooner without torch
    from aceg_ros.methods.base import Localizer

NEWEST_IMAGE = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


def _map_path_refusal(path: str) -> str | None:
    return None if not path or os.path.isfile(path) else f"there is no file {path}."


@dataclass(frozen=True)
class LocalizerParameters:
    map_path: str = parameter("", "Map file to localize in; changeable at run time, empty: none.",
                              check_change=_map_path_refusal)
    map_frame: str = parameter("map", "Frame of the poses.", read_only=True, check=not_empty)
    camera_frame: str = parameter("", "Optical frame of the camera; empty: frame_id of the image.", read_only=True)
    publish_tf: bool = parameter(True, "Publish the transform map_frame -> camera frame.")
    device: str = parameter("auto", "Where inference runs.", choices=("auto", "cpu", "cuda"), read_only=True)
    seed: int = parameter(0, "Seed of the pose solver.", minimum=0, maximum=2**31 - 1, read_only=True)


class LocalizerNode(Node):
    """load: (map path, device, seed) to a localizer; raises UserError on a file that cannot be used."""

    def __init__(self, load: Callable[[str, str, int], Localizer], **node_options) -> None:
        super().__init__("localizer", **node_options)
        group = ParameterGroup(self, LocalizerParameters, self._parameters_changed)
        self._settings = group
        self._tally = Tally()
        self._status_lock = threading.Lock()        # both threads count and publish
        self._infos: deque[CameraInfo] = deque(maxlen=16)
        self._pose_publisher = self.create_publisher(PoseWithCovarianceStamped, "~/pose", 10)
        self._status_publisher = self.create_publisher(DiagnosticArray, "~/status", 50)
        self._tf = TransformBroadcaster(self)
        self._worker = Worker(lambda path: load(path, group.value.device, group.value.seed),
                              self._publish_answer, self._publish_map_state, self.get_logger())
        # camera_info first: of two messages that wait together, the executor takes the older subscription's.
        self.create_subscription(CameraInfo, "camera_info", lambda info: self._infos.append(info),
                                 qos_profile_sensor_data)
        self.create_subscription(Image, "image", self._image_received, NEWEST_IMAGE)
        self.create_timer(1.0, self._publish_node_status, clock=Clock(clock_type=ClockType.STEADY_TIME))
        if group.value.map_path:
            self._worker.load_map(group.value.map_path)

    def destroy_node(self) -> None:
        self._worker.stop()
        super().destroy_node()

    def _parameters_changed(self, old: LocalizerParameters, new: LocalizerParameters) -> None:
        if new.map_path != old.map_path:
            self._worker.load_map(new.map_path)

    def _image_received(self, image: Image) -> None:
        self._tally.received += 1
        replaced = self._worker.localize(Request(image, self._info_of(image)))
        if replaced is not None:
            self._publish_status(Answer(replaced.image.header, REPLACED, "A newer image came before this one's turn."))

    def _info_of(self, image: Image) -> CameraInfo | None:
        """The camera_info with the image's stamp (zoom and autofocus change it), else the latest."""
        matching = (info for info in self._infos if info.header.stamp == image.header.stamp)
        return next(matching, self._infos[-1] if self._infos else None)

    def _publish_answer(self, answer: Answer) -> None:
        with self._unless_shut_down():
            if answer.estimate is not None and answer.estimate.accepted:
                self._publish_pose(answer.estimate, answer.header)
            self._publish_status(answer)

    def _publish_pose(self, estimate: PoseEstimate, image_header: Header) -> None:
        settings = self._settings.value
        header = Header(stamp=image_header.stamp, frame_id=settings.map_frame)
        pose = estimate_to_pose(estimate, header)
        self._pose_publisher.publish(pose)
        child_frame = (settings.camera_frame or image_header.frame_id).lstrip("/")
        if settings.publish_tf and child_frame:
            self._tf.sendTransform(pose_to_transform(pose.pose.pose, header, child_frame))
        elif settings.publish_tf:
            self.get_logger().warning("No TF: the image has no frame_id; set camera_frame.", once=True)

    def _publish_status(self, answer: Answer) -> None:
        age_ms = (self.get_clock().now().nanoseconds - stamp_ns(answer.header.stamp)) * 1e-6
        with self._status_lock:
            self._tally.by_status[answer.status] += 1
            self._status_publisher.publish(answer_status(self.get_name(), answer, age_ms, self._tally))

    def _publish_map_state(self, state: MapState) -> None:
        if state.error:
            self.get_logger().error(state.error)
        else:
            self.get_logger().info(f"Localizing in {state.served}." if state.served else "No map.")
        with self._unless_shut_down():
            self._publish_node_status()

    @contextmanager
    def _unless_shut_down(self) -> Iterator[None]:
        """A signal can end the context at any moment: what the worker then fails to publish, nobody waits for."""
        try:
            yield
        except Exception:
            if self.context.ok():
                raise

    def _publish_node_status(self) -> None:
        header = Header(stamp=self.get_clock().now().to_msg())
        with self._status_lock:
            self._status_publisher.publish(
                node_status(self.get_name(), header, self._worker.map_state, bool(self._infos), self._tally))


def load_localizer(path: str, device: str, seed: int) -> Localizer:
    from aceg_ros.methods.base import make_localizer
    from aceg_ros.scene_map import SceneMap
    localizer = make_localizer(SceneMap.load(path), device, seed)
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    localizer.localize(Frame(noise, Camera(640, 480, 500.0, 500.0, 320.0, 240.0)))     # the first call is the slow one
    return localizer


def main() -> int:
    keep_heap()
    cv2.setNumThreads(1)        # torch has the cores
    return run(lambda: LocalizerNode(load_localizer))


if __name__ == "__main__":
    sys.exit(main())
