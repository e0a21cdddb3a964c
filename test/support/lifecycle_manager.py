# SPDX-License-Identifier: Apache-2.0
"""A lifecycle manager as a node sees Nav2's: transitions by service, and a bond that tells whether the node lives."""

from __future__ import annotations

import time

from bond.msg import Status
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.clock import Clock, ClockType
from ros_graph import RosGraph

PERIOD_S = 0.1


class LifecycleManager:
    """Starts a node, and watches it while the test spins.

    Attributes:
        heard: Moment and message of all that the node published on its bond.
    """

    def __init__(self, graph: RosGraph, name: str, bond_timeout_s: float = 4.0) -> None:
        self._graph, self._name, self._timeout_s = graph, name, bond_timeout_s
        self._instances, self._instance_id = 0, ""
        self.heard: list[tuple[float, Status]] = []
        self._publisher = graph.node.create_publisher(Status, "bond", 5)
        graph.node.create_subscription(Status, "bond", self._status_received, 100)
        graph.node.create_timer(PERIOD_S, self._send_heartbeat, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def startup(self) -> bool:
        """Configure and activate the node, and form the bond; returns whether all of this succeeded in time."""
        return self._wait_for_node() and self.change(Transition.TRANSITION_CONFIGURE) and self.resume()

    def _wait_for_node(self) -> bool:
        """Ask again and again: the services of a node that was killed look ready for a while."""
        client = self._graph.node.create_client(GetState, f"/{self._name}/get_state")
        for _ in range(60):
            answer = client.call_async(GetState.Request())
            if self._graph.spin_until(answer.done, 1.0):
                return True
        return False

    def resume(self) -> bool:
        if not self.change(Transition.TRANSITION_ACTIVATE):
            return False
        self.heard.clear()
        self._instances += 1
        self._instance_id = f"manager {self._instances}"
        return self._graph.spin_until(lambda: bool(self.heard), self._timeout_s / 2)

    def pause(self) -> bool:
        """Deactivate the node, then drop the bond."""
        success = self.change(Transition.TRANSITION_DEACTIVATE)
        self.drop()
        return success

    def drop(self) -> None:
        """Leave the bond as a manager that is stopped."""
        if self._instance_id:
            self._publish(active=False)
        self._instance_id = ""

    def is_broken(self) -> bool:
        """Return whether the node has left, or has not been heard of for too long."""
        moment_s, status = self.heard[-1]
        return not status.active or time.monotonic() - moment_s > self._timeout_s

    def change(self, transition: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return self._graph.call(ChangeState, f"/{self._name}/change_state", request).success

    def _send_heartbeat(self) -> None:
        if self._instance_id:
            self._publish(active=True)

    def _publish(self, *, active: bool) -> None:
        self._publisher.publish(Status(id=self._name, instance_id=self._instance_id, active=active,
                                       heartbeat_timeout=self._timeout_s, heartbeat_period=PERIOD_S))

    def _status_received(self, status: Status) -> None:
        if status.id == self._name and not status.instance_id.startswith("manager"):
            self.heard.append((time.monotonic(), status))
