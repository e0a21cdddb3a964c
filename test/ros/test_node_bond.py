# SPDX-License-Identifier: Apache-2.0
"""The bond by which Nav2's lifecycle manager notices that the node is gone."""

import time
from itertools import pairwise

import pytest
import rclpy
from bond.msg import Status
from lifecycle_manager import LifecycleManager
from node_bench import FAKE_NODE, Bench, write_map
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from ros_graph import output, stop

from aceg_ros.ros.localizer import bond


def test_a_manager_notices_that_the_node_was_killed_and_starts_it_again(graph, tmp_path):
    def start():
        return graph.start(FAKE_NODE, "__node:=localizer", map_path=map_file, autostart=False)

    map_file = str(write_map(tmp_path / "fake.map"))
    bench, manager = Bench(graph), LifecycleManager(graph, "localizer", bond_timeout_s=4.0)
    process = start()
    assert manager.startup(), output(process)
    graph.spin(2.5)
    moments_s = [moment_s for moment_s, _ in manager.heard]
    assert 5 <= len(moments_s) <= 20 and len({status.instance_id for _, status in manager.heard}) == 1
    assert max(after - before for before, after in pairwise(moments_s)) < 1.5

    process.kill()
    killed_s = time.monotonic()
    process = start()
    assert graph.spin_until(manager.is_broken, 10.0) and time.monotonic() - killed_s > 3.0
    assert manager.heard[-1][1].active, "it had no time to say so"
    manager.drop()
    bench.node_statuses.clear()
    assert manager.startup() and graph.spin_until(bench.connected) and bench.position() > 0, output(process)


def test_a_node_that_is_deactivated_says_that_it_is_no_crash(graph, tmp_path):
    process = graph.start(FAKE_NODE, "__node:=localizer", map_path=str(write_map(tmp_path / "fake.map")),
                          autostart=False)
    manager = LifecycleManager(graph, "localizer")
    assert manager.startup(), output(process)
    instances = set()
    for _ in range(2):
        graph.spin(0.5)
        instances.add(manager.heard[-1][1].instance_id)
        assert manager.pause()
        assert graph.spin_until(lambda: not manager.heard[-1][1].active, 5.0)
        graph.spin(0.5)
        count = len(manager.heard)
        graph.spin(1.0)
        assert len(manager.heard) == count, "nothing more once the manager has answered"
        assert manager.resume() and not manager.is_broken()
    assert len(instances) == 2
    assert stop(process) == 0 and "Traceback" not in output(process)


class Pair:
    """A bond of a node, and what the node sends and hears."""

    def __init__(self, **parameters: float) -> None:
        self.node = rclpy.create_node(
            "robot", namespace="ns", parameter_overrides=[Parameter(n, value=v) for n, v in parameters.items()])
        self.bond = bond.Bond(self.node)
        self.sent: list[Status] = []
        self.node.create_subscription(Status, "/ns/bond", self._received, 100)
        self.publisher = self.node.create_publisher(Status, "/ns/bond", 5)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)

    def _received(self, status: Status) -> None:
        if status.instance_id not in ("peer", "stranger"):
            self.sent.append(status)

    def spin_until(self, condition, timeout_s: float = 10.0) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline_s:
            self._executor.spin_once(timeout_sec=0.02)
        return condition()

    def tell(self, name: str = "robot", instance_id: str = "peer", active: bool = True) -> None:
        self.publisher.publish(Status(id=name, instance_id=instance_id, active=active))
        self.spin_until(lambda: False, 0.2)

    def is_silent(self) -> bool:
        self.spin_until(lambda: False, 0.1)
        self.sent.clear()
        self.spin_until(lambda: False, 0.3)
        return not self.sent


@pytest.fixture
def pair():
    rclpy.init()
    made = Pair(bond_heartbeat_period=0.05)
    yield made
    made.node.destroy_node()
    rclpy.shutdown()


def test_the_manager_may_leave_and_a_new_one_may_come(pair):
    assert pair.is_silent(), "before start()"
    pair.bond.start()
    assert pair.spin_until(lambda: len(pair.sent) > 2)
    assert {(status.id, status.active) for status in pair.sent} == {("robot", True)}
    assert pair.sent[0].heartbeat_timeout == 4.0 and pair.sent[0].heartbeat_period == pytest.approx(0.05)
    pair.tell(active=False)                 # the rest of an older bond
    pair.tell(name="another", active=False)
    pair.tell()
    pair.tell(instance_id="stranger", active=False)
    assert not pair.is_silent()
    pair.tell(active=False)
    assert not pair.sent[-1].active and pair.is_silent(), "answered, and over"
    pair.bond.end()
    assert pair.is_silent(), "it was over already"
    pair.bond.start()
    pair.tell(instance_id="another manager")
    assert pair.sent[-1].active


def test_a_manager_with_a_topic_for_each_node(pair):
    """As Nav2 has it since bonds no longer share one topic."""
    heard = []
    pair.node.create_subscription(Status, "/ns/bond/robot", heard.append, 100)
    pair.publisher = pair.node.create_publisher(Status, "/ns/bond/robot", 5)
    pair.bond.start()
    assert pair.spin_until(lambda: len(heard) > 2) and {status.id for status in heard} == {"robot"}
    pair.tell()
    pair.tell(active=False)
    assert not heard[-1].active and pair.is_silent(), "formed, answered, and over"


def test_nobody_waits_for_ever(pair, monkeypatch):
    monkeypatch.setattr(bond, "CONNECT_TIMEOUT_S", 0.3)
    monkeypatch.setattr(bond, "DISCONNECT_TIMEOUT_S", 0.3)
    pair.bond.start()
    assert pair.spin_until(lambda: len(pair.sent) > 2)
    pair.spin_until(lambda: False, 0.4)
    assert pair.is_silent(), "no manager came"
    pair.bond.start()
    pair.tell()
    pair.bond.end()
    assert pair.spin_until(lambda: not pair.sent[-1].active)
    pair.spin_until(lambda: False, 0.4)
    assert pair.is_silent(), "the manager did not answer"


def test_without_a_period_there_is_no_bond(node):
    off = Pair(bond_heartbeat_period=0.0)
    off.bond.start()
    off.bond.end()
    assert off.node.count_publishers("/ns/bond") == 1, "but for the test's own"
    off.node.destroy_node()
