# SPDX-License-Identifier: Apache-2.0
"""The Fast DDS profile: camera images between processes all arrive, which without it they do not."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

COUNT = 60


def test_no_image_is_lost_between_processes(node):
    numbers: list[int] = []
    node.create_subscription(
        Image, "image", lambda image: numbers.append(int.from_bytes(bytes(image.data[:4]), "little")),
        QoSProfile(depth=COUNT, reliability=ReliabilityPolicy.BEST_EFFORT))  # what is lost, the transport lost
    script = Path(__file__).parents[1] / "support" / "image_source.py"
    source = subprocess.Popen([sys.executable, str(script), str(COUNT), "20"])
    try:
        deadline = time.monotonic() + 60
        while COUNT - 1 not in numbers and time.monotonic() < deadline and source.poll() is None:
            rclpy.spin_once(node, timeout_sec=0.1)
    finally:
        source.terminate()  # killed, it would leave its shared memory behind
        source.wait()
    assert numbers == list(range(COUNT))
