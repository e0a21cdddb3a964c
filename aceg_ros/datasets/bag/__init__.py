# SPDX-License-Identifier: Apache-2.0
"""ROS bags as scenes. What reads them, and so rosbags, is loaded when a path is tried: localizing needs neither."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aceg_ros.datasets.bag.options import BagOptions

if TYPE_CHECKING:
    from aceg_ros.datasets.bag.reader import BagEntry

NAME = "ROS bag"
EXPECTED_FILES = ".mcap or .db3 files (also .zstd), with or without metadata.yaml, or a .bag file"

__all__ = ["EXPECTED_FILES", "NAME", "BagOptions", "can_read", "list_entries"]


def can_read(path: Path) -> bool:
    """Return whether path looks like a file of a bag, or a folder with such files."""
    from aceg_ros.datasets.bag import recording
    return recording.can_read(path)


def list_entries(path: Path, options: BagOptions | None = None) -> list[BagEntry]:
    """List the images, as `reader.list_entries` does. Raises UserError if they cannot be listed."""
    from aceg_ros.datasets.bag import reader
    return reader.list_entries(path, options)
