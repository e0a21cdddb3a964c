"""A robot that is played or simulated in a process of its own, and what the localizer says beside it."""

from __future__ import annotations

import time

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros_graph import RosGraph
from sensor_msgs.msg import PointCloud2
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from aceg_ros.geometry import invert, pose_error
from aceg_ros.ros.common.messages import pose_from_message, pose_from_transform
from aceg_ros.ros.players.camera_publisher import BASE_FROM_CAMERA
from aceg_ros.utils.stamps import stamp_to_ns

DEEP = QoSProfile(depth=1000)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Observer:
    """Hears everything. Stamps in nanoseconds; `heard_s` are moments of the wall clock."""

    def __init__(self, graph: RosGraph, camera: str = "camera") -> None:
        self.graph = graph
        self.truth: dict[int, np.ndarray] = {}              # map_from_camera by stamp
        self.odometry: dict[int, np.ndarray] = {}           # odom_from_base
        self.map_from_odom: list[tuple[int, np.ndarray]] = []
        self.poses: dict[int, tuple[float, np.ndarray]] = {}        # heard_s, pose
        self.outcomes: list[tuple[float, str]] = []
        self.mapping: list[tuple[float, str, dict[str, str]]] = []
        self.clouds: list[PointCloud2] = []
        node = graph.node
        node.create_subscription(PoseStamped, f"/{camera}/ground_truth", self._truth, DEEP)
        node.create_subscription(TFMessage, "/tf", self._transforms, DEEP)
        node.create_subscription(PoseWithCovarianceStamped, "/localizer/pose", self._pose, DEEP)
        node.create_subscription(DiagnosticArray, "/localizer/status", self._status, DEEP)
        node.create_subscription(DiagnosticArray, "/localizer/mapping_status", self._mapping_status, LATCHED)
        node.create_subscription(PointCloud2, "/localizer/map_cloud", self.clouds.append, LATCHED)

    def _truth(self, message: PoseStamped) -> None:
        self.truth[stamp_to_ns(message.header.stamp)] = pose_from_message(message.pose)

    def _transforms(self, message: TFMessage) -> None:
        for transform in message.transforms:
            stamp = stamp_to_ns(transform.header.stamp)
            if (transform.header.frame_id, transform.child_frame_id) == ("odom", "base_link"):
                self.odometry[stamp] = pose_from_transform(transform)
            elif (transform.header.frame_id, transform.child_frame_id) == ("map", "odom"):
                self.map_from_odom.append((stamp, pose_from_transform(transform)))

    def _pose(self, message: PoseWithCovarianceStamped) -> None:
        self.poses[stamp_to_ns(message.header.stamp)] = time.monotonic(), pose_from_message(message.pose.pose)

    def _status(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.endswith(": image"):
                self.outcomes.append((time.monotonic(), status.values[0].value))

    def _mapping_status(self, message: DiagnosticArray) -> None:
        values = {pair.key: pair.value for pair in message.status[0].values}
        self.mapping.append((time.monotonic(), message.status[0].message, values))

    def call(self, name: str) -> str:
        """Call a service that must succeed; returns what it says."""
        response = self.graph.call(Trigger, f"/localizer/{name}")
        assert response.success, f"{name}: {response.message}"
        return response.message

    def mapped(self, timeout_s: float = 400.0) -> float:
        """Wait until the map is there and in use; returns when that was said."""
        def ended() -> list:
            return [entry for entry in self.mapping if entry[2]["state"] == "idle" and entry[2]["recording"]]
        assert self.graph.spin_until(lambda: bool(ended()), timeout_s), self.mapping[-1:]
        when_s, message, _ = ended()[0]
        assert message.startswith("Mapped"), message
        return when_s

    def base_errors(self) -> np.ndarray:
        """(N, 2) metres and degrees between ~/pose and the true pose of the base."""
        return np.array([pose_error(pose, self.truth[stamp] @ invert(BASE_FROM_CAMERA))
                         for stamp, (_, pose) in self.poses.items() if stamp in self.truth])

    def map_from_odom_errors(self) -> np.ndarray:
        """(N, 2) metres and degrees of each map -> odom against the truth at the last moment before its stamp."""
        known = np.array(sorted(set(self.truth) & set(self.odometry)))
        errors = []
        for stamp, matrix in self.map_from_odom:
            index = np.searchsorted(known, stamp, side="right") - 1
            if index >= 0:
                true = self.truth[known[index]] @ invert(BASE_FROM_CAMERA) @ invert(self.odometry[known[index]])
                errors.append(pose_error(matrix, true))
        return np.array(errors)
