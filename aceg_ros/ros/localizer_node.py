# SPDX-License-Identifier: Apache-2.0
"""Executable: `python -m aceg_ros.ros.localizer_node`, the same as `ros2 run aceg_ros localizer_node`."""

import sys

from aceg_ros.ros.start import start


def main() -> int:
    return start("aceg_ros.ros.localizer.node")


if __name__ == "__main__":
    sys.exit(main())
