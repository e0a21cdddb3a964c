# SPDX-License-Identifier: Apache-2.0
"""Prior pose of the robot before the first fix: from RViz's 2D Pose Estimate, or the last pose saved on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from geometry_msgs.msg import PoseWithCovarianceStamped

from aceg_ros.errors import UserError
from aceg_ros.geometry import is_pose
from aceg_ros.ros.common.messages import pose_from_message
from aceg_ros.ros.common.transform_lookup import normalize_frame_id
from aceg_ros.utils.atomic_file import write_json

# Standard deviations for entries that are zero in an initial pose: RViz only sets those of x, y and heading.
_UNKNOWN_STD = np.array([0.3, 0.3, 1.0, 0.3, 0.3, 0.3])
# Added to the covariance of the last pose: the robot may have been moved a little while it was off.
_WHILE_OFF_COVARIANCE = np.diag(np.repeat([0.5**2, 0.3**2], 3))


@dataclass(frozen=True, kw_only=True)
class Prior:
    """A likely pose (4, 4) in the map and its covariance (6, 6): of the camera, or of the base if is_base."""

    pose: np.ndarray
    covariance: np.ndarray
    is_base: bool = False


def prior_from_message(message: PoseWithCovarianceStamped, map_frame: str) -> Prior:
    """Make a prior of a message on the topic initialpose.

    Raises:
        UserError: if it is in another frame, or its pose or covariance is invalid.
    """
    if normalize_frame_id(message.header.frame_id) != normalize_frame_id(map_frame):
        raise UserError(f"it is in '{message.header.frame_id}', and must be in '{map_frame}'.")
    pose = pose_from_message(message.pose.pose)
    covariance = np.reshape(message.pose.covariance, (6, 6)).astype(float)
    if not np.isfinite(covariance).all() or (np.diag(covariance) < 0).any():
        raise UserError("its covariance is not finite, or has a negative diagonal.")
    unknown = np.diag(covariance) == 0
    covariance[unknown, unknown] = _UNKNOWN_STD[unknown] ** 2
    return Prior(pose=pose, covariance=covariance, is_base=True)


def save_last_pose(path: Path, map_path: str, pose: np.ndarray, covariance: np.ndarray) -> None:
    """Save the last pose (4, 4) of the camera in this map, and its covariance (6, 6); replaces an existing file.

    Raises:
        UserError: if the file cannot be written.
    """
    write_json({"map": map_path, "map_from_camera": pose.tolist(), "covariance": covariance.tolist()}, path)


def load_last_pose(path: Path, map_path: str) -> Prior | None:
    """Return the last pose in this map, with an increased covariance; None if there is none."""
    try:
        content = json.loads(path.read_text())
        pose, covariance = np.array(content["map_from_camera"], float), np.array(content["covariance"], float)
        fits = content["map"] == map_path and is_pose(pose) and covariance.shape == (6, 6)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not fits or not np.isfinite(covariance).all():
        return None
    return Prior(pose=pose, covariance=covariance + _WHILE_OFF_COVARIANCE)
