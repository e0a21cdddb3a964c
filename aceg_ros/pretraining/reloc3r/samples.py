# SPDX-License-Identifier: Apache-2.0
"""Matches of posed images of one scene, first of such as see the same, then of such as have little in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from aceg_ros.networks.keypoint_relative_pose import MatchTokens, homogeneous, match_keypoints, stack_matches
from aceg_ros.networks.rotations import skew
from aceg_ros.networks.weighted_essential import sampson_errors
from aceg_ros.pretraining.sacreg.scenes import KEYFRAME, QUERY, CrossImageScene

NEAR_OVERLAP, FAR_OVERLAP = 0.6, 0.1     # smallest share of points that both images see, at first and at the end
MIN_BASELINE = 0.03                      # as a share of the depth; smaller ones have no direction
MIN_KNOWN = 12                           # keypoints with known points of an image, which tell what else it sees
MIN_MATCHES = 16                         # of a pair that is drawn
TURN_RAD, ROLL_RAD = 0.12, 0.26          # of augmentation: standard deviation about x and y, largest about z
FEWEST_KEYPOINTS = 0.5                   # as a share of all, of an image that is drawn
RIGHT, WRONG = 0.004, 0.008              # Sampson errors, as tangents, of right and of wrong matches
SAME_POINT = 0.03                        # largest distance of the known points of a right match, as a share of depth


@dataclass(frozen=True, kw_only=True)
class SceneKeypoints:
    """Keypoints of the F images of a scene, the most reliable of each first.

    descriptors (M, C) int8, rays (M, 2), points (M, 3), NaN where unknown; first (F,), last (F,): those of an image.
    poses (F, 4, 4). pairs: (P, 2) images with a baseline that see some of the same. overlap: (P,) the share of known
    points that both see, whatever is in front of them.
    """

    descriptors: np.ndarray
    rays: np.ndarray
    points: np.ndarray
    first: np.ndarray
    last: np.ndarray
    poses: np.ndarray
    pairs: np.ndarray
    overlap: np.ndarray

    @classmethod
    def from_prepared(cls, scene: CrossImageScene) -> SceneKeypoints:
        """Take all images of a prepared scene, but for changed copies."""
        images = scene.of_role(KEYFRAME, QUERY)
        pairs, overlap = overlapping_pairs(scene, images.tolist())
        intrinsics = np.repeat(scene.intrinsics, np.diff(scene.first), axis=0)
        return cls(descriptors=scene.descriptors, points=scene.truth, first=scene.first[images],
                   last=scene.first[images + 1], poses=scene.poses[images], pairs=pairs, overlap=overlap,
                   rays=((scene.pixels - intrinsics[:, 2:]) / np.maximum(intrinsics[:, :2], 1.0)).astype(np.float32))


class PoseBatch(NamedTuple):
    """B pairs: their matches; right (B, T): 1 for right matches, 0 for wrong ones, -1 where it is not known; rotation
    (B, 3, 3) and unit direction (B, 3) of first_from_second."""

    matches: MatchTokens
    right: Tensor
    rotation: Tensor
    direction: Tensor


def overlapping_pairs(scene: CrossImageScene, images: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs (P, 2) of positions in `images` that have a baseline and overlap by FAR_OVERLAP, and overlaps (P,).
    """
    count = len(images)
    seen, depths = np.full((count, count), np.nan), np.full(count, np.inf)
    for a, image in enumerate(images):
        points = scene.truth[scene.keypoints_of(image)]
        points = points[np.isfinite(points).all(1)]
        if len(points) < MIN_KNOWN:
            continue
        for b, other in enumerate(images):
            local = (points - scene.poses[other][:3, 3]) @ scene.poses[other][:3, :3]
            focal, centre = scene.intrinsics[other][:2], scene.intrinsics[other][2:]
            pixels = local[:, :2] / np.maximum(local[:, 2:], 1e-9) * focal + centre
            seen[a, b] = ((local[:, 2] > 0) & (pixels > 0).all(1) & (pixels < scene.sizes[other]).all(1)).mean()
            if a == b:
                depths[a] = np.median(local[:, 2])
    overlap = np.nan_to_num(np.fmin(seen, seen.T))          # of an image without known points, by those of the other
    centres = scene.poses[list(images), :3, 3]
    baselines = np.linalg.norm(centres[:, None] - centres, axis=2) / np.minimum(depths[:, None], depths)
    pairs = np.argwhere((overlap >= FAR_OVERLAP) & (baselines > MIN_BASELINE))
    return pairs, overlap[tuple(pairs.T)]


