"""Publishes frames as a camera driver would, and beside it the truth about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from tf2_ros import TransformBroadcaster

from aceg_ros.camera import Frame
from aceg_ros.ros.messages import depth_message, image_message, info_message, pose_to_message, pose_to_transform
from aceg_ros.ros.parameters import ParameterGroup, not_empty, parameter


@dataclass(frozen=True)
class CameraParameters:
    camera_frame: str = parameter("camera_optical_frame", "frame_id of the images.", read_only=True, check=not_empty)
    map_frame: str = parameter("map", "Frame of the true poses.", read_only=True, check=not_empty)
    publish_tf: bool = parameter(
        True, "Publish the true pose as the transform map_frame -> <camera_frame>_ground_truth.", read_only=True)
    publish_depth: bool = parameter(False, "Publish depth/image where the frames have depth.", read_only=True)


class CameraPublisher:
    """image, camera_info, depth/image, ~/ground_truth (PoseStamped) and TF of one camera.

    Publishers are reliable, which serves reliable subscribers (recorders, RViz) and best-effort ones alike.
    """

    def __init__(self, node: Node) -> None:
        self._parameters = ParameterGroup(node, CameraParameters).value
        self._image = node.create_publisher(Image, "image", 10)
        self._info = node.create_publisher(CameraInfo, "camera_info", 10)
        self._depth = node.create_publisher(Image, "depth/image", 10) if self._parameters.publish_depth else None
        self._truth = node.create_publisher(PoseStamped, "~/ground_truth", 10)
        self._tf = TransformBroadcaster(node) if self._parameters.publish_tf else None

    @property
    def subscribers(self) -> int:
        """How many listen to the images."""
        return self._image.get_subscription_count()

    def publish(self, frame: Frame, stamp: Time) -> None:
        """The small messages go first, so that they are there when the image arrives."""
        header = Header(stamp=stamp, frame_id=self._parameters.camera_frame)
        if frame.map_from_camera is not None:
            self._publish_truth(frame.map_from_camera, stamp)
        self._info.publish(info_message(frame.camera, header))
        if self._depth is not None and frame.depth_m is not None:
            self._depth.publish(depth_message(frame.depth_m, header))
        self._image.publish(image_message(frame.image, header))

    def _publish_truth(self, map_from_camera: np.ndarray, stamp: Time) -> None:
        header = Header(stamp=stamp, frame_id=self._parameters.map_frame)
        pose = pose_to_message(map_from_camera)
        self._truth.publish(PoseStamped(header=header, pose=pose))
        if self._tf is not None:
            self._tf.sendTransform(
                pose_to_transform(pose, header, f"{self._parameters.camera_frame}_ground_truth"))
