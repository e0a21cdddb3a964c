"""What a place is recognised by: patches of the mapping pictures whose points are known.

ACE-G begins its map codes as noise and lets thousands of training steps fill them. The encoder's features already say
which patches show the same spot, so codes can begin as what they would have to learn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aceg_ros.encoders.base import Encoder
from aceg_ros.mapping.augmentation import Picture
from aceg_ros.mapping.matching import Seen, look, measured_depths
from aceg_ros.mapping.triangulation import TriangulationOptions, triangulated_patches

MERGE_SAMPLE, MERGE_ROUNDS = 60_000, 2


@dataclass(frozen=True)
class Landmarks:
    """features (N, C) of unit length; points (N, 3) in the map; colours (N, 3) uint8; source (N,): index of the picture
    that each is from."""

    features: Tensor
    points: Tensor
    colours: Tensor
    source: Tensor

    def __len__(self) -> int:
        return len(self.points)

    def subset(self, index: Tensor) -> Landmarks:
        return Landmarks(self.features[index], self.points[index], self.colours[index.cpu()],
                         self.source[index.cpu()])


def find_landmarks(pictures: Sequence[Picture], encoder: Encoder, device: str, options: TriangulationOptions, seed: int,
                   deadline: float, should_stop: Callable[[], bool], report: Callable[[float], None],
                   use_depth: bool = False, enough: int = 100_000) -> Landmarks:
    """Landmarks by triangulation, or, with use_depth, from the pictures' measured depths.

    Ends when there are `enough`, at the deadline (time.monotonic() seconds) or when should_stop turns true, with those
    of the pictures so far, which come in random order.
    """
    if use_depth:
        found = _measured_patches(pictures, encoder, device, options, seed, deadline, should_stop, report)
    else:
        found = triangulated_patches(pictures, encoder, device, options, seed, deadline, should_stop, report)
    features, points, colours, source = [], [], [], []
    count = 0
    for index, seen, depth in found:
        known = torch.isfinite(depth)
        if known.any():
            features.append(seen.features[known].half())
            points.append(seen.rays[known] * depth[known, None] + seen.centre)
            column, row = seen.pixels[known].round().long().cpu().unbind(1)
            colours.append(torch.from_numpy(pictures[index].image)[row, column])
            source.append(torch.full_like(row, index))
            count += len(row)
            if count >= enough:
                break
    if not points:
        empty = torch.empty(0, 3, device=device)
        return Landmarks(torch.empty(0, encoder.dim, device=device).half(), empty, empty.cpu().byte(),
                         torch.empty(0, dtype=torch.long))
    return Landmarks(torch.cat(features), torch.cat(points), torch.cat(colours), torch.cat(source))


def _measured_patches(pictures: Sequence[Picture], encoder: Encoder, device: str, options: TriangulationOptions,
                      seed: int, deadline: float, should_stop: Callable[[], bool],
                      report: Callable[[float], None]) -> Iterator[tuple[int, Seen, Tensor]]:
    """As `triangulated_patches`, by measured depths."""
    order = np.random.default_rng(seed).permutation(len(pictures))
    for number, index in enumerate(order):
        if time.monotonic() > deadline or should_stop():
            return
        picture = pictures[index]
        if picture.depth_m is not None:
            seen = look(picture, encoder, device, options.patches)
            yield int(index), seen, measured_depths(picture, seen)
        report(number / len(order))


def thin(landmarks: Landmarks, count: int, seed: int) -> Landmarks:
    """At most `count` of the landmarks, drawn at random."""
    if len(landmarks) <= count:
        return landmarks
    order = torch.randperm(len(landmarks), generator=torch.Generator().manual_seed(seed))
    return landmarks.subset(order[:count].to(landmarks.points.device).sort().values)


def merge(landmarks: Landmarks, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features (count, C) of unit length and points (count, 3) that stand for all landmarks: means of what is alike in
    looks and near by.

    k-means, where a feature's distance and a tenth of the scene's radius count the same. Begins at random landmarks, so
    that places with many stay represented by many.
    """
    sample = thin(landmarks, MERGE_SAMPLE, seed)
    features = functional.normalize(sample.features.float(), dim=1)
    if len(sample) <= count:
        return features, sample.points
    middle = sample.points.mean(0)
    scale = 0.1 * (sample.points - middle).norm(dim=1).median().clamp(min=1e-6)
    traits = torch.cat([features, (sample.points - middle) / scale], 1)
    order = torch.randperm(len(sample), generator=torch.Generator().manual_seed(seed)).to(traits.device)
    centres = traits[order[:count]]
    for _ in range(MERGE_ROUNDS):
        nearest = torch.cat([torch.cdist(part, centres).argmin(1) for part in traits.split(2048)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, traits)
        size = torch.bincount(nearest, minlength=count)[:, None]
        centres = torch.where(size > 0, sums / size.clamp(min=1), centres)
    dim = features.shape[1]
    return functional.normalize(centres[:, :dim], dim=1), centres[:, dim:] * scale + middle
