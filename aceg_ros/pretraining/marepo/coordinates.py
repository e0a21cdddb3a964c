# SPDX-License-Identifier: Apache-2.0
"""Scene coordinates for the pre-training: what keypoints of an image match in the landmarks of other images of its
scene, with the mistakes of such matches. The keypoints are those that SACReg's training prepares (`sacreg.scenes`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aceg_ros.errors import UserError
from aceg_ros.geometry import invert
from aceg_ros.maps.keyframe_database import DESCRIPTOR_SCALE
from aceg_ros.pretraining.common.run import write_arrays
from aceg_ros.pretraining.sacreg.scenes import KEYFRAME, QUERY, CrossImageScene

NEAR_KEYFRAMES, MATCHED_KEYFRAMES = 12, 4
SKIPPED = (0, 3)                     # images before and after that are not matched, of two versions of each
MIN_MATCHES, MIN_SIMILARITY = 24, 0.7
_CACHE = "matches"


@dataclass(frozen=True, kw_only=True)
class CoordinateImage:
    """Scene coordinates of one image: points (N, 3) in the map, rays (N, 2), confidence (N,), NaN if unknown, and
    map_from_camera (4, 4)."""

    points: np.ndarray
    rays: np.ndarray
    confidence: np.ndarray
    map_from_camera: np.ndarray

    @property
    def points_in_camera(self) -> np.ndarray:
        """The points (N, 3) in the frame of the camera."""
        camera_from_map = invert(self.map_from_camera)
        return self.points @ camera_from_map[:3, :3].T + camera_from_map[:3, 3]


def load_coordinates(folder: Path) -> dict[str, list[CoordinateImage]]:
    """Match the images of all prepared scenes of a folder, once each. Returns them by the name of the scene.

    Raises UserError if there are none.
    """
    found = {}
    for path in sorted(folder.glob("*.npz")):
        cached = folder / _CACHE / path.name
        if not cached.exists():
            cached.parent.mkdir(exist_ok=True)
            write_arrays(cached, _to_arrays(list(match_images(CrossImageScene.load(path)))))
        images = _from_arrays(cached)
        if images:
            found[path.stem.rsplit("_", 1)[0]] = images
    if not found:
        raise UserError(f"{folder} has no prepared scenes: prepare them first.")
    return found


def match_images(scene: CrossImageScene, seed: int = 0) -> Iterator[CoordinateImage]:
    """Match each image of a scene with the landmarks of others, in two versions: with and without its neighbours."""
    rng = np.random.default_rng(seed)
    keyframes = scene.of_role(KEYFRAME)
    for image in scene.of_role(KEYFRAME, QUERY):
        for skipped in SKIPPED:
            near = _near_keyframes(scene, image, keyframes[np.abs(keyframes - image) > skipped])
            found = _match(scene, image, near, rng)
            if found is not None:
                yield found


def _near_keyframes(scene: CrossImageScene, image: int, keyframes: np.ndarray) -> np.ndarray:
    """Return the keyframes that look in about the same direction from about the same place."""
    positions = scene.poses[:, :3, 3]
    spread = np.median(np.linalg.norm(positions - np.median(positions, 0), axis=1)) + 1e-9
    distance = np.linalg.norm(positions[keyframes] - positions[image], axis=1) / spread
    angle = np.arccos(np.clip(scene.poses[keyframes, :3, 2] @ scene.poses[image, :3, 2], -1, 1))
    return keyframes[np.argsort(distance + angle)[:NEAR_KEYFRAMES]]


def _match(scene: CrossImageScene, image: int, near: np.ndarray, rng: np.random.Generator) -> CoordinateImage | None:
    """Return the mutual nearest neighbours of an image's keypoints among the landmarks of the most similar keyframes;
    None if there are few."""
    own = scene.keypoints_of(image)
    described = _unit(scene.descriptors[own])
    votes, products = [], []
    rows = [rows[scene.track[rows] >= 0] for rows in map(scene.keypoints_of, near)]
    for some in rows:
        product = described @ _unit(scene.descriptors[some]).T
        products.append(product)
        votes.append(int((product.amax(1) > MIN_SIMILARITY).sum()) if len(some) else 0)
    best = np.argsort(votes)[::-1][:MATCHED_KEYFRAMES]
    if len(best) == 0:
        return None
    product, row = torch.cat([products[each] for each in best], 1), np.concatenate([rows[each] for each in best])
    if product.shape[1] == 0:
        return None
    similarity, column = product.max(1)
    mutual = (product.argmax(0)[column] == torch.arange(len(own))).numpy()
    track, similarity_of = scene.track[row[column.numpy()]], similarity.numpy()
    order = np.flatnonzero(mutual)[np.argsort(-similarity_of[mutual])]
    chosen = order[np.unique(track[order], return_index=True)[1]]
    if len(chosen) < MIN_MATCHES:
        return None
    chosen = rng.permutation(chosen)
    fx, fy, cx, cy = scene.intrinsics[image]
    return CoordinateImage(points=scene.points[track[chosen]].astype(np.float32), confidence=similarity_of[chosen],
                           rays=((scene.pixels[own[chosen]] - (cx, cy)) / (fx, fy)).astype(np.float32),
                           map_from_camera=scene.poses[image].astype(np.float64))


def _unit(descriptors: np.ndarray) -> Tensor:
    return torch.from_numpy(descriptors).float() / DESCRIPTOR_SCALE


def _to_arrays(images: Sequence[CoordinateImage]) -> dict[str, np.ndarray]:
    if not images:
        return {}
    tokens = np.concatenate([np.c_[each.points, each.rays, each.confidence] for each in images])
    return {"tokens": tokens.astype(np.float32), "first": np.cumsum([0, *(len(each.points) for each in images)]),
            "poses": np.stack([each.map_from_camera for each in images])}


def _from_arrays(path: Path) -> list[CoordinateImage]:
    with np.load(path) as arrays:
        if not arrays.files:
            return []
        parts = np.split(arrays["tokens"], arrays["first"][1:-1])
        return [CoordinateImage(points=part[:, :3], rays=part[:, 3:5], confidence=part[:, 5], map_from_camera=pose)
                for part, pose in zip(parts, arrays["poses"], strict=True)]
