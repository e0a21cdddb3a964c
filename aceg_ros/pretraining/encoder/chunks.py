# SPDX-License-Identifier: Apache-2.0
"""Prepared real images: chunks of a few images of one scene with a teacher's detections, and verified matches of it.

Each chunk is one file. So preparation can stop and go on at any time, and a training may start on the first chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from aceg_ros.camera import Camera
from aceg_ros.datasets import load_image, open_scene
from aceg_ros.datasets.files import list_images
from aceg_ros.datasets.scene import natural_order
from aceg_ros.encoders.preprocess import working_size
from aceg_ros.pretraining.common.run import write_arrays
from aceg_ros.pretraining.encoder.teacher import Detections, Teacher

IMAGES, MATCHES_PER_IMAGE = 12, 2
LARGEST_PX, SHORT_SIDE_PX = 520, 384          # larger images are resized to this shorter side
MAX_ANGLE_DEG, MAX_EPIPOLAR_PX, MIN_MATCHES = 60.0, 2.0, 24


@dataclass(frozen=True, kw_only=True)
class Match:
    """Matched keypoints of images a and b of a chunk: indices (N, 2) of their detections."""

    a: int
    b: int
    indices: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Images (H, W, 3) of one scene, what the teacher detects in each, and matches between some of them."""

    scene: str
    images: list[np.ndarray]
    detections: list[Detections]
    matches: list[Match]

    def save(self, path: Path) -> None:
        arrays: dict[str, np.ndarray] = {"scene": np.array(self.scene)}
        for index, (image, found) in enumerate(zip(self.images, self.detections, strict=True)):
            arrays |= {f"image_{index}": image, f"pixels_{index}": found.pixels, f"scores_{index}": found.scores,
                       f"descriptors_{index}": found.descriptors}
        for index, match in enumerate(self.matches):
            arrays |= {f"match_{index}": match.indices.astype(np.int16), f"sides_{index}": np.array([match.a, match.b])}
        write_arrays(path, arrays)

    @classmethod
    def load(cls, path: Path) -> Chunk:
        with np.load(path) as arrays:
            names = set(arrays.files)
            count = sum(name.startswith("image_") for name in names)
            pairs = sum(name.startswith("match_") for name in names)
            return cls(scene=str(arrays["scene"]), images=[arrays[f"image_{i}"] for i in range(count)],
                       detections=[Detections(pixels=arrays[f"pixels_{i}"], scores=arrays[f"scores_{i}"],
                                              descriptors=arrays[f"descriptors_{i}"]) for i in range(count)],
                       matches=[Match(a=int(arrays[f"sides_{i}"][0]), b=int(arrays[f"sides_{i}"][1]),
                                      indices=arrays[f"match_{i}"].astype(np.int64)) for i in range(pairs)])


@dataclass(frozen=True, kw_only=True)
class View:
    """An image with, if it has a pose, its camera and map-from-camera pose."""

    image: np.ndarray
    camera: Camera | None = None
    pose: np.ndarray | None = None


