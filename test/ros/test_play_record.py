# SPDX-License-Identifier: Apache-2.0
"""`aceg play` and `aceg record` over real topics: what is played is what is recorded."""

import signal

import numpy as np
import pytest
from bag_writer import BagStyle, write_bag
from localizer_listener import DEEP
from rclpy.qos import qos_profile_sensor_data
from ros_graph import output, stop
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

from aceg_ros.datasets import open_scene
from aceg_ros.utils.stamps import stamp_to_ns, stamp_to_s


@pytest.fixture
def bag(rendered_scene, tmp_path):
    return write_bag(tmp_path / "bag", open_scene(rendered_scene / "query"), BagStyle(compressed=True))


def test_a_bag_is_played_in_its_own_time_and_recorded_again(graph, bag, tmp_path):
    clocks = []
    graph.node.create_subscription(Clock, "/clock", lambda m: clocks.append(stamp_to_s(m.clock)), DEEP)
    # After that of the clock: a player that has found this subscription has found both.
    graph.node.create_subscription(Image, "image", lambda _: None, qos_profile_sensor_data)
    copy = tmp_path / "copy"
    recorder = graph.start_aceg("record", "-o", copy)
    player = graph.start_aceg("play", bag, "--speed", 0.2, "--wait-for", 2)     # this test and the recorder
    assert graph.spin_until(lambda: player.poll() is not None, 60), output(player)
    assert player.returncode == 0, output(player)
    assert stop(recorder, signal.SIGINT) == 0, output(recorder)
    assert clocks == sorted(clocks)
    assert len(clocks) > 20, f"{len(clocks)} ticks in two seconds"
    assert clocks[0] == pytest.approx(1.7e9) and clocks[-1] == pytest.approx(1.7e9 + 11 / 30, abs=1e-3)
    played, recorded = list(open_scene(bag)), list(open_scene(copy))
    assert len(recorded) == len(played) == 12
    for a, b in zip(played, recorded, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_allclose(a.map_from_camera, b.map_from_camera, atol=1e-9)
        assert b.stamp_s == pytest.approx(a.stamp_s, abs=1e-6) and a.camera == b.camera


def test_a_bag_played_twice_is_localized_twice(graph, bag, rendered_map):
    """The clock jumps back; the second round gives the poses of the first."""
    from geometry_msgs.msg import PoseWithCovarianceStamped
    node = graph.start("aceg_ros.ros.localizer_node", map_path=str(rendered_map), use_sim_time=True)
    assert graph.spin_until(lambda: "Localizing in" in output(node)), output(node)
    rounds: list[dict] = [{}]

    def note(message):
        stamp = stamp_to_ns(message.header.stamp)
        if stamp in rounds[-1] or any(stamp < other for other in rounds[-1]):
            rounds.append({})
        rounds[-1][stamp] = message.pose.pose

    graph.node.create_subscription(PoseWithCovarianceStamped, "/localizer/pose", note, DEEP)
    player = graph.start_aceg("play", bag, *("--speed", 0.1, "--loop"))
    assert graph.spin_until(lambda: len(rounds) > 2, 90), output(node)
    assert stop(player) == 0 and stop(node) == 0
    assert len(rounds[1]) >= 11 and rounds[0].items() <= rounds[1].items()


def test_play_without_a_clock_stamps_with_now(graph, bag):
    from sensor_msgs.msg import Image
    seen = []
    graph.node.create_subscription(Image, "/image", seen.append, DEEP)
    player = graph.start_aceg("play", bag, *("--rate", 20, "--every", 3))
    assert graph.spin_until(lambda: player.poll() is not None, 60)
    assert player.returncode == 0 and len(seen) == 4
    ages = [graph.node.get_clock().now().nanoseconds * 1e-9 - m.header.stamp.sec for m in seen]
    assert max(ages) < 60 and graph.node.count_publishers("/clock") == 0


@pytest.mark.parametrize("arguments", [["play", "/missing"], ["record", "-o", "."]])
def test_mistakes_are_one_sentence(graph, arguments):
    process = graph.start_aceg(*arguments)
    assert process.wait(30) == 2
    assert output(process).count("Error: ") == 1 and "Traceback" not in output(process)
