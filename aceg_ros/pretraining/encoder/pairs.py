"""Image pairs with known point correspondences, the training data of the encoder.

There are three sources of one form: two views of a rendered room (`rendered_pairs`: exact, from depth), a real image
paired with itself (`real_pairs`: the random warps of `augment` relate the two by a homography), and two real images of
a mapping session (`real_pairs`: SIFT matches that agree with the epipolar geometry of their poses).
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
    scene: its name. Pairs of one scene may show the same surface: they are no negatives for each other.
    map_points: (N, 3) the surface points, if known.
    teacher_descriptors: (N, D) of a teacher at the points of the first image, if there are any.
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
