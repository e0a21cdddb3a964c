# SPDX-License-Identifier: Apache-2.0
"""Merges two keyframe databases in one map frame: landmarks that both have become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.covisibility import CovisibilityFeatures, select_covisible_images
from aceg_ros.mapping.matching import ExtractedFeatures
from aceg_ros.mapping.observation_table import ObservationTable, join
from aceg_ros.mapping.pair_matching import estimate_tolerance_px, match_pairs
from aceg_ros.mapping.select_keyframes import KeyframeChoice, select_keyframes
from aceg_ros.mapping.tracks import best_of_image, reprojection_errors

COVISIBLE = 6                       # keyframes of the first that each of the second is matched with
MIN_VOTES = 2                       # matches between the observations of two landmarks that are one
MIN_AGREEING = 0.5                  # of the observations of the one, with the point of the other


def merge_databases(first: ObservationTable, second: ObservationTable, *, count: int, stride: int, seed: int,
                    budget: MappingBudget) -> ObservationTable:
    """Merge two databases in the same map frame. count: largest number of observations. stride: of the encoder."""
    second = replace(second, visits=second.visits + first.visits.max() + 1)
    device = torch.device("cpu")
    own, others = first.features(device), second.features(device)
    pairs = _covisible_pairs(own, others, stride)
    joined = join([first, second])
    if len(pairs):
        images = [*own, *others]
        tolerance_px = estimate_tolerance_px(images, pairs, seed)
        matches = match_pairs(images, pairs, tolerance_px, seed=seed, budget=budget.phase("matching keyframes"))
        joined = _with_common_landmarks(joined, len(first.points), matches, tolerance_px)
    known = np.ones(len(joined.poses), bool)
    return joined.subset(select_keyframes(joined, KeyframeChoice(count=count, known=known)))


def _covisible_pairs(first: Sequence[ExtractedFeatures], second: Sequence[ExtractedFeatures], stride: int
                     ) -> np.ndarray:
    """Return pairs (P, 2) of keyframes of both, numbered one after the other."""
    stacked = CovisibilityFeatures.stack(first)
    pairs = [(other, len(first) + number) for number, image in enumerate(second)
             for other in select_covisible_images(image, stacked, COVISIBLE, stride)]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _with_common_landmarks(joined: ObservationTable, first_points: int, matches: np.ndarray, tolerance_px: float
                           ) -> ObservationTable:
    """Let observations of landmarks of the second that are also of the first observe these."""
    a, b = joined.landmarks[matches[:, 0]], joined.landmarks[matches[:, 1]]
    pairs, votes = np.unique(np.column_stack([b, a]), axis=0, return_counts=True)
    pairs, votes = pairs[votes >= MIN_VOTES], votes[votes >= MIN_VOTES]
    order = np.lexsort((-votes, pairs[:, 0]))
    pairs = pairs[order]
    pairs = pairs[np.r_[True, np.diff(pairs[:, 0]) > 0]] if len(pairs) else pairs
    same = np.full(len(joined.points), -1)
    same[pairs[:, 0]] = pairs[:, 1]
    rows = np.flatnonzero(same[joined.landmarks] >= 0)
    old, new = joined.landmarks[rows], same[joined.landmarks[rows]]
    errors = reprojection_errors(joined.observations(), rows, joined.points[new])
    agrees = errors < tolerance_px
    share = np.bincount(old, agrees, len(joined.points)) / np.maximum(np.bincount(old, minlength=len(same)), 1)
    one = share[old] >= MIN_AGREEING
    landmarks, kept = joined.landmarks.copy(), np.ones(len(joined), bool)
    landmarks[rows[one]] = new[one]
    kept[rows[one & ~agrees]] = False
    # A keyframe that had two of these landmarks now has one, at the keypoint that agrees better.
    error_of = np.zeros(len(joined))
    error_of[rows] = errors
    common = np.flatnonzero(kept & (landmarks < first_points))
    kept[common[~best_of_image(landmarks[common], joined.keyframes[common], error_of[common])]] = False
    return replace(joined, landmarks=landmarks).subset(kept)
