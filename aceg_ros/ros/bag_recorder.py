# SPDX-License-Identifier: Apache-2.0
"""Executable: `python -m aceg_ros.ros.bag_recorder`, the same as `ros2 run aceg_ros bag_recorder`."""

import sys

from aceg_ros.ros.start import start


def main() -> int:
    return start("aceg_ros.ros.recorders.bag_recorder")


if __name__ == "__main__":
    sys.exit(main())
