# SPDX-License-Identifier: Apache-2.0
"""Image pairs with known point correspondences, the training data of the encoder.

There are three sources: two views of a rendered room (`rendered_pairs`: exact, from depth), a real image paired with
itself (`real_pairs`: random warps of `augment` relate the two by a homography), and two real images of a mapping
session (`real_pairs`: SIFT matches that agree with the epipolar geometry of their poses).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two images of one scene.

    images: two (H, W, 3) uint8 RGB.
    points: two (N, 2), pixels that show the same surface points.
    scene: its name. Points of pairs of the same scene are no negatives for each other: they may show the same surface.
    map_points: (N, 3) surface points, None if unknown.
    teacher_descriptors: (N, D) of a teacher at the points of the first image, or None.
    """

    images: tuple[np.ndarray, np.ndarray]
    points: tuple[np.ndarray, np.ndarray]
    scene: str
    map_points: np.ndarray | None = None
    teacher_descriptors: np.ndarray | None = None


class PairSource(Protocol):
    """Draws pairs at random."""

    def sample(self, rng: np.random.Generator) -> Pair: ...


@dataclass(frozen=True, kw_only=True)
class TeacherDescriptors:
    """A teacher's descriptors (N, D) at pixels (N, 2) of an image."""

    pixels: np.ndarray
    descriptors: np.ndarray