def prepare_chunks(scenes: Sequence[Path], folders: Sequence[Path], cache: Path, device: str = "cpu") -> None:
    """Prepare what is missing of the chunks of scenes (with poses) and of folders of images (without): first one chunk
    of each, then the next one of each, so that a training that has begun soon has seen some of all.

    Args:
        scenes: recordings; mapping parts alone.
        folders: of images.
        cache: where the files are written, NAME_NUMBER.npz.
        device: that the teacher computes on.

    Raises:
        UserError: a scene cannot be read, or the teacher is not installed.
    """
    teacher = Teacher(device)
    cv2.setNumThreads(1)
    sources = [(path, True) for path in scenes] + [(path, False) for path in folders]
    lengths = [len(open_scene(path)) if posed else len(list_images(path)) for path, posed in sources]
    for number in range(max(-(-length // IMAGES) for length in lengths)):
        for (path, posed), length in zip(sources, lengths, strict=True):
            name = scene_name(path)
            target = cache / f"{name}_{number:03d}.npz"
            chosen = chunk_indices(length, number)
            if len(chosen) < 2 or target.exists():
                continue
            views = list(posed_views(path, chosen) if posed else plain_views(path, chosen))
            chunk = make_chunk(name, views, teacher, np.random.default_rng((number, length)))
            chunk.save(target)
            print(f"{target.name}: {len(views)} images, {len(chunk.matches)} matched pairs, matches"
                  f" {int(np.median([len(m.indices) for m in chunk.matches] or [0]))}", flush=True)


def scene_name(path: Path) -> str:
    """Return the name of the scene that a recording or a folder of images shows."""
    return path.parent.name if path.name in ("mapping", "rgb") else path.name


def chunk_indices(length: int, number: int) -> list[int]:
    """Return the images of chunk `number` of a scene: neighbours in time, spread over a window twice as long.

    Windows alternate, even images of a window and then its odd ones, and begin in the middle of the scene.
    """
    count = -(-length // IMAGES)
    if number >= count:
        return []
    number = (number + count // 2) % count
    window, odd = divmod(number, 2)
    return list(range(window * 2 * IMAGES + odd, min((window + 1) * 2 * IMAGES, length), 2))


def make_chunk(name: str, views: Sequence[View], teacher: Teacher, rng: np.random.Generator) -> Chunk:
    """Detect keypoints in the views and match some pairs of them."""
    detections = [teacher.detect(view.image) for view in views]
    matches = []
    for a in range(len(views) - 1):
        later = np.arange(a + 1, len(views))
        for b in rng.choice(later, min(MATCHES_PER_IMAGE, len(later)), replace=False).tolist():
            if not same_direction(views[a], views[b], MAX_ANGLE_DEG):
                continue
            size_a, size_b = ((view.image.shape[1], view.image.shape[0]) for view in (views[a], views[b]))
            indices = teacher.match(detections[a], detections[b], (size_a, size_b))
            points = detections[a].pixels[indices[:, 0]], detections[b].pixels[indices[:, 1]]
            indices = indices[_verified(views[a], views[b], points)]
            if len(indices) >= MIN_MATCHES:
                matches.append(Match(a=a, b=b, indices=indices))
    return Chunk(scene=name, images=[view.image for view in views], detections=detections, matches=matches)


def posed_views(path: Path, chosen: Sequence[int]) -> Iterator[View]:
    """Load some images of a recording with their poses, large ones resized."""
    scene = open_scene(path)
    for index in chosen:
        frame = scene.frame(index).rectified()[0]
        image = _resized(frame.image)
        yield View(image=image, camera=frame.camera.resized(image.shape[1], image.shape[0]),
                    pose=np.asarray(frame.map_from_camera))


def plain_views(path: Path, chosen: Sequence[int]) -> Iterator[View]:
    files = sorted(list_images(path), key=natural_order)
    for index in chosen:
        yield View(image=_resized(load_image(files[index])))


def _resized(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    if max(width, height) <= LARGEST_PX:
        return np.ascontiguousarray(image)
    return cv2.resize(image, working_size(width, height, SHORT_SIDE_PX, 8), interpolation=cv2.INTER_AREA)


def same_direction(a: View, b: View, max_angle_deg: float) -> bool:
    """Return whether two views look the same way, within an angle; true where it is not known."""
    if a.pose is None or b.pose is None:
        return True
    return bool(a.pose[:3, 2] @ b.pose[:3, 2] > np.cos(np.radians(max_angle_deg)))


def _verified(a: View, b: View, points: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return which matches (N,) agree with the poses or, without poses, with a fundamental matrix found by RANSAC."""
    if len(points[0]) < MIN_MATCHES:
        return np.zeros(len(points[0]), bool)
    if a.camera is None or b.camera is None or a.pose is None or b.pose is None:
        _, inliers = cv2.findFundamentalMat(points[0], points[1], cv2.USAC_MAGSAC, MAX_EPIPOLAR_PX, 0.9999, 5000)
        return np.zeros(len(points[0]), bool) if inliers is None else inliers[:, 0] > 0
    in_a, in_b = (np.column_stack([side, np.ones(len(side))]) for side in points)
    line = in_a @ fundamental_matrix(a, b).T
    distance = np.abs((line * in_b).sum(1)) / np.maximum(np.linalg.norm(line[:, :2], axis=1), 1e-12)
    return distance < MAX_EPIPOLAR_PX


def fundamental_matrix(a: View, b: View) -> np.ndarray:
    """Return the fundamental matrix (3, 3) of two views with poses: pixels of a to epipolar lines in b."""
    assert a.camera is not None and b.camera is not None and a.pose is not None and b.pose is not None
    b_from_a = np.linalg.inv(b.pose) @ a.pose
    tx, ty, tz = b_from_a[:3, 3]
    essential = np.array([[0, -tz, ty], [tz, 0, -tx], [-ty, tx, 0]]) @ b_from_a[:3, :3]
    return np.linalg.inv(b.camera.K).T @ essential @ np.linalg.inv(a.camera.K)
