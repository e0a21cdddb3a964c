# SPDX-License-Identifier: Apache-2.0
"""Landmarks: patches of the mapping images with known 3D points.

ACE-G optimises map codes from noise in thousands of training steps. Since the encoder's features already tell which
patches show the same point, triangulated landmarks can serve as codes at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aceg_ros.encoders.base import Encoder
from aceg_ros.mapping.augmentation import PreparedFrame
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.matching import extract_features, measured_depths
from aceg_ros.mapping.triangulation import PatchDepths, TriangulationOptions, triangulated_patches

CLUSTER_SAMPLE, CLUSTER_ROUNDS = 60_000, 2


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """N landmarks: features (N, C) of unit length, points (N, 3) in the map, colours (N, 3) uint8, and source (N,), the
    index of the image that each was found in."""

    features: Tensor
    points: Tensor
    colours: Tensor
    source: Tensor

    def __len__(self) -> int:
        return len(self.points)

    def subset(self, index: Tensor) -> Landmarks:
        """Return the landmarks at the indices (M,)."""
        return Landmarks(features=self.features[index], points=self.points[index], colours=self.colours[index.cpu()],
                         source=self.source[index.cpu()])


def find_landmarks(frames: Sequence[PreparedFrame], encoder: Encoder, options: TriangulationOptions,
                   budget: MappingBudget, *, use_depth: bool = False, target_count: int = 100_000) -> Landmarks:
    """Find landmarks by triangulation or, with use_depth, from the measured depths of the frames.

    Images are processed in random order, until there are `target_count` landmarks or the budget is over.
    """
    find = _measured_patches if use_depth else triangulated_patches
    found = []
    count = 0
    for image in find(frames, encoder, options, budget):
        landmarks = _with_known_depth(image, frames[image.index])
        if len(landmarks):
            found.append(landmarks)
            count += len(landmarks)
            if count >= target_count:
                break
    if not found:
        empty = torch.empty(0, 3, device=encoder.device)
        return Landmarks(features=torch.empty(0, encoder.dim, device=encoder.device).half(), points=empty,
                         colours=empty.cpu().byte(), source=torch.empty(0, dtype=torch.long))
    return Landmarks(features=torch.cat([part.features for part in found]),
                     points=torch.cat([part.points for part in found]),
                     colours=torch.cat([part.colours for part in found]),
                     source=torch.cat([part.source for part in found]))


def _with_known_depth(image: PatchDepths, frame: PreparedFrame) -> Landmarks:
    """Make landmarks of the patches of one image whose depth is known."""
    extracted, depth = image.extracted, image.depth_m
    known = torch.isfinite(depth)
    column, row = extracted.pixels[known].round().long().cpu().unbind(1)
    return Landmarks(features=extracted.features[known].half(),
                     points=extracted.rays[known] * depth[known, None] + extracted.centre,
                     colours=torch.from_numpy(frame.image)[row, column], source=torch.full_like(row, image.index))


def _measured_patches(frames: Sequence[PreparedFrame], encoder: Encoder, options: TriangulationOptions,
                      budget: MappingBudget) -> Iterator[PatchDepths]:
    """Yield the patches of each image with their measured depths, in the same way as `triangulated_patches`."""
    for done, index in enumerate(np.random.default_rng(options.seed).permutation(len(frames))):
        if budget.is_over():
            return
        frame = frames[index]
        if frame.depth_m is not None:
            extracted = extract_features(frame, encoder, options.patches)
            yield PatchDepths(index=int(index), extracted=extracted, depth_m=measured_depths(frame, extracted))
        budget.report(done / len(frames))


def subsample(landmarks: Landmarks, count: int, seed: int) -> Landmarks:
    """Draw at most `count` of the landmarks at random."""
    if len(landmarks) <= count:
        return landmarks
    order = torch.randperm(len(landmarks), generator=torch.Generator().manual_seed(seed))
    return landmarks.subset(order[:count].to(landmarks.points.device).sort().values)


def cluster_landmarks(landmarks: Landmarks, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Cluster landmarks with similar features and near points: features (count, C) of unit length, points (count, 3).

    k-means on features together with points, scaled such that a tenth of the scene's radius weighs as much as a feature
    distance of 1. It starts at random landmarks, so that parts of the scene with many landmarks keep many.
    """
    sample = subsample(landmarks, CLUSTER_SAMPLE, seed)
    features = functional.normalize(sample.features.float(), dim=1)
    if len(sample) <= count:
        return features, sample.points
    middle = sample.points.mean(0)
    scale = 0.1 * (sample.points - middle).norm(dim=1).median().clamp(min=1e-6)
    vectors = torch.cat([features, (sample.points - middle) / scale], 1)
    order = torch.randperm(len(sample), generator=torch.Generator().manual_seed(seed)).to(vectors.device)
    centres = vectors[order[:count]]
    for _ in range(CLUSTER_ROUNDS):
        nearest = torch.cat([torch.cdist(part, centres).argmin(1) for part in vectors.split(2048)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        size = torch.bincount(nearest, minlength=count)[:, None]
        centres = torch.where(size > 0, sums / size.clamp(min=1), centres)
    dim = features.shape[1]
    return functional.normalize(centres[:, :dim], dim=1), centres[:, dim:] * scale + middle
