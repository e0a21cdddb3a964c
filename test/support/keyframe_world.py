# SPDX-License-Identifier: Apache-2.0
"""A made-up world for keyframe databases, without an encoder: random descriptors, exact projections."""

import numpy as np
import torch
from torch.nn import functional

from aceg_ros.camera import Camera
from aceg_ros.encoders.keypoints import Keypoints
from aceg_ros.geometry import look_at
from aceg_ros.mapping.build_database import train_vocabulary
from aceg_ros.maps.keyframe_database import DESCRIPTOR_SCALE, PIXEL_SCALE, KeyframeDatabase
from aceg_ros.maps.retrieval import assign_words

CAMERA = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=319.5, cy=239.5)
STRIDE, DIM = 8, 64
PLACES, LANDMARKS = 4, 400          # groups of landmarks, each seen from its own side, and their number


class NoEncoder:
    """Stands for the encoder of a localizer that is given keypoints."""

    device, stride = "cpu", STRIDE


def view(points: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (M, 2) and indices (M,) of the points in the image of a camera at a pose, one a cell."""
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    pixels = local[:, :2] / np.maximum(local[:, 2:], 1e-3) * 500.0 + (319.5, 239.5)
    inside = (local[:, 2] > 0.1) & (pixels > 0).all(1) & (pixels < (638, 478)).all(1)
    index = np.flatnonzero(inside)
    cells = (pixels[index] + 0.5) // STRIDE @ (1, 80)
    _, first = np.unique(cells, return_index=True)
    return pixels[index[first]], index[first]


class World:
    """Landmarks on four walls, keyframes that look at each, and descriptors with noise of their own in each image."""

    def __init__(self, seed: int = 0, same_walls: bool = False):
        self.rng = np.random.default_rng(seed)
        local = np.column_stack([self.rng.uniform(-3, 3, LANDMARKS), self.rng.uniform(3.5, 4.5, LANDMARKS),
                                 self.rng.uniform(-2, 2, LANDMARKS)])
        turns = [np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1.0]])
                 for a in np.arange(PLACES) * np.pi / 2]
        self.turns = turns
        walls = [local @ turn.T for turn in turns]
        self.points = np.concatenate(walls)
        count = LANDMARKS if same_walls else PLACES * LANDMARKS
        descriptors = functional.normalize(torch.from_numpy(self.rng.normal(size=(count, DIM))).float(), dim=1)
        self.descriptors = descriptors.repeat(PLACES, 1) if same_walls else descriptors

    def pose(self, place: int, aside_m: float = 0.0) -> np.ndarray:
        turn = self.turns[place]
        return look_at(turn @ np.array([aside_m, 0.0, 0.1 * aside_m]), turn @ np.array([0.5 * aside_m, 4.0, 0.0]))

    def keypoints(self, pose: np.ndarray, noise_px: float = 0.5, clutter: int = 0) -> tuple[Keypoints, np.ndarray]:
        """The image of the world at a pose, and the landmark of each keypoint; clutter: keypoints of no landmark."""
        pixels, index = view(self.points, pose)
        cells = ((pixels + 0.5) // STRIDE @ (1, 80)).astype(int)
        free = self.rng.permutation(np.setdiff1d(np.arange(80 * 60), cells))[:clutter]
        noise = torch.from_numpy(self.rng.normal(0, 0.08, (len(index) + len(free), DIM))).float()
        other = functional.normalize(torch.from_numpy(self.rng.normal(size=(len(free), DIM))).float(), dim=1)
        descriptors = functional.normalize(torch.cat([self.descriptors[index], other]) + noise, dim=1)
        pixels = np.concatenate([pixels + self.rng.normal(0, noise_px, pixels.shape),
                                 np.column_stack([free % 80, free // 80]) * STRIDE + 3.5])
        found = Keypoints(pixels=pixels.astype(np.float32), descriptors=descriptors, cells=np.r_[cells, free],
                          map_size=(60, 80), stride=STRIDE, camera=CAMERA)
        return found, np.r_[index, np.full(len(free), -1)]

    def database(self) -> KeyframeDatabase:
        poses = [self.pose(place, aside) for place in range(PLACES) for aside in (-0.6, -0.2, 0.2, 0.6)]
        images = [self.keypoints(pose) for pose in poses]
        descriptors = torch.cat([found.descriptors for found, _ in images])
        vocabulary = train_vocabulary(descriptors, 256, 0)
        return KeyframeDatabase(
            poses=torch.from_numpy(np.stack(poses)).float(),
            intrinsics=torch.tensor([[500.0, 500.0, 319.5, 239.5]] * 16),
            sizes=torch.tensor([[640, 480]] * 16, dtype=torch.int32),
            first=torch.from_numpy(np.cumsum([0] + [len(found) for found, _ in images])),
            landmarks=torch.from_numpy(np.concatenate([index for _, index in images]).astype(np.int32)),
            pixels=torch.from_numpy(np.concatenate([found.pixels for found, _ in images]) * PIXEL_SCALE).short(),
            descriptors=(descriptors * DESCRIPTOR_SCALE).round().to(torch.int8),
            words=assign_words(descriptors, vocabulary).to(torch.int16), points=torch.from_numpy(self.points).float(),
            vocabulary=(vocabulary * DESCRIPTOR_SCALE).round().to(torch.int8))
