# SPDX-License-Identifier: Apache-2.0
"""A camera and a listener at a localizer node, for tests of one image at a time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from localizer_listener import LocalizerListener, Values
from rclpy.qos import qos_profile_sensor_data
from ros_graph import RosGraph
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from aceg_ros.camera import Camera
from aceg_ros.ros.common.messages import image_message, info_message
from aceg_ros.utils.stamps import stamp_to_ns

FAKE_NODE = Path(__file__).with_name("fake_localizer_node.py")
CAMERA = Camera(width=64, height=48, fx=60.0, fy=61.0, cx=31.5, cy=23.5)


class Bench(LocalizerListener):
    """Publishes images and camera_infos with stamps of its own."""

    def __init__(self, graph: RosGraph) -> None:
        super().__init__(graph)
        self.image = graph.node.create_publisher(Image, "image", qos_profile_sensor_data)
        # The last one: see is_expected.
        self.info = graph.node.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
        self._stamp = 0

    def connected(self) -> bool:
        """Whether the node listens, and says that it is active."""
        return self.is_expected and bool(self.image.get_subscription_count() and self.info.get_subscription_count())

    def header(self) -> Header:
        self._stamp += 1
        return Header(stamp=Time(sec=self._stamp, nanosec=self._stamp), frame_id="cam")

    def localize(self, image: Image, info: CameraInfo | None = None) -> tuple[DiagnosticStatus, Values]:
        """Send an image, and return the status and its values that the node publishes of it."""
        if info is not None:
            info.header.stamp = image.header.stamp
            self.info.publish(info)
        self.image.publish(image)
        status, values = self.wait_for_status(stamp_to_ns(image.header.stamp))
        self.graph.spin(0.1)       # whatever else it might publish
        assert len(self.statuses[stamp_to_ns(image.header.stamp)]) == 1
        return status, values

    def position(self) -> float:
        """Return x of the pose of an image that the fake localizer accepts."""
        image = image_message(noise_image(5), self.header())
        assert self.localize(image, good_info())[1]["status"] == "accepted"
        return self.pose(stamp_to_ns(image.header.stamp))[0, 3]

    def call(self, name: str) -> tuple[bool, str]:
        """Call a Trigger service of the node."""
        response = self.graph.call(Trigger, f"/localizer/{name}")
        return response.success, response.message


def noise_image(seed: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.random.default_rng(seed).integers(40, 255, (*size, 3), np.uint8)


def good_info() -> CameraInfo:
    return info_message(CAMERA, Header(frame_id="cam"))


def write_map(path: Path, **content) -> Path:
    """Write a map of the fake localizer."""
    path.write_text(json.dumps({"offset_m": 1.0} | content))
    return path
