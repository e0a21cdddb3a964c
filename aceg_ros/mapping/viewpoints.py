# SPDX-License-Identifier: Apache-2.0
"""How many images a place needs, and which: those whose viewpoints differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aceg_ros.mapping.augmentation import PreparedFrame
from aceg_ros.mapping.image_pairs import PairFinder
from aceg_ros.mapping.pose_scale import depths_by_poses

# Two viewpoints differ by 1 if they are shifted by this share of the depth of the scene, or turned by this angle.
SHIFT_PER_DEPTH, TURN_RAD = 0.15, np.radians(15.0)
IMAGES_PER_VIEWPOINT = 2


def median_depth(frames: Sequence[PreparedFrame], poses: np.ndarray) -> float | None:
    """Triangulate the median depth of a recording from a few pairs of its images, in the unit of the poses (F, 4, 4).
    None if no pair has parallax."""
    depths = depths_by_poses(PairFinder(frames).find(), poses)
    return float(np.median(list(depths.values()))) if depths else None


def choose_viewpoints(poses: np.ndarray, depth: float, *, least: int, most: int, seed: int) -> np.ndarray:
    """Choose images by what their viewpoints add.

    Each image is the one farthest from all before it (Gonzalez, Clustering to minimize the maximum intercluster
    distance, 1985), until none differs from its nearest; that tells how many viewpoints there are. The rest is drawn at
    random.

    Args:
        poses: map_from_camera (F, 4, 4).
        depth: of the scene, in the unit of the poses.
        least: number of images of a small place.
        most: largest number; between them, it is IMAGES_PER_VIEWPOINT times the number of viewpoints.
        seed: of the random ones.

    Returns:
        (N,) indices, those that add most first.
    """
    unseen = np.full(len(poses), np.inf)
    chosen: list[int] = []
    while len(chosen) < min(most, len(poses)):
        farthest = int(unseen.argmax())
        if unseen[farthest] < 1.0:
            break
        chosen.append(farthest)
        unseen = np.minimum(unseen, _differences(poses, poses[farthest], depth))
    count = int(np.clip(IMAGES_PER_VIEWPOINT * len(chosen), least, most))
    others = np.setdiff1d(np.arange(len(poses)), chosen)
    return np.concatenate([chosen, np.random.default_rng(seed).permutation(others)]).astype(np.int64)[:count]


def _differences(poses: np.ndarray, pose: np.ndarray, depth: float) -> np.ndarray:
    """Return how much the viewpoints of poses (F, 4, 4) differ from that of a pose (4, 4): shift and turn add up."""
    shift = np.linalg.norm(poses[:, :3, 3] - pose[:3, 3], axis=1) / (SHIFT_PER_DEPTH * depth)
    cosine = (np.einsum("fij,ij->f", poses[:, :3, :3], pose[:3, :3]) - 1.0) / 2.0
    return shift + np.arccos(np.clip(cosine, -1.0, 1.0)) / TURN_RAD
