# SPDX-License-Identifier: Apache-2.0
"""Training samples of the keypoint encoder: crops of two images with matched points and, where the correspondence is
exact, what transfers any pixel of the first crop to the second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from aceg_ros.encoders.compact import STRIDE
from aceg_ros.encoders.corners import find_corners
from aceg_ros.pretraining.encoder.augment import noisy, photometric, random_warp, relit
from aceg_ros.pretraining.encoder.chunks import Chunk
from aceg_ros.pretraining.encoder.rendered_pairs import RoomViews, transfer_pixels

MIN_POINTS, MARGIN_PX = 24, 4.0
MIN_SCORE = 0.3                                # of the teacher's keypoints; the places of weaker ones cannot be learned
CORNER_WEIGHT, MIN_CORNER_QUALITY = 0.4, 0.4   # these count less than the teacher's, whose scores reach 1
SHARP_SHARE = 0.5                              # of the crops: light changes, but no blur and noise hide the details
DARK_SHARE = 0.2                               # of the others are underexposed, before further changes
ONE_FLOOR = "ie_"                              # scenes of one tower, whose floors look alike: no negatives


@dataclass(frozen=True, kw_only=True)
class Surface:
    """The surface that two images of a pinhole camera show: depth_m (2, H, W) of both, b_from_a (4, 4) their relative
    pose, and the camera's focal length, in pixels; its principal point is the middle of the image."""

    depth_m: np.ndarray
    b_from_a: np.ndarray
    focal_px: float


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Moves pixels of a first crop to a second one: `back` (3, 3) into the first image, of size (width, height); along
    the surface into the second image, the same one if `surface` is None; `forward` (3, 3) into the second crop."""

    back: np.ndarray
    forward: np.ndarray
    size: tuple[int, int]
    surface: Surface | None = None


@dataclass(frozen=True, kw_only=True)
class KeypointSample:
    """Two crops (2, H, W, 3) uint8 of a scene.

    points: (2, N, 2) matched pixels, N may be 0; descriptors: (2, N, 128) of a teacher there, or None. detections: for
    each crop, where keypoints should be (K, 3), pixels and weights: a teacher's, and corners of the image before its
    brightness was changed. transfer: None if it is not known exactly.
    """

    images: np.ndarray
    scene: str
    points: np.ndarray
    descriptors: np.ndarray | None
    detections: tuple[np.ndarray, np.ndarray]
    transfer: Transfer | None


@dataclass(frozen=True, kw_only=True)
class CropSize:
    """Size of the crops, in pixels."""

    width: int
    height: int

    def inside(self, pixels: np.ndarray) -> np.ndarray:
        """Return which pixels (N, 2) are inside a crop, not at its edge."""
        largest = np.array([self.width, self.height]) - 1 - MARGIN_PX
        return np.all((pixels > MARGIN_PX) & (pixels < largest), axis=1)


class SampleSource(Protocol):
    """Draws samples; None if the drawn images share too little."""

    def draw(self, rng: np.random.Generator, size: CropSize) -> KeypointSample | None: ...


class ChunkFiles:
    """The chunks in a folder; those that are written later are found by `refresh`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._seen = folder, set[str]()
        self._chunks: tuple[list[Chunk], np.ndarray] = ([], np.empty(0))
        self.refresh()

    def __len__(self) -> int:
        return len(self._chunks[0])

    def refresh(self) -> None:
        """Load chunks that have been written since the last call. Other threads may pick meanwhile."""
        new = [path for path in sorted(self._folder.glob("*.npz")) if path.name not in self._seen]
        self._seen |= {path.name for path in new}
        chunks = self._chunks[0] + [Chunk.load(path) for path in new]
        scenes = Counter(chunk.scene for chunk in chunks)
        weights = np.array([scenes[chunk.scene]**-0.5 for chunk in chunks])
        self._chunks = chunks, weights / max(weights.sum(), 1e-9)

    def pick(self, rng: np.random.Generator) -> Chunk:
        """Pick a chunk at random, such that scenes of many chunks come up more often, but not in proportion."""
        chunks, weights = self._chunks
        return chunks[int(rng.choice(len(chunks), p=weights))]


class WarpedImages:
    """An image with itself, under two random warps."""

    def __init__(self, files: ChunkFiles) -> None:
        self._files = files

    def draw(self, rng: np.random.Generator, size: CropSize) -> KeypointSample | None:
        chunk = self._files.pick(rng)
        index = int(rng.integers(len(chunk.images)))
        found, image = chunk.detections[index], chunk.images[index]
        if len(found.pixels) < MIN_POINTS:
            return None
        anchor = found.pixels[rng.integers(len(found.pixels))]
        warps = _warps(rng, (anchor, anchor), size)
        transfer = Transfer(back=np.linalg.inv(warps[0]), forward=warps[1], size=(image.shape[1], image.shape[0]))
        matched = found.pixels[:len(found.descriptors)]
        return _sample(rng, size, images=(image, image), warps=warps, scene=chunk.scene,
                       detections=(found.scored, found.scored), points=(matched, matched),
                       descriptors=(found.descriptors, found.descriptors), transfer=transfer)


