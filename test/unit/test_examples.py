# SPDX-License-Identifier: Apache-2.0
"""The examples that are scripts, as somebody starts them, and the script that draws the README's image."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from aceg_ros.datasets import load_image
from aceg_ros.visualization.overlay import INLIER

TYPES = get_typestore(Stores.ROS2_KILTED)
ARRAY = "diagnostic_msgs/msg/DiagnosticArray"


def run_example(repository: Path, *arguments: str) -> str:
    script = repository / "examples" / arguments[0]
    result = subprocess.run([sys.executable, str(script), *arguments[1:]], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def status_of(name: str, status: str, message: str) -> object:
    """A status message as the node publishes it."""
    types = TYPES.types
    stamp = types["builtin_interfaces/msg/Time"](sec=1, nanosec=0)
    pair = types["diagnostic_msgs/msg/KeyValue"](key="status", value=status)
    entry = types["diagnostic_msgs/msg/DiagnosticStatus"](level=0, name=name, message=message, hardware_id="",
                                                          values=[pair])
    return types[ARRAY](header=types["std_msgs/msg/Header"](stamp=stamp, frame_id=""), status=[entry])


def test_node_status_counts_images_by_their_status(repository, tmp_path):
    told = [("localizer: image", "accepted", "fine"), ("localizer: node", "x", "Localizing."),
            ("localizer: image", "bad_image", "dark"), ("localizer: image", "bad_image", "darker")]
    with Writer(tmp_path / "run", version=Writer.VERSION_LATEST, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/localizer/status", ARRAY, typestore=TYPES)
        for stamp, content in enumerate(told, 1):
            writer.write(connection, stamp, TYPES.serialize_cdr(status_of(*content), ARRAY))
    lines = run_example(repository, "node_status.py", str(tmp_path / "run")).splitlines()
    assert lines == ["2 bad_image, the newest: darker", "1 accepted, the newest: fine"]


@pytest.mark.slow
def test_the_readmes_image_can_be_drawn_again(repository, tmp_path):
    """Small, and from fewer images."""
    script = runpy.run_path(str(repository / "scripts" / "draw_map_image.py"))
    script["main"](tmp_path / "drawn.jpg", images=30, scale=0.5)
    drawn = load_image(tmp_path / "drawn.jpg")
    assert drawn.shape == (240, 640, 3)
    inlier = (np.abs(drawn.astype(int) - INLIER).max(axis=2) < 60).mean(axis=0)        # share of each column
    assert inlier[:320].mean() > 0.005 and inlier[320:].mean() > 0.001
