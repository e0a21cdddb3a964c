# SPDX-License-Identifier: Apache-2.0
"""Pairs of mapping images that show the same, and where: found in the images alone, whatever their poses say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np
import poselib

from aceg_ros.encoders.sift import root_sift
from aceg_ros.mapping.augmentation import PreparedFrame

SHORT_SIDE_PX = 300             # of the images that are matched: 10 ms each
MAX_KEYPOINTS = 500
ANCHORS = 12                    # images, spread over the recording, that are paired with a later one
FIRST_OFFSET, MAX_OFFSET = 4, 256     # between the images of a pair
ENOUGH_PAIRS = 7
MAX_COMBINED = 20               # images of which all pairs are tried if there are not
MAX_TRIES = 4                   # offsets, at an anchor
MAX_RATIO = 0.8                 # of the distances of the nearest and the second nearest descriptor
MIN_MATCHES = 20                # that one relative pose explains
MIN_MATCH_SHARE = 0.4           # of all matches
MIN_MOTION_RAD = np.radians(4.0)      # of a pair, the median of its matches: less tells little
STILL_RAD = np.radians(0.4)     # matches that do not move: of the robot itself, or of a mark in the image
MIN_MOVING_SHARE = 0.6          # of the matches: else the camera stands still
MAX_ERROR_PX = 1.5


@dataclass(frozen=True, kw_only=True)
class ImagePair:
    """Two images, by index, and the directions (N, 3) of unit length in which both cameras see the same points.

    rotation (3, 3): b_from_a, of these matches alone.
    """

    a: int
    b: int
    rays_a: np.ndarray
    rays_b: np.ndarray
    rotation: np.ndarray

    @property
    def motion_rad(self) -> np.ndarray:
        """The angles (N,) by which the points move from one image to the other."""
        return np.arccos(np.clip((self.rays_a * self.rays_b).sum(1), -1.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class _Keypoints:
    """Root-SIFT descriptors (N, 128), pixels (N, 2) less the principal point, and the focal lengths (2,)."""

    descriptors: np.ndarray
    pixels: np.ndarray
    focal: np.ndarray


class PairFinder:
    """Finds pairs of images by matching a few of them."""

    def __init__(self, frames: Sequence[PreparedFrame]):
        self._frames = frames
        self._keypoints: dict[int, _Keypoints] = {}
        self._sift = cv2.SIFT.create(nfeatures=MAX_KEYPOINTS)

    def find(self) -> list[ImagePair]:
        """Pairs that move enough to tell poses from each other: of images that follow each other, and if these are few,
        of any."""
        count = len(self._frames)
        pairs: list[ImagePair] = []
        offset = min(FIRST_OFFSET, count - 1)
        for anchor in np.unique(np.linspace(0, count - 2, min(ANCHORS, count - 1)).round().astype(int)):
            pair, offset = self._pair_of(int(anchor), offset)
            if pair is not None:
                pairs.append(pair)
        return pairs if len(pairs) >= ENOUGH_PAIRS else self._more_pairs(pairs)

    def _more_pairs(self, pairs: list[ImagePair]) -> list[ImagePair]:
        """Add pairs of the images that were extracted, until there are enough."""
        known, tried = sorted(self._keypoints), {(pair.a, pair.b) for pair in pairs}
        for a, b in combinations(known[::-(-len(known) // MAX_COMBINED)], 2):
            if len(pairs) >= ENOUGH_PAIRS:
                break
            pair = None if (a, b) in tried else self.match(a, b)
            if pair is not None and np.median(pair.motion_rad) >= MIN_MOTION_RAD:
                pairs.append(pair)
        return pairs

    def _pair_of(self, anchor: int, offset: int) -> tuple[ImagePair | None, int]:
        """The pair of an image with a later one, and the offset to begin with at the next image."""
        lost = len(self._frames)                # the smallest offset at which nothing was recognised
        for _ in range(MAX_TRIES):
            offset = max(min(offset, len(self._frames) - 1 - anchor), 1)
            pair = self.match(anchor, anchor + offset)
            if pair is None:
                lost, following = offset, offset // 3
            elif np.median(pair.motion_rad) >= MIN_MOTION_RAD:
                return pair, offset
            else:
                following = min(2 * offset, MAX_OFFSET)
            if not 0 < following < lost or following == offset:
                break
            offset = following
        return None, offset

    def match(self, a: int, b: int) -> ImagePair | None:
        """The pair of these images; None if they do not surely show the same."""
        first, second = self._extract(a), self._extract(b)
        index_a, index_b = _mutual_matches(first.descriptors, second.descriptors)
        if len(index_a) < MIN_MATCHES:
            return None
        pixels_a, pixels_b = first.pixels[index_a], second.pixels[index_b]
        normalized = [pixels / keypoints.focal for pixels, keypoints in ((pixels_a, first), (pixels_b, second))]
        rays = [np.column_stack([xy, np.ones(len(xy))]) for xy in normalized]
        rays_a, rays_b = (ray / np.linalg.norm(ray, axis=1, keepdims=True) for ray in rays)
        moves = np.arccos(np.clip((rays_a * rays_b).sum(1), -1, 1)) > STILL_RAD
        if moves.mean() < MIN_MOVING_SHARE:         # the camera stands still, and somebody walks by
            moves[:] = True
        if moves.sum() < MIN_MATCHES:
            return None
        cameras = [{"model": "PINHOLE", "width": 1, "height": 1, "params": [*keypoints.focal, 0.0, 0.0]}
                   for keypoints in (first, second)]
        pose, report = poselib.estimate_relative_pose(
            pixels_a[moves], pixels_b[moves], *cameras,
            {"max_epipolar_error": MAX_ERROR_PX, "max_iterations": 300, "min_iterations": 50, "seed": 0}, {})
        inliers = np.array(report["inliers"], bool)
        if inliers.sum() < max(MIN_MATCHES, MIN_MATCH_SHARE * moves.sum()):
            return None
        return ImagePair(a=a, b=b, rays_a=rays_a[moves][inliers], rays_b=rays_b[moves][inliers],
                         rotation=np.array(pose.R))

    def _extract(self, index: int) -> _Keypoints:
        if index not in self._keypoints:
            frame = self._frames[index]
            grey = cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY)
            scale = min(SHORT_SIDE_PX / min(grey.shape), 1.0)
            size = round(grey.shape[1] * scale), round(grey.shape[0] * scale)
            small, camera = cv2.resize(grey, size, interpolation=cv2.INTER_AREA), frame.camera.resized(*size)
            mask = None if frame.mask is None else \
                cv2.resize(frame.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
            found, descriptors = self._sift.detectAndCompute(small, mask)
            pixels = np.array([keypoint.pt for keypoint in found], np.float64).reshape(-1, 2)
            if descriptors is None:
                descriptors = np.zeros((0, 128), np.float32)
            self._keypoints[index] = _Keypoints(
                descriptors=root_sift(descriptors),
                pixels=pixels - (camera.cx, camera.cy), focal=np.array([camera.fx, camera.fy]))
        return self._keypoints[index]


def _mutual_matches(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of descriptors that are each other's nearest, and clearly so."""
    if len(a) < 2 or len(b) < 2:
        return np.zeros(0, int), np.zeros(0, int)
    similarity = a @ b.T
    nearest = similarity.argmax(1)
    best = np.partition(similarity, -2, axis=1)[:, -2:]
    distance = np.sqrt(np.maximum(2.0 - 2.0 * best, 0.0))
    mutual = similarity.argmax(0)[nearest] == np.arange(len(a))
    chosen = np.flatnonzero(mutual & (distance[:, 1] < MAX_RATIO * distance[:, 0]))
    return chosen, nearest[chosen]