class MatchedImages:
    """Two images of one scene with a teacher's verified matches."""

    def __init__(self, files: ChunkFiles) -> None:
        self._files = files

    def draw(self, rng: np.random.Generator, size: CropSize) -> KeypointSample | None:
        chunk = self._files.pick(rng)
        if not chunk.matches:
            return None
        match = chunk.matches[int(rng.integers(len(chunk.matches)))]
        sides = [(match.a, match.indices[:, 0]), (match.b, match.indices[:, 1])]
        (a, index_a), (b, index_b) = sides if rng.uniform() < 0.5 else sides[::-1]
        found = chunk.detections[a], chunk.detections[b]
        points = found[0].pixels[index_a], found[1].pixels[index_b]
        anchor = int(rng.integers(len(index_a)))
        warps = _warps(rng, (points[0][anchor], points[1][anchor]), size)
        return _sample(rng, size, images=(chunk.images[a], chunk.images[b]), warps=warps, scene=chunk.scene,
                       detections=(found[0].scored, found[1].scored), points=points,
                       descriptors=(found[0].descriptors[index_a], found[1].descriptors[index_b]), transfer=None)


class RenderedRooms:
    """Two views of a rendered room, whose depth gives exact correspondences."""

    def __init__(self, rooms: Sequence[RoomViews], names: Sequence[str]) -> None:
        self._rooms, self._names = rooms, names

    def draw(self, rng: np.random.Generator, size: CropSize) -> KeypointSample | None:
        index = int(rng.integers(len(self._rooms)))
        room = self._rooms[index]
        a, b = (int(view) for view in rng.choice(len(room.images), 2, replace=False))
        pixels = rng.uniform((2, 2), np.array(room.images.shape[2:0:-1]) - 3, (64, 2))
        common = transfer_pixels(room, pixels, a, b)
        if not common.visible.any():
            return None
        anchor = int(rng.choice(np.flatnonzero(common.visible)))
        warps = _warps(rng, (pixels[anchor], common.pixels[anchor]), size)

        surface = Surface(depth_m=room.depth_m[[a, b]], b_from_a=np.linalg.inv(room.poses[b]) @ room.poses[a],
                          focal_px=room.focal_px)
        transfer = Transfer(back=np.linalg.inv(warps[0]), forward=warps[1], surface=surface,
                            size=(room.images.shape[2], room.images.shape[1]))
        empty, unscored = np.empty((0, 2)), np.empty((0, 3))
        return _sample(rng, size, images=(room.images[a], room.images[b]), warps=warps, scene=self._names[index],
                       detections=(unscored, unscored), points=(empty, empty), descriptors=None, transfer=transfer)


def warped(pixels: np.ndarray, warp: np.ndarray) -> np.ndarray:
    """Move pixels (N, 2) by a homography (3, 3)."""
    if len(pixels) == 0:
        return np.empty((0, 2))
    return cv2.perspectiveTransform(np.asarray(pixels, float).reshape(-1, 1, 2), warp)[:, 0]


def _warps(rng, anchors: tuple[np.ndarray, np.ndarray], size: CropSize) -> tuple[np.ndarray, np.ndarray]:
    common_scale = np.exp(rng.uniform(np.log(0.6), np.log(1.3)))
    first, second = (random_warp(rng, anchor, (size.width, size.height), common_scale) for anchor in anchors)
    return first, second


def _sample(rng: np.random.Generator, size: CropSize, *, images: tuple[np.ndarray, np.ndarray],
            warps: tuple[np.ndarray, np.ndarray], scene: str, detections: tuple[np.ndarray, np.ndarray],
            points: tuple[np.ndarray, np.ndarray], descriptors: tuple[np.ndarray, np.ndarray] | None,
            transfer: Transfer | None) -> KeypointSample | None:
    """Warp both images and all that is known of them. points, descriptors: matched, each (N, ...)."""
    moved = [warped(side, warp) for side, warp in zip(points, warps, strict=True)]
    kept = size.inside(moved[0]) & size.inside(moved[1])
    if transfer is None and kept.sum() < MIN_POINTS:
        return None
    crops, corners = [], []
    for image, warp in zip(images, warps, strict=True):
        border = rng.uniform(0, 255, 3).tolist()
        crop = cv2.warpPerspective(image, warp, (size.width, size.height), flags=cv2.INTER_LINEAR, borderValue=border)
        corners.append(_corners(crop))
        crops.append(relit(crop, rng) if rng.uniform() < SHARP_SHARE else photometric(_darkened(crop, rng), rng))
    found = []
    for side, warp, additional in zip(detections, warps, corners, strict=True):
        there = warped(side[:, :2], warp)
        sure = side[:, 2] > MIN_SCORE
        every = np.concatenate([np.column_stack([there, side[:, 2]])[sure], additional])
        found.append(every[size.inside(every[:, :2])])
    return KeypointSample(
        images=np.stack(crops), scene=ONE_FLOOR if scene.startswith(ONE_FLOOR) else scene,
        points=np.stack([side[kept] for side in moved]),
        descriptors=None if descriptors is None else np.stack([side[kept[:len(side)]] for side in descriptors]),
        detections=(found[0], found[1]), transfer=transfer)


def _corners(image: np.ndarray) -> np.ndarray:
    """Return the strongest corner of each cell of an image, if there is a clear one: pixels and weights (K, 3)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255.0
    pixels, quality = find_corners(grey, STRIDE)
    clear = quality > MIN_CORNER_QUALITY
    return np.column_stack([pixels[clear], CORNER_WEIGHT * quality[clear]])


def _darkened(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Underexpose some images, with the noise and the coarse steps that come with it."""
    if rng.uniform() >= DARK_SHARE:
        return image
    dark = noisy(image, rng, rng.uniform(0.5, 3.0), factor=rng.uniform(0.08, 0.4))
    if rng.uniform() < 0.5:                    # as from a camera that raises its gain
        return cv2.convertScaleAbs(dark, alpha=rng.uniform(1.5, 5.0))
    return dark
