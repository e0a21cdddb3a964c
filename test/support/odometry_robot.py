# SPDX-License-Identifier: Apache-2.0
"""A robot on a curve, with drifting odometry, whose images carry their own pose for the fake localizer."""

from __future__ import annotations

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import TransformStamped
from localizer_listener import LocalizerListener, Values
from nav_msgs.msg import Path as PathMessage
from node_bench import CAMERA, noise_image
from rclpy.qos import qos_profile_sensor_data
from rclpy.time import Time as RosTime
from ros_graph import RosGraph
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from tf2_ros import StaticTransformBroadcaster, TransformBroadcaster

from aceg_ros.geometry import invert
from aceg_ros.ros.common.messages import image_message, info_message, pose_to_message, pose_to_transform
from aceg_ros.ros.players.camera_publisher import BASE_FROM_CAMERA
from aceg_ros.synthetic.odometry import DriftingOdometry
from aceg_ros.utils.stamps import stamp_to_ns


def truth_at(step: int) -> np.ndarray:
    """Return map_from_camera (4, 4) of a robot on a curve."""
    angle = 0.05 * step
    base = np.eye(4)
    base[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    base[:3, 3] = 3 * np.sin(angle), 3 - 3 * np.cos(angle), 0.0
    return base @ BASE_FROM_CAMERA


class OdometryRobot(LocalizerListener):
    """Publishes images, camera_infos, odometry and the extrinsics of the camera.

    top_frame: The topmost frame of its TF: odom, base_link (no odometry) or cam (no extrinsics either).

    Attributes:
        truth, odom_from_camera: (4, 4) by stamp in nanoseconds.
        paths: Messages of ~/path.
        now_s: What /clock says; None to stamp the images with the time of the machine.
    """

    def __init__(self, graph: RosGraph, top_frame: str = "odom") -> None:
        super().__init__(graph)
        self.top_frame = top_frame
        self.step = 0
        self.paths: list[PathMessage] = []
        self.odometry = DriftingOdometry(0.05)
        self.odom_from_camera: dict[int, np.ndarray] = {}
        self.truth: dict[int, np.ndarray] = {}
        self.now_s: float | None = None
        node = graph.node
        self._image = node.create_publisher(Image, "image", qos_profile_sensor_data)
        self._clock = node.create_publisher(Clock, "/clock", 10)
        self._tf, self._static_tf = TransformBroadcaster(node), StaticTransformBroadcaster(node)
        self._info = node.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)      # see is_expected
        if top_frame != "cam":
            self.publish_extrinsics()
        node.create_subscription(PathMessage, "/localizer/path", self.paths.append, 10)

    def transform_received(self, transform: TransformStamped) -> None:
        if transform.header.frame_id == "map":
            self.transforms.append(transform)

    def publish_extrinsics(self) -> None:
        self._static_tf.sendTransform(
            pose_to_transform(pose_to_message(BASE_FROM_CAMERA), Header(frame_id="base_link"), "cam"))

    def connected(self) -> bool:
        """Whether the node listens to images and TF, and is heard."""
        node = self.graph.node
        return bool(self.is_expected and self._image.get_subscription_count() and self._info.get_subscription_count()
                    and node.count_subscribers("/tf_static") and node.count_subscribers("/tf"))

    def set_clock(self, seconds: float) -> None:
        self.now_s = seconds
        self._clock.publish(Clock(clock=RosTime(seconds=seconds).to_msg()))

    def drive(self, wrong: np.ndarray | None = None, **options) -> tuple[int, DiagnosticStatus, Values]:
        """Drive a step and send an image; return its stamp, and its status and values once the node has published them.

        See `send_image` for the arguments.
        """
        stamp_ns = self.send_image(wrong, **options)
        status, values = self.wait_for_status(stamp_ns)
        self.graph.spin(0.02)
        return stamp_ns, status, values

    def send_image(self, wrong: np.ndarray | None = None, *, with_odometry: bool = True, advance: bool = True,
                   stamp: Time | None = None) -> int:
        """Drive a step and send an image, without waiting for its status.

        Args:
            wrong: The pose that the image carries instead of the true one.
            with_odometry: Whether the odometry of the step is published.
            advance: Whether the robot moves.
            stamp: Of the image, instead of the present time.

        Returns:
            Stamp of the image in nanoseconds.
        """
        self.step += advance
        truth = truth_at(self.step)
        stamp = stamp or (self.graph.node.get_clock().now().to_msg() if self.now_s is None
                          else RosTime(seconds=self.now_s).to_msg())
        stamp_ns = stamp_to_ns(stamp)
        odom_from_base = self.odometry.update(truth @ invert(BASE_FROM_CAMERA))
        if with_odometry and self.top_frame == "odom":
            self._tf.sendTransform(pose_to_transform(pose_to_message(odom_from_base),
                                                     Header(stamp=stamp, frame_id="odom"), "base_link"))
        self.truth[stamp_ns], self.odom_from_camera[stamp_ns] = truth, odom_from_base @ BASE_FROM_CAMERA
        header = Header(stamp=stamp, frame_id="cam")
        self._info.publish(info_message(CAMERA, header))
        self._image.publish(image_message(image_with_pose(truth if wrong is None else wrong), header))
        return stamp_ns

    def true_pose(self, stamp_ns: int, child: str) -> np.ndarray:
        """Return the true pose (4, 4) in the map of cam, base_link or odom."""
        truth = self.truth[stamp_ns]
        return {"cam": truth, "base_link": truth @ invert(BASE_FROM_CAMERA),
                "odom": truth @ invert(self.odom_from_camera[stamp_ns])}[child]


def image_with_pose(pose: np.ndarray) -> np.ndarray:
    """Return an image whose first bytes are the pose, 16 float64."""
    image = noise_image(0)
    image.reshape(-1)[:128] = np.frombuffer(np.ascontiguousarray(pose).tobytes(), np.uint8)
    return image
