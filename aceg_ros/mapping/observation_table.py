# SPDX-License-Identifier: Apache-2.0
"""A keyframe database while it grows: tables of keyframes, landmarks and observations that are joined and cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aceg_ros.geometry import invert
from aceg_ros.mapping.build_database import train_vocabulary
from aceg_ros.mapping.matching import ExtractedFeatures
from aceg_ros.mapping.tracks import Observations
from aceg_ros.maps.keyframe_database import KeyframeDatabase, quantised
from aceg_ros.maps.keyframe_history import KeyframeHistory
from aceg_ros.maps.retrieval import assign_words


@dataclass(frozen=True, kw_only=True)
class ObservationTable:
    """F keyframes, L landmarks and N observations, ordered by keyframe.

    Attributes:
        poses: (F, 4, 4) map_from_camera.
        intrinsics: (F, 4) fx, fy, cx, cy of the rectified image in the size of the encoder.
        sizes: (F, 2) width and height of that image.
        visits: (F,) number of the recording.
        points: (L, 3) in the map.
        missed: (L,) number of recordings that should have seen the landmark since it was seen last.
        keyframes: (N,) keyframe of each observation, ascending.
        landmarks: (N,) its landmark.
        pixels: (N, 2).
        descriptors: (N, C) int8.
    """

    poses: np.ndarray
    intrinsics: np.ndarray
    sizes: np.ndarray
    visits: np.ndarray
    points: np.ndarray
    missed: np.ndarray
    keyframes: np.ndarray
    landmarks: np.ndarray
    pixels: np.ndarray
    descriptors: Tensor

    def __len__(self) -> int:
        return len(self.keyframes)

    @classmethod
    def of(cls, database: KeyframeDatabase, history: KeyframeHistory) -> ObservationTable:
        """Read a database. Pixels that a compact map has not are where the landmarks are projected."""
        keyframes = np.repeat(np.arange(len(database)), np.diff(database.starts))
        pixels = [np.zeros((0, 2)), *(database.pixels_of(keyframe) for keyframe in range(len(database)))]
        return cls(poses=database.pose_array, intrinsics=database.intrinsics.numpy().astype(np.float64),
                   sizes=database.sizes.numpy(),
                   visits=history.visits.numpy().astype(np.int64), points=database.points_array,
                   missed=history.missed.numpy().astype(np.int64), keyframes=keyframes,
                   landmarks=database.landmark_array, pixels=np.concatenate(pixels),
                   descriptors=database.descriptors)

    @property
    def starts(self) -> np.ndarray:
        """The observations of keyframe f are starts[f] to starts[f + 1]."""
        return np.searchsorted(self.keyframes, np.arange(len(self.poses) + 1))

    def observations(self) -> Observations:
        """Return the observations as tracks are built of."""
        return Observations(images=self.keyframes, pixels=self.pixels, poses=self.poses, intrinsics=self.intrinsics)

    def features(self, device: torch.device) -> list[ExtractedFeatures]:
        """Return what the keyframes show, to be matched like extracted images."""
        unit = functional.normalize(self.descriptors.float(), dim=1).to(device)
        starts = self.starts
        found = []
        for keyframe, pose in enumerate(self.poses):
            part = slice(int(starts[keyframe]), int(starts[keyframe + 1]))
            fx, fy, cx, cy = self.intrinsics[keyframe]
            pixels = self.pixels[part]
            rays = np.column_stack([(pixels - (cx, cy)) / (fx, fy), np.ones(len(pixels))]) @ pose[:3, :3].T
            arrays = {"pixels": pixels, "rays": rays, "centre": pose[:3, 3], "camera_from_map": invert(pose)[:3],
                      "intrinsics": self.intrinsics[keyframe]}
            found.append(ExtractedFeatures(
                features=unit[part], cells=torch.zeros(len(pixels), dtype=torch.long), map_size=(0, 0),
                **{name: torch.from_numpy(np.ascontiguousarray(array)).float().to(device)
                   for name, array in arrays.items()}))
        return found

    def subset(self, kept: np.ndarray) -> ObservationTable:
        """Keep some observations (a mask), and the keyframes and landmarks that have any."""
        keyframes, keyframe_of = np.unique(self.keyframes[kept], return_inverse=True)
        landmarks, landmark_of = np.unique(self.landmarks[kept], return_inverse=True)
        return ObservationTable(
            poses=self.poses[keyframes], intrinsics=self.intrinsics[keyframes], sizes=self.sizes[keyframes],
            visits=self.visits[keyframes], points=self.points[landmarks], missed=self.missed[landmarks],
            keyframes=keyframe_of, landmarks=landmark_of, pixels=self.pixels[kept],
            descriptors=self.descriptors[torch.from_numpy(np.flatnonzero(kept))])

    def moved(self, other_from_map: np.ndarray) -> ObservationTable:
        """Return the same in another map frame."""
        points = self.points @ other_from_map[:3, :3].T + other_from_map[:3, 3]
        return replace(self, poses=other_from_map @ self.poses, points=points)

    def to_database(self, words: int, seed: int) -> tuple[KeyframeDatabase, KeyframeHistory]:
        """Make a database with a vocabulary of its own, of up to this many words."""
        descriptors = self.descriptors.float()
        unit = functional.normalize(descriptors, dim=1)
        vocabulary = train_vocabulary(unit, words, seed)
        database = KeyframeDatabase.from_arrays(
            poses=self.poses, intrinsics=self.intrinsics, sizes=self.sizes, first=self.starts, landmarks=self.landmarks,
            pixels=self.pixels, points=self.points, descriptors=self.descriptors,
            words=assign_words(unit, vocabulary), vocabulary=quantised(vocabulary))
        history = KeyframeHistory(visits=torch.from_numpy(self.visits.astype(np.int16)),
                                  missed=torch.from_numpy(np.minimum(self.missed, 255).astype(np.uint8)))
        return database, history


def join(tables: Sequence[ObservationTable]) -> ObservationTable:
    """Put tables one after the other; their landmarks are not matched."""
    frames = np.cumsum([0] + [len(table.poses) for table in tables])
    points = np.cumsum([0] + [len(table.points) for table in tables])
    joined = {name: np.concatenate([getattr(table, name) for table in tables])
              for name in ("poses", "intrinsics", "sizes", "visits", "points", "missed", "pixels")}
    return ObservationTable(
        **joined, keyframes=np.concatenate([table.keyframes + first for table, first in zip(tables, frames[:-1],
                                                                                            strict=True)]),
        landmarks=np.concatenate([table.landmarks + first for table, first in zip(tables, points[:-1], strict=True)]),
        descriptors=torch.cat([table.descriptors for table in tables]))
