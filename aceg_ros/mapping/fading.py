# SPDX-License-Identifier: Apache-2.0
"""Finds landmarks that a recording should have seen and did not: things that were moved or taken away.

An image confirms only a share of what it should see, and by night fewer than by day. A landmark counts as missed if the
images that should have seen it would hardly all have missed it, at the share that each of them confirmed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aceg_ros.camera import MIN_DEPTH, project_map_points
from aceg_ros.mapping.observation_table import ObservationTable
from aceg_ros.maps.keyframe_database import camera_of

MAX_ANGLE_RAD = np.radians(20.0)    # between the rays of two observations that see the same
MAX_DISTANCE_RATIO = 1.5            # of their distances from the landmark
BORDER_PX = 16.0                    # landmarks nearer to the border of the image may be outside
MIN_EXPECTED = 30                   # landmarks of an image that tells anything
MISSED_BY_CHANCE = 0.05             # a landmark that is there is missed by all images at most this often


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What a new recording saw: for each of its V images the pose (4, 4), intrinsics (4,) and size (2,); the keyframes
    that it was matched with, and the landmarks of these that it saw."""

    poses: np.ndarray
    intrinsics: np.ndarray
    sizes: np.ndarray
    matched: list[np.ndarray]
    seen: list[np.ndarray]


def count_missed(known: ObservationTable, visit: Visit) -> np.ndarray:
    """Return how often each landmark (L,) was missed, after a visit: 0 if it was seen, one more if it was missed."""
    by_chance = np.zeros(len(known.points))             # logarithm of the probability that it is there and was missed
    confirmed = np.zeros(len(known.points), bool)
    starts = known.starts
    rays = known.points[known.landmarks] - known.poses[known.keyframes, :3, 3]
    distance = np.linalg.norm(rays, axis=1)
    for image, (matched, seen) in enumerate(zip(visit.matched, visit.seen, strict=True)):
        confirmed[seen] = True
        rows = np.concatenate([np.arange(starts[each], starts[each + 1]) for each in matched]) if len(matched) else \
            np.zeros(0, np.int64)
        landmarks = known.landmarks[rows]
        expected = np.unique(landmarks[_should_see(known.points[landmarks], rays[rows], distance[rows],
                                                   visit=visit, image=image)])
        share = float(np.isin(expected, seen).mean()) if len(expected) >= MIN_EXPECTED else 0.0
        by_chance[expected] += np.log1p(-min(share, 0.99))
    missed = ~confirmed & (by_chance < np.log(MISSED_BY_CHANCE))
    return np.where(confirmed, 0, known.missed + missed)


def _should_see(points: np.ndarray, rays: np.ndarray, distance: np.ndarray, *, visit: Visit, image: int) -> np.ndarray:
    """Return which points (M, 3) an image should see as the known observations did, with these rays (M, 3)."""
    pose = visit.poses[image]
    pixels, depth = project_map_points(points, camera_of(visit.intrinsics[image], visit.sizes[image]), pose)
    inside = (depth > MIN_DEPTH) & (pixels > BORDER_PX).all(1) & (pixels < visit.sizes[image] - BORDER_PX).all(1)
    own = points - pose[:3, 3]
    length = np.linalg.norm(own, axis=1)
    cosine = (own * rays).sum(1) / np.maximum(length * distance, 1e-12)
    ratio = length / np.maximum(distance, 1e-12)
    near = (ratio < MAX_DISTANCE_RATIO) & (ratio > 1.0 / MAX_DISTANCE_RATIO)
    return inside & near & (cosine > np.cos(MAX_ANGLE_RAD))
