# SPDX-License-Identifier: Apache-2.0
"""Pairs of real images: an image with itself, and two images of one scene with verified matches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from aceg_ros.camera import Frame
from aceg_ros.encoders.compact import STRIDE
from aceg_ros.encoders.corners import find_corners
from aceg_ros.pretraining.encoder.pairs import Pair, TeacherDescriptors

POINTS_PER_IMAGE = 4000
LATER_FRAMES = 80                      # a frame is matched with some of this number of frames that follow it
MAX_ANGLE_DEG = 50.0                   # between the viewing directions of two frames that are matched
MIN_CORNER_QUALITY = 0.5
MIN_MATCHES, RATIO, MAX_EPIPOLAR_PX = 40, 0.85, 2.0


class SelfPairs:
    """Pairs of a real image with itself, to which `augment` applies different warps.

    scenes: the scene of each image. teacher: the teacher's descriptors of each image, None for images without them.
    """

    def __init__(self, images: list[np.ndarray], scenes: list[str], teacher: Sequence[TeacherDescriptors | None]):
        self._images, self._scenes, self._teacher = images, scenes, teacher

    def sample(self, rng: np.random.Generator) -> Pair:
        index = int(rng.integers(len(self._images)))
        image, described = self._images[index], self._teacher[index]
        if described is not None:
            return Pair(images=(image, image), points=(described.pixels, described.pixels), scene=self._scenes[index],
                        teacher_descriptors=described.descriptors)
        points = some_at_corners(image, rng.uniform((2, 2), (image.shape[1] - 3, image.shape[0] - 3),
                                                    (POINTS_PER_IMAGE, 2)), rng)
        return Pair(images=(image, image), points=(points, points), scene=self._scenes[index])


def some_at_corners(image: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Replace up to half of the points (N, 2) by corners of the image (H, W, 3), where maps sample descriptors."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255.0
    corners, quality = find_corners(grey, STRIDE)
    corners = corners[quality > MIN_CORNER_QUALITY]
    height, width = grey.shape
    corners = corners[(corners > 2).all(1) & (corners < (width - 3, height - 3)).all(1)]
    chosen = rng.permutation(len(corners))[:len(points) // 2]
    return np.concatenate([corners[chosen].astype(points.dtype), points[len(chosen):]])


@dataclass(frozen=True, kw_only=True)
class ImageMatches:
    """Matched pixels (N, 2) of images a and b (indices into the list of images)."""

    a: int
    b: int
    points_a: np.ndarray
    points_b: np.ndarray


class MatchedPairs:
    """Two real images of one scene with verified matches."""

    def __init__(self, images: list[np.ndarray], scenes: list[str], matches: list[ImageMatches]):
        self._images, self._scenes, self._matches = images, scenes, matches

    def sample(self, rng: np.random.Generator) -> Pair:
        match = self._matches[int(rng.integers(len(self._matches)))]
        images, points = (self._images[match.a], self._images[match.b]), (match.points_a, match.points_b)
        if rng.uniform() < 0.5:
            images, points = images[::-1], points[::-1]
        return Pair(images=images, points=points, scene=self._scenes[match.a])


def match_frames(frames: Sequence[Frame], seed: int, per_frame: int = 6) -> list[ImageMatches]:
    """Match each frame with some later ones by SIFT, and keep matches close to the epipolar lines of the poses."""
    rng = np.random.default_rng(seed)
    sift = cv2.SIFT.create(1500)
    described = [sift.detectAndCompute(cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY), None) for frame in frames]
    poses = [np.asarray(frame.map_from_camera) for frame in frames]
    found = []
    for a in range(len(frames)):
        later = np.arange(a + 1, min(a + LATER_FRAMES, len(frames)))
        if len(later) == 0:
            continue
        for b in rng.choice(later, min(per_frame, len(later)), replace=False).tolist():
            if poses[a][:3, 2] @ poses[b][:3, 2] < np.cos(np.radians(MAX_ANGLE_DEG)):
                continue
            points_a, points_b = _verified_matches(described[a], described[b],
                                                   _fundamental_matrix(frames[a], frames[b]))
            if len(points_a) >= MIN_MATCHES:
                found.append(ImageMatches(a=a, b=b, points_a=points_a, points_b=points_b))
    return found


def _fundamental_matrix(a: Frame, b: Frame) -> np.ndarray:
    """Return the fundamental matrix (3, 3), which maps pixels of a to epipolar lines in b."""
    b_from_a = np.linalg.inv(np.asarray(b.map_from_camera)) @ np.asarray(a.map_from_camera)
    tx, ty, tz = b_from_a[:3, 3]
    essential = np.array([[0, -tz, ty], [tz, 0, -tx], [-ty, tx, 0]]) @ b_from_a[:3, :3]
    return np.linalg.inv(b.camera.K).T @ essential @ np.linalg.inv(a.camera.K)


def _verified_matches(described_a, described_b, fundamental: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    (keypoints_a, vectors_a), (keypoints_b, vectors_b) = described_a, described_b
    if len(keypoints_a) < 2 or len(keypoints_b) < 2:
        return np.empty((0, 2)), np.empty((0, 2))
    candidates = cv2.BFMatcher().knnMatch(vectors_a, vectors_b, k=2)
    good = [first for first, second in candidates if first.distance < RATIO * second.distance]
    points_a = np.array([keypoints_a[m.queryIdx].pt for m in good]).reshape(-1, 2)
    points_b = np.array([keypoints_b[m.trainIdx].pt for m in good]).reshape(-1, 2)
    homogeneous_a, homogeneous_b = (np.column_stack([p, np.ones(len(p))]) for p in (points_a, points_b))
    line = homogeneous_a @ fundamental.T
    distance = np.abs((line * homogeneous_b).sum(1)) / np.maximum(np.linalg.norm(line[:, :2], axis=1), 1e-12)
    return points_a[distance < MAX_EPIPOLAR_PX], points_b[distance < MAX_EPIPOLAR_PX]
