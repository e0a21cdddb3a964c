# SPDX-License-Identifier: Apache-2.0
"""Verbs that are ROS nodes."""

from __future__ import annotations

import os
import sys


def exec_ros_node(name: str, parameters: dict[str, object]) -> int:
    """Replace this process by a ROS node, the module of that name in `aceg_ros.ros`. Does not return."""
    from aceg_ros.demo.processes import node_command
    from aceg_ros.utils.ros_environment import ros_environment

    os.execve(sys.executable, [sys.executable, *node_command(f"aceg_ros.ros.{name}", parameters)],
              os.environ | ros_environment())
