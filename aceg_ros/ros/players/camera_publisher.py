# SPDX-License-Identifier: Apache-2.0
"""Publish frames as a camera driver would, together with their true poses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from tf2_ros import StaticTransformBroadcaster, TransformBroadcaster

from aceg_ros.camera import Frame
from aceg_ros.geometry import invert
from aceg_ros.ros.common.messages import (
    compressed_message,
    depth_message,
    image_message,
    info_message,
    pose_to_message,
    pose_to_transform,
)
from aceg_ros.ros.common.parameters import ParameterGroup, not_empty, parameter
from aceg_ros.synthetic.odometry import DriftingOdometry

# The camera of the simulated robot: 10 cm ahead of its centre, 30 cm up, looking ahead.
BASE_FROM_CAMERA = np.array([[0.0, 0, 1, 0.1], [-1, 0, 0, 0], [0, -1, 0, 0.3], [0, 0, 0, 1]])


@dataclass(frozen=True, kw_only=True)
class CameraParameters:
    camera_frame: str = parameter("camera_optical_frame", "TF frame of the camera, the frame_id of the images.",
                                  read_only=True, check=not_empty)
    map_frame: str = parameter("map", "TF frame that the true poses are given in.", read_only=True, check=not_empty)
    publish_tf: bool = parameter(
        True, "Whether the true pose is published as the transform map_frame -> <camera_frame>_ground_truth.",
        read_only=True)
    publish_depth: bool = parameter(False, "Whether the depth of frames that have it is published on depth/image.",
                                    read_only=True)
    publish_compressed: bool = parameter(False, "Whether the images are published on image/compressed (JPEG) as well.",
                                         read_only=True)
    odometry: bool = parameter(
        False, "Whether the camera is on a robot: odom_frame -> base_frame, which drifts, and base_frame -> "
        "camera_frame are published in TF.", read_only=True)
    odometry_drift: float = parameter(
        0.03, "Error of the odometry as a fraction of the distance and of the angle travelled.",
        minimum=0.0, maximum=10.0, read_only=True)
    odom_frame: str = parameter("odom", "TF frame of the odometry.", read_only=True, check=not_empty)
    base_frame: str = parameter("base_link", "TF frame of the robot's base.", read_only=True, check=not_empty)


class CameraPublisher:
    """Publishes image, camera_info, depth/image, ~/ground_truth (PoseStamped) and TF of one camera.

    Publishers are reliable, so that reliable subscribers (recorders, RViz) and best-effort ones can connect.
    """

    def __init__(self, node: Node) -> None:
        self._parameters = ParameterGroup(node, CameraParameters).value
        self._image = node.create_publisher(Image, "image", 10)
        self._info = node.create_publisher(CameraInfo, "camera_info", 10)
        self._depth = node.create_publisher(Image, "depth/image", 10) if self._parameters.publish_depth else None
        self._truth = node.create_publisher(PoseStamped, "~/ground_truth", 10)
        self._compressed = node.create_publisher(CompressedImage, "image/compressed", 10) \
            if self._parameters.publish_compressed else None
        self._tf = TransformBroadcaster(node)
        if self._parameters.odometry:
            self._odometry = DriftingOdometry(self._parameters.odometry_drift)
            self._static_tf = StaticTransformBroadcaster(node)
            header = Header(frame_id=self._parameters.base_frame)
            self._static_tf.sendTransform(
                pose_to_transform(pose_to_message(BASE_FROM_CAMERA), header, self._parameters.camera_frame))

    @property
    def subscribers(self) -> int:
        """Return the number of subscribers to the images."""
        count = self._image.get_subscription_count()
        return count if self._compressed is None else count + self._compressed.get_subscription_count()

    def publish(self, frame: Frame, stamp: Time) -> None:
        """Publish a frame. The small messages go first, so that they are there when the image arrives."""
        header = Header(stamp=stamp, frame_id=self._parameters.camera_frame)
        if frame.map_from_camera is not None:
            self._publish_truth(frame.map_from_camera, stamp)
        self._info.publish(info_message(frame.camera, header))
        if self._depth is not None and frame.depth_m is not None:
            self._depth.publish(depth_message(frame.depth_m, header))
        if self._compressed is not None:
            self._compressed.publish(compressed_message(frame.image, header))
        self._image.publish(image_message(frame.image, header))

    def _publish_truth(self, map_from_camera: np.ndarray, stamp: Time) -> None:
        header = Header(stamp=stamp, frame_id=self._parameters.map_frame)
        pose = pose_to_message(map_from_camera)
        self._truth.publish(PoseStamped(header=header, pose=pose))
        transforms = []
        if self._parameters.publish_tf:
            transforms.append(pose_to_transform(pose, header, f"{self._parameters.camera_frame}_ground_truth"))
        if self._parameters.odometry:
            odom_from_base = self._odometry.update(map_from_camera @ invert(BASE_FROM_CAMERA))
            header = Header(stamp=stamp, frame_id=self._parameters.odom_frame)
            transforms.append(pose_to_transform(pose_to_message(odom_from_base), header, self._parameters.base_frame))
        if transforms:
            self._tf.sendTransform(transforms)
