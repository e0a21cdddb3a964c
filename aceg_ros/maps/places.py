# SPDX-License-Identifier: Apache-2.0
"""Which keyframes and poses of a map are at the same place."""

from __future__ import annotations

import numpy as np

from aceg_ros.geometry import pose_error
from aceg_ros.maps.keyframe_database import KeyframeDatabase
from aceg_ros.maps.retrieval import Shortlist

SAME_PLACE_DEPTHS, SAME_DIRECTION_DEG = 0.3, 10.0       # poses farther from each other compete
SAME_POSE_DEPTHS, SAME_POSE_DEG = 0.02, 1.0             # what is found from one of two nearer poses is found from both
GROUP_DEPTHS, GROUP_DEG = 0.7, 40.0                     # keyframes nearer to each other show the same place


def group_by_place(database: KeyframeDatabase, keyframes: np.ndarray) -> list[np.ndarray]:
    """Group keyframes (K,), the most similar first, by place; the group of the most similar keyframe comes first."""
    groups, left = [], keyframes
    while len(left):
        same = show_place_of(database, left, left[0])
        groups.append(left[same])
        left = left[~same]
    return groups


def show_place_of(database: KeyframeDatabase, keyframes: np.ndarray, other: int) -> np.ndarray:
    """Return a mask (K,) of the keyframes that are near another one, in depths, and look in its direction."""
    poses = database.pose_array
    distance = np.linalg.norm(poses[keyframes, :3, 3] - poses[other, :3, 3], axis=1)
    cosine = poses[keyframes, :3, 2] @ poses[other, :3, 2]
    return (keyframes == other) | ((distance < GROUP_DEPTHS * database.depths_m[other])
                                   & (cosine > np.cos(np.radians(GROUP_DEG))))


def twin_groups(groups: list[np.ndarray], shortlist: Shortlist, min_similarity: float) -> list[np.ndarray]:
    """Return the groups of keyframes that show another place than the first one, but are nearly as similar."""
    similarity = dict(zip(shortlist.keyframes.tolist(), shortlist.similarity.tolist(), strict=True))
    return [group for group in groups[1:]
            if max(similarity[keyframe] for keyframe in group.tolist()) > min_similarity]


def is_elsewhere(database: KeyframeDatabase, pose: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two poses (4, 4) are at different places, measured in depths of the map."""
    return not _are_near(database, pose, other, (SAME_PLACE_DEPTHS, SAME_DIRECTION_DEG))


def is_same_pose(database: KeyframeDatabase, pose: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two poses (4, 4) are so near to each other that what is found from one is found from the other."""
    return _are_near(database, pose, other, (SAME_POSE_DEPTHS, SAME_POSE_DEG))


def _are_near(database: KeyframeDatabase, pose: np.ndarray, other: np.ndarray, limits: tuple[float, float]) -> bool:
    """limits: distance in median depths of the map, and angle in degrees."""
    distance, angle_deg = pose_error(pose, other)
    return distance <= limits[0] * float(np.median(database.depths_m)) and angle_deg <= limits[1]
