# SPDX-License-Identifier: Apache-2.0
"""A camera in the process of the test that shows the frames of a scene, with their poses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry
from rclpy.qos import qos_profile_sensor_data
from ros_graph import RosGraph
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from tf2_ros import StaticTransformBroadcaster, TransformBroadcaster

from aceg_ros.datasets import open_scene
from aceg_ros.geometry import invert
from aceg_ros.ros.common.messages import depth_message, image_message, info_message, pose_to_message, pose_to_transform
from aceg_ros.ros.players.camera_publisher import BASE_FROM_CAMERA


class SceneCamera:
    """Shows the frames again and again. source: how their poses are published: tf, pose or odometry."""

    def __init__(self, graph: RosGraph, scene: Path, source: str = "pose", depth: bool = False) -> None:
        self.graph, self._source = graph, source
        self.frames = list(open_scene(scene))
        self._shown = 0
        node = graph.node
        self._image = node.create_publisher(Image, "image", qos_profile_sensor_data)
        self._info = node.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
        self._depth = node.create_publisher(Image, "depth/image", qos_profile_sensor_data) if depth else None
        self._pose = node.create_publisher(Odometry if source == "odometry" else PoseStamped, "mapping_pose", 10)
        self._tf, self._static_tf = TransformBroadcaster(node), StaticTransformBroadcaster(node)
        self._static_tf.sendTransform(
            pose_to_transform(pose_to_message(BASE_FROM_CAMERA), Header(frame_id="base_link"), "cam"))

    def connected(self) -> bool:
        return self._image.get_subscription_count() > 0

    def show(self, count: int, period_s: float = 0.1) -> None:
        """Show the next frames, as many and at this period."""
        for _ in range(count):
            frame = self.frames[self._shown % len(self.frames)]
            self._shown += 1
            header = Header(stamp=self.graph.node.get_clock().now().to_msg(), frame_id="cam")
            assert frame.map_from_camera is not None
            self._publish_pose(frame.map_from_camera, header.stamp)
            if self._depth is not None:
                self._depth.publish(depth_message(frame.depth_m, header))
            self._info.publish(info_message(frame.camera, header))
            self._image.publish(image_message(frame.image, header))
            self.graph.spin(period_s)

    def _publish_pose(self, map_from_camera: np.ndarray, stamp: Time) -> None:
        header = Header(stamp=stamp, frame_id="map")
        base = pose_to_message(map_from_camera @ invert(BASE_FROM_CAMERA))
        if self._source == "pose":
            self._pose.publish(PoseStamped(header=header, pose=pose_to_message(map_from_camera)))
        elif self._source == "odometry":
            message = Odometry(header=header, child_frame_id="base_link")
            message.pose.pose = base
            self._pose.publish(message)
        else:
            self._tf.sendTransform(pose_to_transform(base, header, "base_link"))
