"""ROS bags as scenes."""

from aceg_ros.datasets.bag.reader import LOOKS_FOR, NAME, BagOptions, list_entries, recognises

__all__ = ["LOOKS_FOR", "NAME", "BagOptions", "list_entries", "recognises"]
