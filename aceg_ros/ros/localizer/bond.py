# SPDX-License-Identifier: Apache-2.0
"""The node's side of the bond by which Nav2's lifecycle manager notices that a node is gone.

The protocol is that of the packages bondcpp and bondpy: both sides publish bond/Status with a common id, the name of
the node, and an instance_id of their own. Whoever leaves says so by active = false, and the other side does the same.
bondpy itself is of no use here: its heartbeats come from a thread of their own, which goes on while the executor hangs.
"""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass
from enum import Enum, auto

from bond.msg import Status
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from aceg_ros.ros.common.parameters import ParameterGroup, parameter

CONNECT_TIMEOUT_S, DISCONNECT_TIMEOUT_S, HEARTBEAT_TIMEOUT_S = 10.0, 2.0, 4.0        # as in bond/Constants and in Nav2


@dataclass(frozen=True, kw_only=True)
class BondParameters:
    bond_heartbeat_period: float = parameter(
        0.25, "Time in seconds between two heartbeats to Nav2's lifecycle manager on the topic bond; 0 makes no bond, "
        "and the manager then needs bond_timeout 0.0.", minimum=0.0, maximum=60.0, read_only=True)


class _State(Enum):
    OFF = auto()
    WAITING = auto()        # for the first heartbeat of the manager
    FORMED = auto()
    BREAKING = auto()       # until the manager has answered


class Bond:
    """Forms a bond between start() and end(); the executor sends the heartbeats, so they stop if it hangs.

    As Nav2's nodes it never breaks the bond for want of the manager's heartbeats.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._period_s = ParameterGroup(node, BondParameters).value.bond_heartbeat_period
        self._lock = threading.Lock()       # transitions have a thread of their own
        self._state = _State.OFF
        self._deadline_s = 0.0
        self._instance_id = self._peer = ""
        if self._period_s:
            # Nav2's managers watch one topic for all nodes, or in the newest Nav2 one for each node.
            topics = ("bond", f"bond/{node.get_name()}")
            self._publishers = [node.create_publisher(Status, topic, 5) for topic in topics]
            for topic in topics:
                node.create_subscription(Status, topic, self._status_received, 100)
            node.create_timer(self._period_s, self._send_heartbeat, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def start(self) -> None:
        """Wait for a manager for CONNECT_TIMEOUT_S."""
        if not self._period_s:
            return
        with self._lock:
            self._instance_id = str(uuid.uuid4())
            self._change(_State.WAITING, CONNECT_TIMEOUT_S)
            self._publish(active=True)

    def end(self) -> None:
        """Tell the manager that this is no crash."""
        with self._lock:
            if self._state in (_State.WAITING, _State.FORMED):
                self._change(_State.BREAKING if self._state is _State.FORMED else _State.OFF, DISCONNECT_TIMEOUT_S)
                self._publish(active=False)

    def _change(self, state: _State, timeout_s: float = 0.0) -> None:
        self._state, self._deadline_s = state, time.monotonic() + timeout_s

    def _send_heartbeat(self) -> None:
        with self._lock:
            if self._state in (_State.WAITING, _State.BREAKING) and time.monotonic() > self._deadline_s:
                self._change(_State.OFF)
            if self._state is not _State.OFF:
                self._publish(active=self._state is not _State.BREAKING)

    def _status_received(self, status: Status) -> None:
        if status.id != self._node.get_name():
            return
        with self._lock:
            if status.instance_id == self._instance_id or self._state is _State.OFF:
                return
            if status.active:
                self._peer = status.instance_id         # a manager that was started again is a new one
                if self._state is _State.WAITING:
                    self._change(_State.FORMED)
                    self._node.get_logger().info("The bond with the lifecycle manager is formed.")
            elif self._state is _State.BREAKING:
                self._change(_State.OFF)
            elif self._state is _State.FORMED and status.instance_id == self._peer:
                self._change(_State.OFF)
                self._publish(active=False)

    def _publish(self, *, active: bool) -> None:
        status = Status(id=self._node.get_name(), instance_id=self._instance_id, active=active,
                        heartbeat_timeout=HEARTBEAT_TIMEOUT_S, heartbeat_period=self._period_s)
        status.header.stamp = self._node.get_clock().now().to_msg()
        for publisher in self._publishers:
            publisher.publish(status)
