# SPDX-License-Identifier: Apache-2.0
"""Keyframe poses from localization itself, and the command that extends a map on the robot."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from builtin_interfaces.msg import Time

from aceg_ros.errors import UserError
from aceg_ros.ros.mapping.pose_source import LocalizedPoses
from aceg_ros.ros.mapping.training_process import TrainingConfig, command_of


def test_the_pose_of_an_image_is_that_of_its_own_result():
    poses = LocalizedPoses()
    poses.note({(1_000_000_001, "camera"): np.eye(4)})
    poses.note({(2_000_000_000, "camera"): None})
    assert np.array_equal(poses.lookup(Time(sec=1, nanosec=1), "camera", 0.0), np.eye(4))
    for stamp in (Time(sec=2), Time(sec=1), Time(sec=3)):
        with pytest.raises(UserError, match="was not localized"):
            poses.lookup(stamp, "camera", 0.0)


def test_a_result_that_is_still_computed_is_waited_for_and_one_that_was_left_out_is_not():
    poses = LocalizedPoses()
    threading.Timer(0.2, lambda: poses.note({(5_000_000_000, "camera"): 2.0 * np.eye(4)})).start()
    assert poses.lookup(Time(sec=5), "camera", 5.0)[0, 0] == 2.0
    started = time.monotonic()
    with pytest.raises(UserError):
        poses.lookup(Time(sec=4), "camera", 5.0)
    assert time.monotonic() - started < 1.0, "a later image has its result already"


def test_cameras_of_a_rig_may_have_the_same_stamp():
    poses = LocalizedPoses()
    poses.note({(10**9, "front"): np.eye(4), (10**9, "rear"): 2.0 * np.eye(4), (10**9 + 1, "left"): None})
    assert poses.lookup(Time(sec=1), "front", 0.0)[0, 0] == 1.0 and poses.lookup(Time(sec=1), "rear", 0.0)[0, 0] == 2.0
    with pytest.raises(UserError, match="was not localized"):
        poses.lookup(Time(sec=1, nanosec=1), "left", 0.0)


def test_only_recent_results_are_kept():
    poses = LocalizedPoses()
    for second in range(1, 500):
        poses.note({(second * 1_000_000_000, "camera"): np.eye(4)})
    with pytest.raises(UserError):
        poses.lookup(Time(sec=1), "camera", 0.0)
    assert poses.lookup(Time(sec=499), "camera", 0.0)[0, 0] == 1.0


def test_thecommand_of_extends_if_there_is_a_map_to_extend():
    recording, output = Path("/r"), Path("/new.map")
    assert command_of(TrainingConfig(recording=recording, output=output, method="ace"))[2:6] == [
        "aceg_ros.cli", "map", "/r", "-o"]
    extend = command_of(TrainingConfig(recording=recording, output=output, method="ace", extended=Path("/old.map")))
    assert extend[2:7] == ["aceg_ros.cli", "extend", "/old.map", "/r", "-o"] and "--method" not in extend
