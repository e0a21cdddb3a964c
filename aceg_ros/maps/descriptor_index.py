# SPDX-License-Identifier: Apache-2.0
"""Matches the keypoints of an image with the landmarks of a keyframe database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aceg_ros.camera import MIN_DEPTH, project_map_points
from aceg_ros.encoders.keypoints import Keypoints
from aceg_ros.maps.keyframe_database import KeyframeDatabase
from aceg_ros.utils.maxima import column_values, row_maxima

# Sizes of matrices are rounded up to multiples of these: the CPU's library of products generates code for each new size
# of bf16, which takes 0.5 ms, more than most of the products.
_ROWS, _COLUMNS, _OBSERVATIONS = 320, 128, 512


@dataclass(frozen=True, kw_only=True)
class LandmarkMatches:
    """M matches: keypoints (M,) of the image, landmarks (M,) of the database, and their cosine similarity (M,)."""

    keypoints: np.ndarray
    landmarks: np.ndarray
    similarity: np.ndarray

    def __len__(self) -> int:
        return len(self.keypoints)

    def subset(self, chosen: np.ndarray) -> LandmarkMatches:
        """Return the chosen matches, by indices or a mask."""
        return LandmarkMatches(keypoints=self.keypoints[chosen], landmarks=self.landmarks[chosen],
                               similarity=self.similarity[chosen])


class ObservationMatcher:
    """Matches one image with the observations of keyframes. What has been compared with the image is kept, so that
    keyframes that are in several groups cost once."""

    def __init__(self, query: Keypoints, database: KeyframeDatabase):
        self.query, self._database = query, database
        self._compared: dict[int, _Compared] = {}

    def match(self, keyframes: Sequence[int] | np.ndarray) -> LandmarkMatches:
        """Match with all observations of some keyframes: mutual nearest neighbours by their descriptors."""
        compared = self._compare([int(keyframe) for keyframe in keyframes])
        if not compared or len(self.query) == 0:
            return _matches(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
        best, which = torch.stack([one.best for one in compared]).max(0)
        number = torch.arange(len(best), device=best.device)
        returned = torch.stack([one.returned for one in compared])[which, number]
        # Rounded similarities may tie, which costs nothing: a tie is nearly as similar.
        keypoints = (best == returned).nonzero()[:, 0]
        rows = torch.stack([one.row for one in compared])[which, number][keypoints]
        stored = self._database.unit_descriptors(best.device)[rows].float()
        exact = (self.query.descriptors[keypoints] * stored).sum(1).cpu().numpy()
        landmarks = self._database.landmark_array[rows.cpu().numpy()]
        return _one_per_landmark(_matches(keypoints.cpu().numpy(), landmarks, exact))

    def _compare(self, keyframes: list[int]) -> list[_Compared]:
        """Return the comparison with each keyframe that has observations."""
        starts = self._database.starts
        keyframes = [keyframe for keyframe in keyframes if starts[keyframe + 1] > starts[keyframe]]
        new = [keyframe for keyframe in keyframes if keyframe not in self._compared]
        if new:
            rows = self._database.observations_of(new)
            stored = _descriptors(self._database, _padded(rows, _OBSERVATIONS), self.query.descriptors.device)
            similarity = self.query.descriptors.to(stored.dtype) @ stored.T
            most = column_values(similarity)                        # of each observation, over the keypoints
            ends = np.cumsum(starts[np.array(new) + 1] - starts[new])
            for keyframe, end in zip(new, ends.tolist(), strict=True):
                first = int(end - (starts[keyframe + 1] - starts[keyframe]))
                best, column = row_maxima(similarity[:, first:end])
                self._compared[keyframe] = _Compared(best=best, row=column + int(starts[keyframe]),
                                                     returned=most[first:end][column])
        return [self._compared[keyframe] for keyframe in keyframes]


@dataclass(frozen=True, kw_only=True)
class _Compared:
    """An image and a keyframe: for each keypoint the similarity of the most similar observation, its row in the
    database, and the similarity of that observation's most similar keypoint."""

    best: Tensor
    row: Tensor
    returned: Tensor


