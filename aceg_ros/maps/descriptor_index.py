# SPDX-License-Identifier: Apache-2.0
"""Matches the keypoints of an image with the landmarks of a keyframe database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from aceg_ros.camera import MIN_DEPTH, project_map_points
from aceg_ros.encoders.keypoints import Keypoints
from aceg_ros.maps.keyframe_database import KeyframeDatabase
from aceg_ros.maps.nearby_keypoints import similarity_of_pairs, take_nearby
from aceg_ros.utils.device import multiplies_int8
from aceg_ros.utils.int8_products import Int8Vectors, mutual_greatest
from aceg_ros.utils.maxima import column_values, row_maxima

# Numbers of observations are rounded up to multiples of this: the CPU's library of products generates code for each new
# size of bf16, which takes 0.5 ms, more than most of the products.
_OBSERVATIONS = 512


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
        if not compared:
            return _matches(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
        best = np.stack([one.best for one in compared])
        chosen = best.argmax(0), np.arange(len(self.query))
        # Rounded similarities may tie, which costs nothing: a tie is nearly as similar.
        keypoints = np.flatnonzero(best[chosen] == np.stack([one.returned for one in compared])[chosen])
        rows = np.stack([one.row for one in compared])[chosen][keypoints]
        exact = similarity_of_pairs(self._database.descriptors.numpy(), rows, self.query.descriptor_array, keypoints)
        return _one_per_landmark(_matches(keypoints, self._database.landmark_array[rows], exact))

    def _compare(self, keyframes: list[int]) -> list[_Compared]:
        """Return the comparison with each keyframe that has observations."""
        starts = self._database.starts
        keyframes = [keyframe for keyframe in keyframes if starts[keyframe + 1] > starts[keyframe]]
        new = [keyframe for keyframe in keyframes if keyframe not in self._compared]
        if len(self.query) == 0:
            return []
        if new:
            rows, rounded = self._database.observations_of(new), self._rounded
            found = self._compare_floats(new, rows) if rounded is None else self._compare_int8(new, rounded)
            self._compared.update(zip(new, found, strict=True))
        return [self._compared[keyframe] for keyframe in keyframes]

    @cached_property
    def _rounded(self) -> Int8Vectors | None:
        """The descriptors of the image where the device is best given 8-bit integers, else None."""
        descriptors = self.query.descriptors
        return Int8Vectors.of(descriptors) if multiplies_int8(descriptors.device) else None

    def _compare_int8(self, keyframes: list[int], rounded: Int8Vectors) -> list[_Compared]:
        """Compare the image, given as 8-bit integers, with keyframes."""
        starts, found = self._database.starts, []
        for keyframe in keyframes:
            first, end = int(starts[keyframe]), int(starts[keyframe + 1])
            best, row, returned = mutual_greatest(rounded, self._database.descriptors[first:end])
            found.append(_Compared(best=best, row=row + first, returned=returned))
        return found

    def _compare_floats(self, keyframes: list[int], rows: np.ndarray) -> list[_Compared]:
        """Compare the image with keyframes, whose observations are the rows."""
        starts, found = self._database.starts, []
        stored = self._database.unit_descriptors(self.query.descriptors.device)[
            torch.from_numpy(_padded(rows, _OBSERVATIONS)).to(self.query.descriptors.device)]
        similarity = self.query.descriptors.to(stored.dtype) @ stored.T
        most = column_values(similarity)                        # of each observation, over the keypoints
        ends = np.cumsum(starts[np.array(keyframes) + 1] - starts[keyframes])
        for keyframe, end in zip(keyframes, ends.tolist(), strict=True):
            first = int(end - (starts[keyframe + 1] - starts[keyframe]))
            best, column = row_maxima(similarity[:, first:end])
            returned = most[first:end][column].float()
            found.append(_Compared(best=best.float().cpu().numpy(), row=column.cpu().numpy() + int(starts[keyframe]),
                                   returned=returned.cpu().numpy()))
        return found


@dataclass(frozen=True, kw_only=True)
class _Compared:
    """An image and a keyframe: for each keypoint the similarity of the most similar observation, its row in the
    database, and the similarity of that observation's most similar keypoint."""

    best: np.ndarray
    row: np.ndarray
    returned: np.ndarray


def match_projections(query: Keypoints, database: KeyframeDatabase, observations: np.ndarray,
                      map_from_camera: np.ndarray, *, radius_px: float, max_count: int) -> LandmarkMatches:
    """Match observations (M,) of the database with the keypoints around their projections, given a pose.

    Each observation takes the most similar keypoint within radius_px of its projection, and each keypoint keeps the
    most similar of the landmarks that took it. Of the visible observations, the first max_count are used.
    """
    points = database.points_array[database.landmark_array[observations]]
    pixels, depth = project_map_points(points, query.camera, map_from_camera)
    size = (query.camera.width - 1, query.camera.height - 1)
    visible = (depth > MIN_DEPTH) & (pixels > 0).all(1) & (pixels < size).all(1)
    observations, pixels = observations[visible][:max_count], pixels[visible][:max_count]
    grid = np.full(query.map_size, -1, np.int32)
    grid.ravel()[query.cells] = np.arange(len(query))
    taken, similarity = take_nearby(pixels, database.descriptors.numpy(), observations, grid=grid,
                                    stride=query.stride, keypoints=query.pixels,
                                    described=query.descriptor_array, radius_px=radius_px)
    found = np.flatnonzero(taken >= 0)
    return _matches(found, database.landmark_array[observations[taken[found]]], similarity[found])


def _padded(order: np.ndarray, multiple: int) -> np.ndarray:
    """Return indices (N,) with the last one repeated until their number is a multiple of another."""
    return np.pad(order, (0, -len(order) % multiple), mode="edge")


def _one_per_landmark(matches: LandmarkMatches) -> LandmarkMatches:
    """Keep the most similar match of each landmark, which may have been observed in several keyframes."""
    order = np.lexsort((-matches.similarity, matches.landmarks))
    return matches.subset(np.sort(order[_first_of_each(matches.landmarks[order])]))


def _first_of_each(sorted_values: np.ndarray) -> np.ndarray:
    """Return a mask of the first of each run of equal values."""
    first = np.ones(len(sorted_values), bool)
    first[1:] = sorted_values[1:] != sorted_values[:-1]
    return first


def _matches(keypoints: np.ndarray, landmarks: np.ndarray, similarity: np.ndarray) -> LandmarkMatches:
    return LandmarkMatches(keypoints=keypoints, landmarks=landmarks, similarity=similarity)
