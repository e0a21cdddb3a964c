# SPDX-License-Identifier: Apache-2.0
"""tf2_ros as the nodes use it, against numbers worked out by hand. Runs on the real package as well."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("tf2_ros", reason="needs ROS 2")

import tf2_ros
from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.time import Time

HALF = np.sqrt(0.5)
TURN_Z_90 = (0.0, 0.0, HALF, HALF)
NO_TURN = (0.0, 0.0, 0.0, 1.0)


def transform(parent: str, child: str, seconds: float, translation=(0.0, 0.0, 0.0),
              quaternion=NO_TURN) -> TransformStamped:
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    message.header.stamp = at(seconds).to_msg()
    t, q = message.transform.translation, message.transform.rotation
    t.x, t.y, t.z = map(float, translation)
    q.x, q.y, q.z, q.w = map(float, quaternion)
    return message


def at(seconds: float) -> Time:
    return Time(nanoseconds=round(seconds * 1e9))


def position(message: TransformStamped) -> list[float]:
    t = message.transform.translation
    return [t.x, t.y, t.z]


def quaternion(message: TransformStamped) -> np.ndarray:
    q = message.transform.rotation
    values = np.array([q.x, q.y, q.z, q.w])
    return values if values[3] >= 0 else -values


def moving_buffer() -> tf2_ros.Buffer:
    """map -> base moves 2 m along x and turns 90 degrees from 100 s to 101 s; base -> camera is fixed 1 m ahead."""
    buffer = tf2_ros.Buffer()
    buffer.set_transform(transform("map", "base", 100.0), "test")
    buffer.set_transform(transform("map", "base", 101.0, (2, 0, 0), quaternion=TURN_Z_90), "test")
    buffer.set_transform_static(transform("base", "camera", 0.0, (1, 0, 0)), "test")
    return buffer


def test_chain_of_moving_and_static_transforms():
    buffer = moving_buffer()
    assert position(buffer.lookup_transform("map", "camera", at(100.0))) == pytest.approx([1, 0, 0])
    there = buffer.lookup_transform("map", "camera", at(101.0))
    assert position(there) == pytest.approx([2, 1, 0])
    assert quaternion(there) == pytest.approx(TURN_Z_90)
    assert (there.header.frame_id, there.child_frame_id) == ("map", "camera")
    back = buffer.lookup_transform("camera", "map", at(101.0))
    assert position(back) == pytest.approx([-1, 2, 0])


def test_interpolation_is_linear_and_spherical():
    half = moving_buffer().lookup_transform("map", "base", at(100.5))
    assert position(half) == pytest.approx([1, 0, 0])
    assert quaternion(half) == pytest.approx([0, 0, np.sin(np.pi / 8), np.cos(np.pi / 8)])
    assert (half.header.stamp.sec, half.header.stamp.nanosec) == (100, 500_000_000)


def test_time_zero_is_the_latest_common_time():
    buffer = moving_buffer()
    latest = buffer.lookup_transform("map", "camera", Time())
    assert latest.header.stamp.sec == 101
    assert position(latest) == pytest.approx([2, 1, 0])
    buffer.set_transform(transform("world", "map", 100.25), "test")
    buffer.set_transform(transform("world", "map", 100.75, (0, 0, 3)), "test")
    latest = buffer.lookup_transform("world", "base", Time())
    assert (latest.header.stamp.sec, latest.header.stamp.nanosec) == (100, 750_000_000)
    assert position(latest) == pytest.approx([1.5, 0, 3])


def test_siblings_meet_at_the_common_ancestor():
    buffer = moving_buffer()
    buffer.set_transform_static(transform("base", "lidar", 0.0, (0, 0, 1), quaternion=TURN_Z_90), "test")
    between = buffer.lookup_transform("lidar", "camera", at(5000.0))  # moving parents are not asked
    assert position(between) == pytest.approx([0, -1, -1])


def test_static_chain_is_good_for_any_time():
    buffer = tf2_ros.Buffer()
    buffer.set_transform_static(transform("a", "b", 7.0, (1, 2, 3)), "test")
    assert position(buffer.lookup_transform("a", "b", at(1e6))) == [1, 2, 3]
    assert position(buffer.lookup_transform("a", "b", Time())) == [1, 2, 3]


def test_no_extrapolation():
    buffer = moving_buffer()
    for seconds in (99.999, 101.001):
        with pytest.raises(tf2_ros.ExtrapolationException):
            buffer.lookup_transform("map", "camera", at(seconds))
    assert not buffer.can_transform("map", "camera", at(99.0))
    assert buffer.can_transform("map", "camera", at(100.1))


def test_unknown_and_unconnected_frames():
    buffer = moving_buffer()
    buffer.set_transform_static(transform("island", "palm", 0.0), "test")
    with pytest.raises(tf2_ros.LookupException):
        buffer.lookup_transform("map", "missing", Time())
    with pytest.raises(tf2_ros.ConnectivityException):
        buffer.lookup_transform("map", "palm", Time())
    assert issubclass(tf2_ros.ConnectivityException, tf2_ros.TransformException)
    possible, reason = buffer.can_transform("map", "palm", Time(), return_debug_tuple=True)
    assert not possible and reason


def test_a_frame_with_two_parents_jumps_between_them():
    """What tf2 does when two nodes give a frame a parent: which one it has depends on who spoke last."""
    buffer = tf2_ros.Buffer()
    buffer.set_transform(transform("map", "camera", 10.0), "one")
    buffer.set_transform(transform("base", "camera", 10.5, (1, 0, 0)), "other")
    buffer.set_transform(transform("map", "camera", 11.0), "one")
    assert buffer.can_transform("map", "camera", at(10.0)) and buffer.can_transform("map", "camera", at(11.0))
    assert not buffer.can_transform("map", "camera", at(10.5)) and not buffer.can_transform("map", "camera", at(10.7))
    assert position(buffer.lookup_transform("base", "camera", at(10.7))) == [1, 0, 0]
    buffer.set_transform(transform("base", "camera", 11.0, (1, 0, 0)), "other")         # at the same moment
    assert not buffer.can_transform("map", "camera", at(11.0))


def test_the_newer_of_a_moving_and_a_static_transform_counts():
    buffer = tf2_ros.Buffer()
    buffer.set_transform_static(transform("base", "camera", 0.0, (1, 0, 0)), "robot")
    buffer.set_transform(transform("map", "camera", 10.0), "localizer")
    assert not buffer.can_transform("base", "camera", at(10.0)) and buffer.can_transform("map", "camera", at(10.0))
    buffer.set_transform_static(transform("base", "camera", 0.0, (1, 0, 0)), "robot")
    assert buffer.can_transform("base", "camera", at(10.0)) and not buffer.can_transform("map", "camera", at(10.0))


def test_bad_transforms_are_ignored():
    buffer = tf2_ros.Buffer()
    buffer.set_transform(transform("map", "base", 1.0, (float("nan"), 0, 0)), "test")
    buffer.set_transform(transform("map", "base", 1.0, quaternion=(0, 0, 0, 0)), "test")
    buffer.set_transform(transform("map", "map", 1.0), "test")
    assert not buffer.can_transform("map", "base", Time())


def test_old_data_is_forgotten_and_clear_keeps_static():
    buffer = tf2_ros.Buffer(cache_time=Duration(seconds=2))
    for second in range(10, 20):
        buffer.set_transform(transform("map", "base", second), "test")
    buffer.set_transform(transform("map", "base", 3.0), "test")  # far too late
    assert buffer.can_transform("map", "base", at(17.0))
    assert not buffer.can_transform("map", "base", at(16.5))
    buffer.set_transform_static(transform("base", "camera", 0.0), "test")
    buffer.clear()
    assert not buffer.can_transform("map", "base", Time())
    assert buffer.can_transform("base", "camera", Time())


def test_broadcasters_reach_a_listener_that_comes_late(node):
    static = tf2_ros.StaticTransformBroadcaster(node)
    static.sendTransform(transform("base", "camera", 0.0, (1, 0, 0)))
    static.sendTransform([transform("base", "lidar", 0.0, (0, 1, 0))])
    buffer = tf2_ros.Buffer(node=node)
    listener = tf2_ros.TransformListener(buffer, node)
    moving = tf2_ros.TransformBroadcaster(node)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    deadline = time.monotonic() + 30
    while not (buffer.can_transform("map", "camera", Time()) and buffer.can_transform("map", "lidar", Time())):
        assert time.monotonic() < deadline, "transforms did not arrive"
        moving.sendTransform(transform("map", "base", 5.0, (0, 0, 2)))
        executor.spin_once(timeout_sec=0.05)
    executor.shutdown()
    listener.unregister()
    assert position(buffer.lookup_transform("map", "camera", at(5.0))) == [1, 0, 2]
    assert position(buffer.lookup_transform("map", "lidar", at(5.0))) == [0, 1, 2]


def test_lookup_waits_for_what_is_on_its_way(node):
    buffer = tf2_ros.Buffer(node=node)
    listener = tf2_ros.TransformListener(buffer, node, spin_thread=True)
    tf2_ros.StaticTransformBroadcaster(node).sendTransform(transform("map", "base", 0.0, (4, 5, 6)))
    found = buffer.lookup_transform("map", "base", Time(), timeout=Duration(seconds=30))
    assert position(found) == [4, 5, 6]
    with pytest.raises(tf2_ros.LookupException):
        buffer.lookup_transform("map", "never", Time(), timeout=Duration(nanoseconds=50_000_000))
    listener.unregister()
