# SPDX-License-Identifier: Apache-2.0
"""A robot that is played or simulated in a process of its own, and what the localizer publishes beside it."""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import PoseStamped, TransformStamped
from localizer_listener import DEEP, LocalizerListener
from ros_graph import RosGraph
from std_srvs.srv import Trigger

from aceg_ros.geometry import invert, pose_error
from aceg_ros.ros.common.messages import pose_from_message, pose_from_transform
from aceg_ros.ros.players.camera_publisher import BASE_FROM_CAMERA
from aceg_ros.utils.stamps import stamp_to_ns


class Observer(LocalizerListener):
    """Listens to the true poses and to the odometry as well. Stamps are nanoseconds.

    Attributes:
        truth: map_from_camera by stamp.
        odometry: odom_from_base by stamp.
        map_from_odom: Stamp and transform, in the order of arrival.
    """

    def __init__(self, graph: RosGraph, camera: str = "camera") -> None:
        super().__init__(graph)
        self.truth: dict[int, np.ndarray] = {}
        self.odometry: dict[int, np.ndarray] = {}
        self.map_from_odom: list[tuple[int, np.ndarray]] = []
        graph.node.create_subscription(PoseStamped, f"/{camera}/ground_truth", self._truth_received, DEEP)

    def _truth_received(self, message: PoseStamped) -> None:
        self.truth[stamp_to_ns(message.header.stamp)] = pose_from_message(message.pose)

    def transform_received(self, transform: TransformStamped) -> None:
        stamp_ns = stamp_to_ns(transform.header.stamp)
        if (transform.header.frame_id, transform.child_frame_id) == ("odom", "base_link"):
            self.odometry[stamp_ns] = pose_from_transform(transform)
        elif (transform.header.frame_id, transform.child_frame_id) == ("map", "odom"):
            self.map_from_odom.append((stamp_ns, pose_from_transform(transform)))

    def call(self, name: str) -> str:
        """Call a service that must succeed; returns its message."""
        response = self.graph.call(Trigger, f"/localizer/{name}")
        assert response.success, f"{name}: {response.message}"
        return response.message

    def wait_until_mapped(self, timeout_s: float = 400.0) -> float:
        """Wait until the map is there and in use; returns the moment at which the node said so."""
        def ended() -> list:
            return [entry for entry in self.mapping if entry[2]["state"] == "idle" and entry[2]["recording"]]
        assert self.graph.spin_until(lambda: bool(ended()), timeout_s), self.mapping[-1:]
        moment_s, message, _ = ended()[0]
        assert message.startswith("Mapped"), message
        return moment_s

    def base_errors(self) -> np.ndarray:
        """Return (N, 2) metres and degrees between ~/pose and the true pose of the base."""
        return np.array([pose_error(pose_from_message(messages[-1].pose.pose),
                                    self.truth[stamp] @ invert(BASE_FROM_CAMERA))
                         for stamp, messages in self.poses.items() if stamp in self.truth])

    def map_from_odom_errors(self) -> np.ndarray:
        """Return (N, 2) metres and degrees of each map -> odom against the last truth before its stamp."""
        known = np.array(sorted(set(self.truth) & set(self.odometry)))
        errors = []
        for stamp, matrix in self.map_from_odom:
            index = np.searchsorted(known, stamp, side="right") - 1
            if index >= 0:
                true = self.truth[known[index]] @ invert(BASE_FROM_CAMERA) @ invert(self.odometry[known[index]])
                errors.append(pose_error(matrix, true))
        return np.array(errors)
