# SPDX-License-Identifier: Apache-2.0
"""Executable: `python -m aceg_ros.ros.sim_camera`, the same as `ros2 run aceg_ros sim_camera`."""

import sys

from aceg_ros.ros.start import start


def main() -> int:
    return start("aceg_ros.ros.players.sim_camera")


if __name__ == "__main__":
    sys.exit(main())