def match_projections(query: Keypoints, database: KeyframeDatabase, observations: np.ndarray,
                      map_from_camera: np.ndarray, *, radius_px: float, max_count: int) -> LandmarkMatches:
    """Match observations (M,) of the database with the keypoints around their projections, given a pose.

    Each observation takes the most similar keypoint within radius_px of its projection, and each keypoint keeps the
    most similar of the landmarks that took it. Of the visible observations, the first max_count are used.
    """
    camera = query.camera
    points = database.points_array[database.landmark_array[observations]]
    pixels, depth = project_map_points(points, camera, map_from_camera)
    visible = (depth > MIN_DEPTH) & (pixels > 0).all(1) & (pixels < (camera.width - 1, camera.height - 1)).all(1)
    observations, pixels = observations[visible][:max_count], pixels[visible][:max_count]
    which, keypoints = _pairs_within(query, pixels, radius_px)
    if len(which) == 0:
        return _matches(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    stored = _descriptors(database, observations, query.descriptors.device)
    similarity = _similarity_of_pairs(stored, pixels[:, 1], query, pairs=(which, keypoints), radius_px=radius_px)
    best = _greatest_of_each(which, similarity)
    found = _matches(keypoints[best], database.landmark_array[observations[which[best]]], similarity[best])
    order = np.lexsort((-found.similarity, found.keypoints))
    return found.subset(order[_first_of_each(found.keypoints[order])])


def _pairs_within(query: Keypoints, pixels: np.ndarray, radius_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Return all pairs (P,), (P,) of pixels (N, 2) and keypoints that are within radius_px of each other, in the order
    of the pixels."""
    height, width = query.map_size
    reach = int(np.ceil(radius_px / query.stride))
    grid = np.full((height + 2 * reach, width + 2 * reach), -1, np.int32)
    grid[query.cells // width + reach, query.cells % width + reach] = np.arange(len(query))
    offset = np.arange(2 * reach + 1)
    column, row = (np.clip(((axis + 0.5) / query.stride).astype(int), 0, size - 1)
                   for axis, size in zip(pixels.T, (width, height), strict=True))
    around = (offset[:, None] * grid.shape[1] + offset).ravel()
    nearby = grid.ravel()[((row * grid.shape[1] + column)[:, None] + around).ravel()]
    chosen = np.flatnonzero(nearby >= 0)
    which, keypoints = chosen // len(around), nearby[chosen]
    close = np.square(query.pixels[keypoints] - pixels[which]).sum(1) < radius_px**2
    return which[close], keypoints[close]


def _similarity_of_pairs(stored: Tensor, rows_px: np.ndarray, query: Keypoints, *,
                         pairs: tuple[np.ndarray, np.ndarray], radius_px: float) -> np.ndarray:
    """Return the similarity (P,) of pairs of observations and keypoints, whose rows are within radius_px.

    stored: descriptors (N, C) of the observations. rows_px: (N,) of their projections. pairs: (P,) of each kind.

    Products of matrices are faster than gathering the descriptors of all pairs, and products of bands of the image are
    smaller than one of the whole.
    """
    observation_order = _padded(np.argsort(rows_px), _ROWS)
    keypoint_order = _padded(np.argsort(query.pixels[:, 1]), _COLUMNS)
    keypoint_rows = query.pixels[keypoint_order, 1]
    observations = stored[torch.from_numpy(observation_order).to(stored.device)]
    described = query.descriptors[torch.from_numpy(keypoint_order).to(stored.device)].to(stored.dtype)
    starts = np.arange(0, len(observation_order), _ROWS)
    bounds_px = rows_px[observation_order[np.stack([starts, starts + _ROWS - 1])]]
    firsts = np.searchsorted(keypoint_rows, bounds_px[0] - radius_px - 1.0)
    widths = np.searchsorted(keypoint_rows, bounds_px[1] + radius_px + 1.0) - firsts
    widths = -(-widths // _COLUMNS) * _COLUMNS
    firsts = np.minimum(firsts, len(keypoint_order) - widths)
    products = torch.cat([(observations[start:start + _ROWS] @ described[first:first + width].T).flatten()
                          for start, first, width in zip(starts, firsts, widths, strict=True)])
    offsets = np.cumsum([0, *(_ROWS * widths)])[:-1]
    rank, column = _inverse(observation_order)[pairs[0]], _inverse(keypoint_order)[pairs[1]]
    band = rank // _ROWS
    pair = offsets[band] + (rank - starts[band]) * widths[band] + column - firsts[band]
    return products[torch.from_numpy(pair).to(products.device)].float().cpu().numpy()


def _padded(order: np.ndarray, multiple: int) -> np.ndarray:
    """Return indices (N,) with the last one repeated until their number is a multiple of another."""
    return np.pad(order, (0, -len(order) % multiple), mode="edge")


def _inverse(order: np.ndarray) -> np.ndarray:
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return inverse


def _descriptors(database: KeyframeDatabase, observations: np.ndarray, device: torch.device) -> Tensor:
    """Return descriptors (M, C) of unit length on the device, in the type in which it multiplies the fastest."""
    return database.unit_descriptors(device)[torch.from_numpy(observations).to(device)]


def _one_per_landmark(matches: LandmarkMatches) -> LandmarkMatches:
    """Keep the most similar match of each landmark, which may have been observed in several keyframes."""
    order = np.lexsort((-matches.similarity, matches.landmarks))
    return matches.subset(np.sort(order[_first_of_each(matches.landmarks[order])]))


def _greatest_of_each(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the position of the first greatest value of each run of equal groups (P,)."""
    starts = np.flatnonzero(_first_of_each(groups))
    greatest = np.maximum.reduceat(values, starts)
    candidates = np.flatnonzero(values == np.repeat(greatest, np.diff(starts, append=len(groups))))
    return candidates[_first_of_each(groups[candidates])]


def _first_of_each(sorted_values: np.ndarray) -> np.ndarray:
    """Return a mask of the first of each run of equal values."""
    first = np.ones(len(sorted_values), bool)
    first[1:] = sorted_values[1:] != sorted_values[:-1]
    return first


def _matches(keypoints: np.ndarray, landmarks: np.ndarray, similarity: np.ndarray) -> LandmarkMatches:
    return LandmarkMatches(keypoints=keypoints, landmarks=landmarks, similarity=similarity)
