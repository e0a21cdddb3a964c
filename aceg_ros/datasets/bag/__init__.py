"""ROS bags as scenes."""

from aceg_ros.datasets.bag.options import BagOptions
from aceg_ros.datasets.bag.reader import EXPECTED_FILES, NAME, can_read, list_entries

__all__ = ["EXPECTED_FILES", "NAME", "BagOptions", "can_read", "list_entries"]
