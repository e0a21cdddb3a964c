"""Pairs of posed images of one scene, as keypoints, from near ones to far ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aceg_ros.datasets import open_scene
from aceg_ros.encoders.base import Encoder
from aceg_ros.errors import UserError
from aceg_ros.mapping.augmentation import prepare_frame
from aceg_ros.mapping.matching import extract_mapping_keypoints
from aceg_ros.networks.keypoint_relative_pose import KeypointTokens
from aceg_ros.pretraining.common.run import write_arrays

NEAR_DEG, FAR_DEG = 12.0, 60.0           # largest angle between viewing directions at the beginning, and at the end
NEAR_SHARE, FAR_SHARE = 0.08, 0.5        # largest distance, as a share of the extent of the scene's positions
MIN_SHARE = 0.005                        # smaller baselines have no direction


@dataclass(frozen=True, kw_only=True)
class SceneKeypoints:
    """Keypoints of the F images of a scene: descriptors (F, N, C) int8, rays (F, N, 2), poses (F, 4, 4)."""

    descriptors: np.ndarray
    rays: np.ndarray
    poses: np.ndarray


@dataclass(frozen=True, kw_only=True)
class PoseBatch:
    """B pairs: keypoints of both images; rotation (B, 3, 3) and unit direction (B, 3) of first_from_second."""

    first: KeypointTokens
    second: KeypointTokens
    rotation: Tensor
    direction: Tensor


def prepare_scene(scene: Path, encoder: Encoder, folder: Path, count: int) -> SceneKeypoints:
    """Extract the `count` best keypoints of every image of a scene, or read them if they were extracted before.

    Images with fewer keypoints are left out. Raises UserError if fewer than two images are left.
    """
    name = hashlib.sha256(f"{scene.resolve()} {encoder.identity} {count}".encode()).hexdigest()[:16]
    path = folder / f"{scene.name}-{name}.npz"
    if not path.exists():
        descriptors, rays, poses = [], [], []
        for frame in open_scene(scene):
            if frame.map_from_camera is None:
                continue
            found = extract_mapping_keypoints(prepare_frame(frame, encoder.short_side_px, encoder.stride), encoder,
                                              count)
            if len(found.pixels) == count:
                descriptors.append((found.features * 127).round().to(torch.int8).cpu().numpy())
                rays.append(((found.pixels - found.intrinsics[2:]) / found.intrinsics[:2]).cpu().numpy())
                poses.append(frame.map_from_camera)
        folder.mkdir(parents=True, exist_ok=True)
        write_arrays(path, {"descriptors": np.array(descriptors), "rays": np.array(rays, np.float32),
                            "poses": np.array(poses)})
    with np.load(path) as stored:
        loaded = SceneKeypoints(**{key: stored[key] for key in ("descriptors", "rays", "poses")})
    if len(loaded.poses) < 2:
        raise UserError(f"Scene {scene} has fewer than two posed images of {count} keypoints: leave it out.")
    return loaded


def draw_pairs(scenes: Sequence[SceneKeypoints], count: int, progress: float, rng: np.random.Generator) -> PoseBatch:
    """Draw pairs of images, near ones at the beginning (progress 0), and ever farther ones until its end (1)."""
    pairs = [_draw_pair(scenes[int(rng.integers(len(scenes)))], progress, rng) for _ in range(count)]
    first, second = (KeypointTokens(*(torch.from_numpy(np.stack([entry[side][part] for entry in pairs]))
                                      for part in (0, 1))) for side in (0, 1))
    relative = torch.from_numpy(np.stack([entry[2] for entry in pairs])).float()
    return PoseBatch(first=first, second=second, rotation=relative[:, :3, :3],
                     direction=torch.nn.functional.normalize(relative[:, :3, 3], dim=1))


def _draw_pair(scene: SceneKeypoints, progress: float, rng: np.random.Generator
               ) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], np.ndarray]:
    extent = max(float(np.linalg.norm(np.ptp(scene.poses[:, :3, 3], axis=0))), 1e-9)
    a = int(rng.integers(len(scene.poses)))
    distance = np.linalg.norm(scene.poses[:, :3, 3] - scene.poses[a, :3, 3], axis=1) / extent
    angle = np.degrees(np.arccos(np.clip(scene.poses[:, :3, 2] @ scene.poses[a, :3, 2], -1.0, 1.0)))
    near = NEAR_DEG + progress * (FAR_DEG - NEAR_DEG), NEAR_SHARE + progress * (FAR_SHARE - NEAR_SHARE)
    candidates = np.flatnonzero((angle < near[0]) & (distance < near[1]) & (distance > MIN_SHARE))
    others = candidates if len(candidates) else np.delete(np.argsort(distance + angle / 60.0), 0)[:1]
    b = int(rng.choice(others))
    relative = np.linalg.inv(scene.poses[a]) @ scene.poses[b]
    (first, turn_a), (second, turn_b) = (_turned(scene, index, rng) for index in (a, b))
    full_a, full_b = np.eye(4), np.eye(4)
    full_a[:3, :3], full_b[:3, :3] = turn_a, turn_b
    return first, second, full_a @ relative @ full_b.T


def _turned(scene: SceneKeypoints, index: int, rng: np.random.Generator
            ) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return keypoints of an image whose camera is rolled by up to 15 degrees, and the rotation (3, 3)."""
    roll = rng.uniform(-0.26, 0.26)
    turn = np.array([[np.cos(roll), -np.sin(roll), 0.0], [np.sin(roll), np.cos(roll), 0.0], [0.0, 0.0, 1.0]])
    rays = scene.rays[index] @ turn[:2, :2].T.astype(np.float32)
    descriptors = scene.descriptors[index].astype(np.float32)
    descriptors /= np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1e-6)
    return (descriptors, rays.astype(np.float32)), turn
