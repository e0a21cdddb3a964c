# SPDX-License-Identifier: Apache-2.0
"""Pairs of posed images of one scene, as keypoints, first such as see the same, then such as have little in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from aceg_ros.networks.keypoint_relative_pose import KeypointTokens
from aceg_ros.pretraining.sacreg.scenes import KEYFRAME, QUERY, CrossImageScene

NEAR_OVERLAP, FAR_OVERLAP = 0.6, 0.1     # smallest share of points that both images see, at first and at the end
MIN_BASELINE = 0.03                      # as a share of the depth; smaller ones have no direction
MIN_KNOWN = 12                           # keypoints with known points of an image, which tell what else it sees
TURN_RAD, ROLL_RAD = 0.12, 0.26          # of augmentation: standard deviation about x and y, largest about z


@dataclass(frozen=True, kw_only=True)
class SceneKeypoints:
    """Keypoints of the F images of a scene: descriptors (F, N, C) int8, rays (F, N, 2), poses (F, 4, 4).

    pairs: (P, 2) images with a baseline that see some of the same. overlap: (P,) the share of known points that both
    see, whatever is in front of them.
    """

    descriptors: np.ndarray
    rays: np.ndarray
    poses: np.ndarray
    pairs: np.ndarray
    overlap: np.ndarray

    @classmethod
    def from_prepared(cls, scene: CrossImageScene, count: int) -> SceneKeypoints:
        """Take the `count` best keypoints of every image of a prepared scene, but for changed copies."""
        images = [image for image in scene.of_role(KEYFRAME, QUERY).tolist()
                  if scene.first[image + 1] - scene.first[image] >= count]
        rows = np.array([scene.keypoints_of(image)[:count] for image in images]).reshape(-1, count)
        intrinsics = scene.intrinsics[images][:, None]
        pairs, overlap = overlapping_pairs(scene, images)
        return cls(descriptors=scene.descriptors[rows], poses=scene.poses[images], pairs=pairs, overlap=overlap,
                   rays=((scene.pixels[rows] - intrinsics[..., 2:]) / intrinsics[..., :2]).astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class PoseBatch:
    """B pairs: keypoints of both images; rotation (B, 3, 3) and unit direction (B, 3) of first_from_second."""

    first: KeypointTokens
    second: KeypointTokens
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


def draw_pairs(scenes: Sequence[SceneKeypoints], count: int, progress: float, rng: np.random.Generator) -> PoseBatch:
    """Draw pairs of images, which overlap much at the beginning (progress 0), by FAR_OVERLAP or more at its end (1)."""
    pairs = [_draw_pair(scenes[int(rng.integers(len(scenes)))], progress, rng) for _ in range(count)]
    first, second = (KeypointTokens(*(torch.from_numpy(np.stack([entry[side][part] for entry in pairs]))
                                      for part in (0, 1))) for side in (0, 1))
    relative = torch.from_numpy(np.stack([entry[2] for entry in pairs])).float()
    return PoseBatch(first=first, second=second, rotation=relative[:, :3, :3],
                     direction=torch.nn.functional.normalize(relative[:, :3, 3], dim=1))


def _draw_pair(scene: SceneKeypoints, progress: float, rng: np.random.Generator
               ) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], np.ndarray]:
    needed = NEAR_OVERLAP + progress * (FAR_OVERLAP - NEAR_OVERLAP)
    # Evenly over the overlaps: most pairs of a recording have little in common.
    wanted = rng.uniform(needed, 1.0)
    candidates = np.argsort(np.abs(scene.overlap - wanted), kind="stable")[:20]
    a, b = scene.pairs[int(rng.choice(candidates))]
    relative = np.linalg.inv(scene.poses[a]) @ scene.poses[b]
    (first, turn_a), (second, turn_b) = (_turned(scene, int(index), rng) for index in (a, b))
    full_a, full_b = np.eye(4), np.eye(4)
    full_a[:3, :3], full_b[:3, :3] = turn_a, turn_b
    return first, second, full_a @ relative @ full_b.T


def _turned(scene: SceneKeypoints, index: int, rng: np.random.Generator
            ) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return keypoints of an image whose camera is turned a little, as its rays tell exactly, and the rotation (3, 3).
    """
    turn = Rotation.from_rotvec([*rng.normal(0.0, TURN_RAD, 2).clip(-0.3, 0.3), rng.uniform(-ROLL_RAD, ROLL_RAD)]
                                ).as_matrix()
    rays = np.concatenate([scene.rays[index], np.ones((len(scene.rays[index]), 1))], 1) @ turn.T
    rays = rays[:, :2] / np.maximum(rays[:, 2:], 0.1)
    descriptors = scene.descriptors[index].astype(np.float32)
    descriptors /= np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1e-6)
    return (descriptors, rays.astype(np.float32)), turn
