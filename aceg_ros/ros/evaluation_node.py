# SPDX-License-Identifier: Apache-2.0
"""Executable: `python -m aceg_ros.ros.evaluation_node`, the same as `ros2 run aceg_ros evaluation_node`."""

import sys

from aceg_ros.ros.start import start


def main() -> int:
    return start("aceg_ros.ros.evaluation.node")


if __name__ == "__main__":
    sys.exit(main())
