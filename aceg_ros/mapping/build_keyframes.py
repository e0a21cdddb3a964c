# SPDX-License-Identifier: Apache-2.0
"""Builds the posed keyframes of a map without landmarks: keypoints, visual words, measured depths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from aceg_ros.encoders.base import Encoder
from aceg_ros.mapping.augmentation import PreparedFrame
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.build_database import extract_images, train_vocabulary
from aceg_ros.mapping.matching import measured_depths
from aceg_ros.maps.keyframe_database import PIXEL_SCALE, quantised
from aceg_ros.maps.posed_keyframes import PosedKeyframes
from aceg_ros.maps.retrieval import assign_words

DESCRIPTORS_PER_WORD, MAX_WORDS = 8, 4096


def select_views(poses: np.ndarray, count: int) -> np.ndarray:
    """Select up to `count` of poses (F, 4, 4) that are far from each other in position and viewing direction.

    Starts with the first, and takes the farthest from all that were taken, positions being measured in their extent.
    Returns their indices, ascending.
    """
    if len(poses) <= count:
        return np.arange(len(poses))
    extent = max(float(np.linalg.norm(np.ptp(poses[:, :3, 3], axis=0))), 1e-9)
    views = np.concatenate([poses[:, :3, 3] / extent, poses[:, :3, 2] / 2.0], axis=1)
    chosen, distance = [0], np.linalg.norm(views - views[0], axis=1)
    while len(chosen) < count:
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, np.linalg.norm(views - views[chosen[-1]], axis=1))
    return np.sort(chosen)


def build_keyframes(frames: Sequence[PreparedFrame], encoder: Encoder, *, keypoints: int, seed: int,
                    budget: MappingBudget) -> tuple[PosedKeyframes, np.ndarray] | None:
    """Extract up to `keypoints` of each frame, and make them keyframes, until the budget is over.

    Returns the keyframes and the indices of their frames, None if no frame has a keypoint.
    """
    numbers, images = extract_images(frames, np.arange(len(frames)), encoder, keypoints=keypoints, budget=budget)
    if not images:
        return None
    used = [frames[number] for number in numbers]
    descriptors = torch.cat([image.features.float().cpu() for image in images])
    words = max(min(MAX_WORDS, len(descriptors) // DESCRIPTORS_PER_WORD), 1)
    vocabulary = train_vocabulary(descriptors, words, seed)
    depths = torch.cat([measured_depths(frame, image).cpu() for frame, image in zip(used, images, strict=True)])
    return PosedKeyframes(
        poses=torch.from_numpy(np.stack([frame.map_from_camera for frame in used])).float(),
        intrinsics=torch.stack([image.intrinsics.cpu() for image in images]).float(),
        sizes=torch.tensor([[frame.camera.width, frame.camera.height] for frame in used], dtype=torch.int32),
        first=torch.from_numpy(np.cumsum([0] + [len(image.pixels) for image in images])),
        pixels=torch.cat([image.pixels.cpu() * PIXEL_SCALE for image in images]).round().to(torch.int16),
        descriptors=quantised(descriptors), depths_m=depths.half(),
        words=assign_words(descriptors, vocabulary).to(torch.int16),
        vocabulary=quantised(vocabulary)), np.array(numbers)
