# SPDX-License-Identifier: Apache-2.0
"""Executable: `python -m aceg_ros.ros.scene_player`, the same as `ros2 run aceg_ros scene_player`."""

import sys

from aceg_ros.ros.start import start


def main() -> int:
    return start("aceg_ros.ros.players.scene_player")


if __name__ == "__main__":
    sys.exit(main())
