# SPDX-License-Identifier: Apache-2.0
"""Listens to what a localizer node publishes, by the stamps of the images."""

from __future__ import annotations

import time

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseWithCovarianceStamped, TransformStamped
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros_graph import RosGraph
from sensor_msgs.msg import PointCloud2
from tf2_msgs.msg import TFMessage

from aceg_ros.ros.common.messages import pose_from_message
from aceg_ros.utils.stamps import stamp_to_ns

DEEP = QoSProfile(depth=1000)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
Values = dict[str, str]


def values_of(status: DiagnosticStatus) -> Values:
    return {pair.key: pair.value for pair in status.values}


class LocalizerListener:
    """Keeps everything; stamps are nanoseconds, moments are seconds of time.monotonic().

    Attributes:
        poses: Messages by stamp.
        pose_moments_s: When the first of them came.
        statuses: Status and values of each image, by stamp.
        outcomes: Moment and status value of each image, in the order of arrival.
        node_statuses: Status and values of the node.
        mapping: Moment, message and values of mapping.
        transforms: From the map frame.
        clouds: Of the map.
    """

    def __init__(self, graph: RosGraph, name: str = "localizer") -> None:
        self.graph = graph
        self.poses: dict[int, list[PoseWithCovarianceStamped]] = {}
        self.pose_moments_s: dict[int, float] = {}
        self.statuses: dict[int, list[tuple[DiagnosticStatus, Values]]] = {}
        self.outcomes: list[tuple[float, str]] = []
        self.node_statuses: list[tuple[DiagnosticStatus, Values]] = []
        self.mapping: list[tuple[float, str, Values]] = []
        self.transforms: list[TransformStamped] = []
        self.clouds: list[PointCloud2] = []
        node = graph.node
        node.create_subscription(PoseWithCovarianceStamped, f"/{name}/pose", self._pose_received, DEEP)
        node.create_subscription(DiagnosticArray, f"/{name}/status", self._status_received, DEEP)
        node.create_subscription(DiagnosticArray, f"/{name}/mapping_status", self._mapping_received, LATCHED)
        node.create_subscription(PointCloud2, f"/{name}/map_cloud", self.clouds.append, LATCHED)
        node.create_subscription(TFMessage, "/tf", self._tf_received, DEEP)

    @property
    def is_active(self) -> bool:
        return bool(self.node_statuses) and self.node_statuses[-1][1]["lifecycle"] == "active"

    @property
    def is_expected(self) -> bool:
        """Whether the node is active and has found the publisher of camera_info, the topic that it misses first.

        Publishers are found in the order of their creation: if this one is the last, no image is lost for want of one
        that knows the other.
        """
        return self.is_active and "nobody publishes it" not in self.node_statuses[-1][0].message

    def pose(self, stamp_ns: int) -> np.ndarray:
        """Return the only pose (4, 4) that was published of an image."""
        (message,) = self.poses[stamp_ns]
        return pose_from_message(message.pose.pose)

    def wait_for_status(self, stamp_ns: int, timeout_s: float = 60.0) -> tuple[DiagnosticStatus, Values]:
        """Return the only status of an image, once it has come; its pose, if it was accepted, has come as well then."""
        assert self.graph.spin_until(lambda: stamp_ns in self.statuses, timeout_s), "no status of this image"
        if self.statuses[stamp_ns][0][1]["status"] == "accepted":
            assert self.graph.spin_until(lambda: stamp_ns in self.poses, timeout_s), "no pose of this image"
        ((status, values),) = self.statuses[stamp_ns]
        return status, values

    def _pose_received(self, message: PoseWithCovarianceStamped) -> None:
        stamp_ns = stamp_to_ns(message.header.stamp)
        self.poses.setdefault(stamp_ns, []).append(message)
        self.pose_moments_s.setdefault(stamp_ns, time.monotonic())

    def _status_received(self, message: DiagnosticArray) -> None:
        status = message.status[0]
        values = values_of(status)
        if status.name.endswith(": node"):
            self.node_statuses.append((status, values))
        elif status.name.endswith(": image"):
            self.statuses.setdefault(stamp_to_ns(message.header.stamp), []).append((status, values))
            self.outcomes.append((time.monotonic(), values["status"]))

    def _mapping_received(self, message: DiagnosticArray) -> None:
        self.mapping.append((time.monotonic(), message.status[0].message, values_of(message.status[0])))

    def _tf_received(self, message: TFMessage) -> None:
        for transform in message.transforms:
            self.transform_received(transform)

    def transform_received(self, transform: TransformStamped) -> None:
        """Keep a transform from the map; subclasses listen to others as well."""
        if transform.header.frame_id not in ("odom", "base_link"):
            self.transforms.append(transform)
