"""ROS bags as scenes."""

from aceg_ros.datasets.bag.options import BagOptions
from aceg_ros.datasets.bag.reader import EXPECTED_FILES, NAME, list_entries
from aceg_ros.datasets.bag.recording import can_read

__all__ = ["EXPECTED_FILES", "NAME", "BagOptions", "can_read", "list_entries"]