def draw_pairs(scenes: Sequence[SceneKeypoints], count: int, progress: float, rng: np.random.Generator, *,
               matches: int) -> PoseBatch:
    """Draw pairs of images, which overlap much at the beginning (progress 0), by FAR_OVERLAP or more at its end (1)."""
    drawn: list[_Pair] = []
    while len(drawn) < count:
        pair = _draw_pair(scenes[int(rng.integers(len(scenes)))], progress, rng, matches)
        if len(pair.right) >= MIN_MATCHES:
            drawn.append(pair)
    return PoseBatch(
        matches=stack_matches([pair.matches for pair in drawn], matches),
        right=torch.stack([functional.pad(pair.right, (0, matches - len(pair.right)), value=-1) for pair in drawn]),
        rotation=torch.stack([pair.pose[:3, :3] for pair in drawn]),
        direction=functional.normalize(torch.stack([pair.pose[:3, 3] for pair in drawn]), dim=1))


class _Pair(NamedTuple):
    matches: tuple[Tensor, Tensor, Tensor, Tensor]
    right: Tensor
    pose: Tensor


def _draw_pair(scene: SceneKeypoints, progress: float, rng: np.random.Generator, count: int) -> _Pair:
    needed = NEAR_OVERLAP + progress * (FAR_OVERLAP - NEAR_OVERLAP)
    # Evenly over the overlaps: most pairs of a recording have little in common.
    wanted = rng.uniform(needed, 1.0)
    candidates = np.argsort(np.abs(scene.overlap - wanted), kind="stable")[:20]
    images = scene.pairs[int(rng.choice(candidates))]
    rows = [_some_rows(scene, int(image), rng) for image in images]
    descriptors = [_unit(scene.descriptors[part]) for part in rows]
    found = match_keypoints(descriptors[0], descriptors[1], count)
    chosen = [part[side.numpy()] for part, side in zip(rows, (found.rows, found.columns), strict=True)]
    turns = [_turn(rng) for _ in images]
    rays = [_turned(scene.rays[part], turn) for part, turn in zip(chosen, turns, strict=True)]
    (first, second), (a, b) = (scene.poses[image] for image in images), (np.eye(4), np.eye(4))
    a[:3, :3], b[:3, :3] = turns
    pose = torch.from_numpy(a @ np.linalg.inv(first) @ second @ b.T)
    right = label_matches(pose, rays[0], rays[1], torch.from_numpy(_distances(scene, chosen, second)))
    both = torch.stack([descriptors[0][found.rows], descriptors[1][found.columns]], 1)
    return _Pair((rays[0], rays[1], both, found.statistics), right, pose)


def label_matches(pose: Tensor, first: Tensor, second: Tensor, distance: Tensor) -> Tensor:
    """Return 1 for right matches, 0 for wrong ones, -1 where it is not known (M,).

    pose: first_from_second (4, 4). first, second: rays (M, 2). distance: (M,) between the known points of both
    keypoints as a share of their depth, NaN where one is unknown.
    """
    essential = skew(pose[:3, 3]) @ pose[:3, :3]
    error = sampson_errors(essential[None].double(), homogeneous(first)[None].double(),
                           homogeneous(second)[None].double())[0].abs()
    right = torch.full(error.shape, -1, dtype=torch.int64)
    right[(error < RIGHT) & ~(distance > SAME_POINT)] = 1
    right[(error > WRONG) | (distance > 2.0 * SAME_POINT)] = 0
    return right


def _distances(scene: SceneKeypoints, rows: Sequence[np.ndarray], pose: np.ndarray) -> np.ndarray:
    first, second = (scene.points[part].astype(np.float64) for part in rows)
    depth = np.linalg.norm(second - pose[:3, 3], axis=1)
    return np.asarray(np.linalg.norm(first - second, axis=1) / np.maximum(depth, 1e-9))


def _some_rows(scene: SceneKeypoints, image: int, rng: np.random.Generator) -> np.ndarray:
    """Return some keypoints of an image."""
    rows = np.arange(scene.first[image], scene.last[image])
    return np.asarray(rng.permutation(rows)[:int(np.ceil(rng.uniform(FEWEST_KEYPOINTS, 1.0) * len(rows)))])


def _unit(descriptors: np.ndarray) -> Tensor:
    return functional.normalize(torch.from_numpy(descriptors).float(), dim=1)


def _turn(rng: np.random.Generator) -> np.ndarray:
    """Draw the rotation (3, 3) by which a camera is turned a little."""
    vector = [*rng.normal(0.0, TURN_RAD, 2).clip(-0.3, 0.3), rng.uniform(-ROLL_RAD, ROLL_RAD)]
    return np.asarray(Rotation.from_rotvec(vector).as_matrix())


def _turned(rays: np.ndarray, turn: np.ndarray) -> Tensor:
    """Return the rays (M, 2) of a camera that is turned, as they tell exactly."""
    turned = np.concatenate([rays, np.ones((len(rays), 1))], 1) @ turn.T
    return torch.from_numpy(turned[:, :2] / np.maximum(turned[:, 2:], 0.1)).float()
