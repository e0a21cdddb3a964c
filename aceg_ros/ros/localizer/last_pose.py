"""The last pose on disk, so that a node that starts again knows where to expect the robot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from aceg_ros.geometry import is_pose
from aceg_ros.utils.atomic_file import write_json

# A robot that was off may have been pushed a little.
WIDENED = np.diag(np.repeat([0.5**2, 0.3**2], 3))


def save_last_pose(path: Path, map_path: str, pose: np.ndarray, covariance: np.ndarray) -> None:
    """Replaces the file by a complete one. Raises UserError where it cannot be written."""
    write_json({"map": map_path, "map_from_camera": pose.tolist(), "covariance": covariance.tolist()}, path)


def load_last_pose(path: Path, map_path: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Pose (4, 4) of the camera and its covariance, widened; None where there is none for this map."""
    try:
        content = json.loads(path.read_text())
        pose, covariance = np.array(content["map_from_camera"], float), np.array(content["covariance"], float)
        fits = content["map"] == map_path and is_pose(pose) and covariance.shape == (6, 6)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (pose, covariance + WIDENED) if fits and np.isfinite(covariance).all() else None
