# SPDX-License-Identifier: Apache-2.0
"""Which matches tell a place from others that look alike."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from aceg_ros.maps.keyframe_database import KeyframeDatabase
from aceg_ros.maps.retrieval import WordRetrieval
from aceg_ros.utils.compiled import compiled
from aceg_ros.utils.int8_products import Int8Vectors
from aceg_ros.utils.maxima import values_where

SAME_DEPTHS, ELSEWHERE_DEPTHS = 0.05, 0.25      # distances of landmarks from a point, in median depths of the map
MIN_LEAD = 0.12                                 # in cosine similarity over all landmarks elsewhere
SAMPLE = 64                                     # matches that are compared with all landmarks; their share is taken
ALIKE = 40                                      # keyframes of a large map that matches are compared with


def count_distinctive(descriptors: Tensor, points: np.ndarray, database: KeyframeDatabase, retrieval: WordRetrieval
                      ) -> float:
    """Count the distinctive matches: far more similar to the landmarks at their point than to any elsewhere.

    What is at several places of a map (desks of one kind, panels) is nearly as similar to the landmarks of each; its
    matches agree with a wrong pose as exactly as with the right one. This is the ratio test (Lowe, IJCV 2004) with the
    whole map, for matches that agree with a pose already.

    Args:
        descriptors: (N, C) of keypoints, of unit length.
        points: (N, 3) landmarks that they were matched with.
        database: of the map.
        retrieval: in the database.
    """
    if len(points) == 0:
        return 0.0
    chosen = np.linspace(0, len(points) - 1, min(SAMPLE, len(points))).astype(int)
    landmarks, stored = _landmarks_alike(descriptors, database, retrieval)
    compare = _greatest_int8 if stored.dtype == torch.int8 else _greatest
    own, elsewhere = compare(descriptors[torch.from_numpy(chosen).to(descriptors.device)], stored,
                             *_in_depths(database, points[chosen], landmarks))
    return len(points) * float((own - elsewhere > MIN_LEAD).mean())


def _in_depths(database: KeyframeDatabase, *parts: np.ndarray) -> list[np.ndarray]:
    """Return points (N, 3) as float32, in depths of the map and about the centre of the last of them: then squares are
    exact enough."""
    centre, depth_m = parts[-1].mean(0), float(np.median(database.depths_m))
    return [((part - centre) / depth_m).astype(np.float32) for part in parts]


def _greatest(descriptors: Tensor, stored: Tensor, own_points: np.ndarray, others: np.ndarray
              ) -> tuple[np.ndarray, np.ndarray]:
    """Return the greatest similarity (n,) of descriptors (n, C) to the landmarks (L, C) at their points (n, 3), and to
    those elsewhere, which are at others (L, 3); 0 where there is none."""
    similarity = descriptors.to(stored.dtype) @ stored.T
    here, there = (torch.from_numpy(part).to(similarity.device) for part in (own_points, others))
    squared = torch.addmm(there.square().sum(1)[None], here, there.T, alpha=-2.0)
    squared += here.square().sum(1, keepdim=True)
    return (values_where(squared <= SAME_DEPTHS**2, similarity).float().cpu().numpy(),
            values_where(squared >= ELSEWHERE_DEPTHS**2, similarity).float().cpu().numpy())


def _greatest_int8(descriptors: Tensor, stored: Tensor, own_points: np.ndarray, others: np.ndarray
                   ) -> tuple[np.ndarray, np.ndarray]:
    """Return the same for landmarks as int8."""
    vectors = Int8Vectors.of(descriptors)
    own, elsewhere = (np.zeros(vectors.count, np.float32) for _ in range(2))
    axes = np.ascontiguousarray(own_points.T)
    for part in vectors.products(stored):
        _take_greatest_by_place(part.values, part.units, others[part.start:], axes, own=own, elsewhere=elsewhere)
    return own, elsewhere


@compiled
def _take_greatest_by_place(values: np.ndarray, units: np.ndarray, others: np.ndarray, axes: np.ndarray,
                            own: np.ndarray, elsewhere: np.ndarray) -> None:
    """Update greatest similarities by the products (m, n or more) with m landmarks, which are multiplied by units (m,)
    to be cosines. axes: (3, n) coordinates of the points."""
    near, far = np.float32(SAME_DEPTHS**2), np.float32(ELSEWHERE_DEPTHS**2)
    for number in range(len(values)):
        x, y, z = others[number]
        for match in range(len(own)):
            squared = (axes[0, match] - x)**2 + (axes[1, match] - y)**2 + (axes[2, match] - z)**2
            similarity = np.float32(values[number, match]) * units[number]
            own[match] = similarity if squared <= near and similarity > own[match] else own[match]
            elsewhere[match] = similarity if squared >= far and similarity > elsewhere[match] else elsewhere[match]


def _landmarks_alike(descriptors: Tensor, database: KeyframeDatabase, retrieval: WordRetrieval
                     ) -> tuple[np.ndarray, Tensor]:
    """Return points (L, 3) and descriptors (L, C) of the landmarks to compare with: all, or in a large database those
    in the keyframes that look the most like the matches."""
    if database.index is None:
        return database.points_array, database.mean_descriptors(descriptors.device)
    rows = database.observations_of(retrieval.find(descriptors, ALIKE).keyframes)
    landmarks = np.unique(database.landmark_array[rows])
    return database.points_array[landmarks], database.descriptors_of_landmarks(landmarks, rows, descriptors.device)
