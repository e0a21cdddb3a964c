"""A camera and a listener at a localizer node, for tests of one image at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from ros_graph import RosGraph
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from aceg_ros.camera import Camera
from aceg_ros.ros.common.messages import info_message
from aceg_ros.utils.stamps import stamp_to_ns

FAKE_NODE = Path(__file__).with_name("fake_localizer_node.py")
CAMERA = Camera(width=64, height=48, fx=60.0, fy=61.0, cx=31.5, cy=23.5)
DEEP = QoSProfile(depth=1000)


class Bench:
    """A camera and a listener at the localizer node."""

    def __init__(self, graph: RosGraph) -> None:
        self.graph = graph
        self.poses, self.statuses, self.transforms = {}, {}, []
        self.health = []
        node = graph.node
        self.image = node.create_publisher(Image, "image", qos_profile_sensor_data)
        self.info = node.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
        node.create_subscription(PoseWithCovarianceStamped, "/localizer/pose", self._pose, DEEP)
        node.create_subscription(DiagnosticArray, "/localizer/status", self._status, DEEP)
        node.create_subscription(TFMessage, "/tf", lambda m: self.transforms.extend(m.transforms), DEEP)
        self._stamp = 0

    def _pose(self, message):
        self.poses.setdefault(stamp_to_ns(message.header.stamp), []).append(message)

    def _status(self, message):
        status = message.status[0]
        values = {pair.key: pair.value for pair in status.values}
        if status.name.endswith(": node"):
            self.health.append((status, values))
        elif status.name.endswith(": image"):
            self.statuses.setdefault(stamp_to_ns(message.header.stamp), []).append((status, values))

    def connected(self) -> bool:
        listeners = (self.image.get_subscription_count(), self.info.get_subscription_count(),
                     self.graph.node.count_publishers("/localizer/status"))
        return all(listeners) and bool(self.health) and self.health[-1][1]["lifecycle"] == "active"

    def header(self) -> Header:
        self._stamp += 1
        return Header(stamp=Time(sec=self._stamp, nanosec=self._stamp), frame_id="cam")

    def answer(self, image: Image, info: CameraInfo | None = None):
        """Send, and return the status and its values that the node publishes for this image."""
        if info is not None:
            info.header.stamp = image.header.stamp
            self.info.publish(info)
        self.image.publish(image)
        stamp = stamp_to_ns(image.header.stamp)
        assert self.graph.spin_until(lambda: stamp in self.statuses), "the node said nothing about this image"
        self.graph.spin(0.1)        # whatever else it might say
        (answer,) = self.statuses[stamp]
        return answer


def picture(seed: int, size=(48, 64)) -> np.ndarray:
    return np.random.default_rng(seed).integers(40, 255, (*size, 3), np.uint8)


def good_info() -> CameraInfo:
    return info_message(CAMERA, Header(frame_id="cam"))
