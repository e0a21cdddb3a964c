# SPDX-License-Identifier: Apache-2.0
"""Scores of keypoints and their descriptors on held-out images: the same for all encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aceg_ros.datasets import open_scene
from aceg_ros.encoders.feature_map import FeatureMap
from aceg_ros.encoders.preprocess import image_to_tensor
from aceg_ros.pretraining.encoder.chunks import fundamental_matrix, posed_views, same_direction
from aceg_ros.pretraining.encoder.rendered_pairs import RoomViews, transfer_pixels

Transfer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]      # pixels (N, 2): moved, and which are visible
Extract = Callable[[Tensor], FeatureMap]

KEYPOINTS = 800                                  # of each image, the most reliable
HIT_PX, EPIPOLAR_PX = 3.0, 1.5
MAX_EPIPOLAR_PX = 4.0                            # of matches whose precision is measured
MAX_ANGLE_DEG = 45.0


@dataclass(frozen=True, kw_only=True)
class ExactPair:
    """Two images (H, W, 3) and the transfer of pixels from the first to the second."""

    images: tuple[np.ndarray, np.ndarray]
    transfer: Transfer


@dataclass(frozen=True, kw_only=True)
class PosedPair:
    """Two images (H, W, 3) and the fundamental matrix, from pixels of the first to lines in the second."""

    images: tuple[np.ndarray, np.ndarray]
    fundamental: np.ndarray


def room_pairs(rooms: Sequence[RoomViews], per_room: int) -> list[ExactPair]:
    """Return pairs of views of rooms."""
    return [_room_pair(room, 2 * index, 2 * index + 1) for room in rooms for index in range(per_room)]


def _room_pair(room: RoomViews, a: int, b: int) -> ExactPair:
    def transfer(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inside = np.clip(pixels, 0, (room.images.shape[2] - 1, room.images.shape[1] - 1))
        found = transfer_pixels(room, inside, a, b)
        return found.pixels, found.visible

    return ExactPair(images=(room.images[a], room.images[b]), transfer=transfer)


def posed_pairs(scene: Path, count: int, gap: int) -> list[PosedPair]:
    """Return pairs of images of a scene, `gap` images from each other and spread over it, that look the same way."""
    length = len(open_scene(scene))
    starts = np.unique(np.linspace(0, length - 1 - gap, count).astype(int)).tolist()
    pairs = []
    for start in starts:
        a, b = posed_views(scene, (start, start + gap))
        if same_direction(a, b, MAX_ANGLE_DEG):
            pairs.append(PosedPair(images=(a.image, b.image), fundamental=fundamental_matrix(a, b)))
    return pairs


def exact_scores(extract: Extract, pairs: Sequence[ExactPair], device: str = "cpu") -> dict[str, float]:
    """Score pairs with exact correspondences, over the keypoints of first images that second ones show.

    Returns:
        match: share whose most similar keypoint in the second image is within 3 px of where they are; repeat: share
        with any keypoint there; error_px: median distance of the matches from there, of those that are right.
    """
    matched, repeated, errors = [], [], []
    for pair in pairs:
        (pixels, a), (others, b) = (_keypoints(extract, image, device) for image in pair.images)
        there, visible = pair.transfer(pixels)
        if not visible.any():
            continue
        there, best = there[visible], (a[torch.from_numpy(visible)] @ b.T).argmax(1).cpu().numpy()
        distance = np.linalg.norm(others[best] - there, axis=1)
        matched.append(distance < HIT_PX)
        errors.append(distance[distance < HIT_PX])
        repeated.append(np.linalg.norm(others[None] - there[:, None], axis=2).min(1) < HIT_PX)
    return {"match": float(np.concatenate(matched).mean()), "repeat": float(np.concatenate(repeated).mean()),
            "error_px": float(np.median(np.concatenate(errors)))}


def posed_scores(extract: Extract, pairs: Sequence[PosedPair], device: str = "cpu") -> dict[str, float]:
    """Score pairs of real images whose poses are known, over mutually most similar keypoints.

    Returns:
        inliers: mean number per pair within 1.5 px of their epipolar lines; share of the mutual matches that are;
        epipolar_px: median distance of those within 4 px.
    """
    counts, shares, distances = [], [], []
    for pair in pairs:
        (pixels, a), (others, b) = (_keypoints(extract, image, device) for image in pair.images)
        similarity = a @ b.T
        best, back = similarity.argmax(1), similarity.argmax(0)
        mutual = (back[best] == torch.arange(len(a), device=a.device)).cpu().numpy()
        in_a, in_b = pixels[mutual], others[best.cpu().numpy()[mutual]]
        line = np.column_stack([in_a, np.ones(len(in_a))]) @ pair.fundamental.T
        distance = np.abs((line[:, :2] * in_b).sum(1) + line[:, 2]) / np.linalg.norm(line[:, :2], axis=1)
        counts.append((distance < EPIPOLAR_PX).sum())
        shares.append((distance < EPIPOLAR_PX).mean())
        distances.append(distance[distance < MAX_EPIPOLAR_PX])
    return {"inliers": float(np.mean(counts)), "share": float(np.mean(shares)),
            "epipolar_px": float(np.median(np.concatenate(distances)))}


@torch.inference_mode()
def _keypoints(extract: Extract, image: np.ndarray, device: str) -> tuple[np.ndarray, Tensor]:
    """Return pixels (N, 2) and unit descriptors (N, C) of the most reliable keypoints of an image."""
    height, width = (side // 8 * 8 for side in image.shape[:2])
    found = extract(image_to_tensor(image[:height, :width], device))
    if found.keypoints is None or found.reliability is None:
        raise ValueError("the encoder has no keypoints")
    order = found.reliability[0].flatten().topk(min(KEYPOINTS, found.reliability[0].numel())).indices
    pixels = found.keypoints[0].flatten(1).T[order].float().cpu().numpy()
    return pixels, functional.normalize(found.features[0].float().flatten(1).T[order], dim=1)
