# SPDX-License-Identifier: Apache-2.0
"""Which matches tell a place from others that look alike."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from aceg_ros.maps.keyframe_database import KeyframeDatabase
from aceg_ros.maps.retrieval import WordRetrieval
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
    similarity = descriptors[torch.from_numpy(chosen).to(descriptors.device)].to(stored.dtype) @ stored.T
    depth_m = float(np.median(database.depths_m))
    # In depths of the map, about its centre: then squares are exact enough in 32 bits.
    centre = landmarks.mean(0)
    own_points, others = (torch.from_numpy((part - centre) / depth_m).float().to(similarity.device)
                          for part in (points[chosen], landmarks))
    squared = torch.addmm(others.square().sum(1)[None], own_points, others.T, alpha=-2.0)
    squared += own_points.square().sum(1, keepdim=True)
    own = values_where(squared <= SAME_DEPTHS**2, similarity)
    elsewhere = values_where(squared >= ELSEWHERE_DEPTHS**2, similarity)
    return len(points) * float((own.float() - elsewhere.float() > MIN_LEAD).float().mean())


def _landmarks_alike(descriptors: Tensor, database: KeyframeDatabase, retrieval: WordRetrieval
                     ) -> tuple[np.ndarray, Tensor]:
    """Return points (L, 3) and descriptors (L, C) of the landmarks to compare with: all, or in a large database those
    in the keyframes that look the most like the matches."""
    if database.index is None:
        return database.points_array, database.mean_descriptors(descriptors.device)
    rows = database.observations_of(retrieval.find(descriptors, ALIKE).keyframes)
    landmarks = np.unique(database.landmark_array[rows])
    return database.points_array[landmarks], database.descriptors_of_landmarks(landmarks, rows, descriptors.device)
