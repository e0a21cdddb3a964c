# SPDX-License-Identifier: Apache-2.0
"""Publish status: of each image at once, of the node and of mapping every second and at each change."""

from __future__ import annotations

import threading

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Header

from aceg_ros.ros.localizer.results import LocalizationResult
from aceg_ros.ros.localizer.status import (
    NodeState,
    ProblemLog,
    SlidingWindow,
    StatusCounts,
    diagnostic_array,
    image_status,
    mapping_status,
    node_status,
)
from aceg_ros.ros.mapping.controller import MappingController
from aceg_ros.utils.stamps import ns_to_ms, stamp_to_ns

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class StatusPublisher:
    """Publishes status. Thread-safe, except count_received and count_skipped: call them from the executor only."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._lock = threading.Lock()
        self._counts, self._window = StatusCounts(), SlidingWindow()
        self._problem_log = ProblemLog(node.get_logger().warning)
        self._mapping_message = ""          # the newest that was published
        self._status = node.create_publisher(DiagnosticArray, "~/status", 50)
        self._mapping_status = node.create_publisher(DiagnosticArray, "~/mapping_status", LATCHED)
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", 10)

    @property
    def received(self) -> int:
        """Number of the newest image."""
        return self._counts.received

    def count_received(self) -> None:
        self._counts.received += 1
        self._window.add_image()

    def count_skipped(self) -> None:
        self._counts.skipped += 1

    def publish_result(self, result: LocalizationResult) -> None:
        """Publish the result of one image."""
        age_ms = ns_to_ms(self._node.get_clock().now().nanoseconds - stamp_to_ns(result.header.stamp))
        with self._lock:
            self._counts.by_status[result.status] += 1
            self._window.add_result(result, age_ms)
            self._status.publish(image_status(self._node.get_name(), result, age_ms, self._counts))

    def publish_node(self, state: NodeState, mapping: MappingController) -> None:
        """Publish the state of the node on ~/status, and with that of mapping on /diagnostics."""
        name, header = self._node.get_name(), self._header()
        with self._lock:
            self._problem_log.update(state.problem(self._window))
            status = node_status(name, state, self._counts, self._window)
            self._status.publish(diagnostic_array(header, [status]))
            self._diagnostics.publish(diagnostic_array(header, [status, mapping_status(name, mapping)]))

    def publish_mapping(self, mapping: MappingController, only_news: bool = False) -> None:
        """Publish the state of mapping. only_news: unless its sentence is that of the last time."""
        status = mapping_status(self._node.get_name(), mapping)
        message = diagnostic_array(self._header(), [status])
        with self._lock:
            if only_news and status.message == self._mapping_message:
                return
            self._mapping_message = status.message
            self._mapping_status.publish(message)
            self._status.publish(message)

    def _header(self) -> Header:
        return Header(stamp=self._node.get_clock().now().to_msg())
