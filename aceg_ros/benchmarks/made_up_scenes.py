# SPDX-License-Identifier: Apache-2.0
"""Small made-up scenes in the form in which pre-trainings prepare theirs: for tests, and for the check of a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from aceg_ros.geometry import look_at
from aceg_ros.pretraining.ace_g.scenes import SceneSplit, TrainingScene
from aceg_ros.pretraining.encoder.augment import Sample
from aceg_ros.pretraining.encoder.chunks import Chunk, Match
from aceg_ros.pretraining.encoder.rendered_pairs import render_views
from aceg_ros.pretraining.encoder.teacher import Detections
from aceg_ros.pretraining.marepo.coordinates import CoordinateImage
from aceg_ros.pretraining.sacreg.scenes import KEYFRAME, QUERY, CrossImageScene
from aceg_ros.synthetic.textures import load_atlas

ENCODER_ROOMS = 14
IMAGES, SEEN = 10, 120           # of a scene for networks that read several images, and landmarks in one of them


def landmark_scene(seed: int) -> TrainingScene:
    """Return landmarks whose features tell their positions, and one image of patches at some of them."""
    rng = np.random.default_rng(seed)
    points = rng.uniform((-2, -2, 3), (2, 2, 6), (900, 3))
    features = np.sin(points @ np.random.default_rng(1).normal(0, 2, (3, 128)))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    seen = rng.permutation(900)[:300]
    pixels = points[seen, :2] / points[seen, 2:] * 300 + (240, 180)
    inside = (pixels > 0).all(1) & (pixels < (480, 360)).all(1)
    seen, pixels = seen[inside], pixels[inside]
    arrays = {"keys": features.astype(np.float16), "points": points.astype(np.float32),
              "source": rng.integers(0, 9, 900), "features": features[seen].astype(np.float16),
              "pixels": pixels.astype(np.float32), "image_index": np.zeros(len(seen), np.int64),
              "depth": points[seen, 2].astype(np.float32), "camera_from_map": np.eye(4, dtype=np.float32)[None, :3],
              "intrinsics": np.array([[300.0, 300.0, 240.0, 180.0]], np.float32)}
    return TrainingScene(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def landmark_split(training: int = 2, held_out: int = 1, device: str = "cpu") -> SceneSplit:
    """Return scenes with landmarks to train and to evaluate on."""
    scenes = [landmark_scene(seed).to(device) for seed in range(training + held_out)]
    return SceneSplit(training=scenes[:training], held_out=scenes[training:])


def cross_image_scene(seed: int = 0, images: int = IMAGES, *, count: int = 400, seen: int = SEEN) -> CrossImageScene:
    """Return landmarks with random descriptors on a wall, seen by cameras in a row; the last one is of a later session.

    count: number of landmarks. seen: of these, largest number in an image.
    """
    rng = np.random.default_rng(seed)
    points = np.column_stack([rng.uniform(-4, 4, count), rng.uniform(3.5, 4.5, count), rng.uniform(-2, 2, count)])
    vectors = rng.normal(size=(count, 128))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    poses, pixels, tracks, descriptors = [], [], [], []
    for image in range(images):
        pose = look_at(np.array([0.2 * image - 1.0, 0.0, 0.0]), np.array([0.2 * image - 1.0, 4.0, 0.1]))
        local = (points - pose[:3, 3]) @ pose[:3, :3]
        projected = local[:, :2] / local[:, 2:] * 400.0 + (319.5, 239.5)
        shown = np.flatnonzero((projected > 0).all(1) & (projected < (639, 479)).all(1))[:seen]
        poses.append(pose)
        pixels.append(projected[shown])
        tracks.append(shown)
        descriptors.append(vectors[shown] + rng.normal(0, 0.02, (len(shown), 128)))
    roles = np.array([KEYFRAME] * (images - 1) + [QUERY], np.int8)
    track = np.concatenate(tracks)
    from_keyframe = np.repeat(roles == KEYFRAME, [len(each) for each in tracks])
    return CrossImageScene(
        descriptors=np.clip(np.concatenate(descriptors) * 127, -127, 127).astype(np.int8),
        pixels=np.concatenate(pixels).astype(np.float32), first=np.cumsum([0, *map(len, tracks)]),
        track=np.where(from_keyframe, track, -1).astype(np.int32), truth=points[track].astype(np.float32),
        points=points.astype(np.float32), roles=roles, source=np.arange(images), poses=np.stack(poses),
        intrinsics=np.tile([400.0, 400.0, 319.5, 239.5], (images, 1)), sizes=np.tile([640, 480], (images, 1)))


def coordinate_images(frames: int = 6, tokens: int = 200, seed: int = 0) -> list[CoordinateImage]:
    """Return what a map predicts for images: exact points of views of a wall and a floor."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(frames):
        rays = rng.uniform((-0.6, -0.45), (0.6, 0.45), (tokens, 2)).astype(np.float32)
        depth = 2.0 / np.maximum(0.7, 1.0 + rays[:, 1:])
        pose = np.eye(4)
        pose[:3, 3] = rng.normal(0, 0.5, 3)
        points = np.c_[rays, np.ones(tokens)] * depth + pose[:3, 3]
        images.append(CoordinateImage(points=points.astype(np.float32), rays=rays, map_from_camera=pose,
                                      confidence=rng.random(tokens).astype(np.float32)))
    return images


def encoder_batch() -> list[Sample]:
    """Return two samples of `compact`'s training that together have every kind of loss: noise and its mirror image."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (96, 128, 3), np.uint8)
    points = np.stack([rng.uniform(8, 88, (64, 2))] * 2)
    return [Sample(images=np.stack([image, image[::-1].copy()]), points=points, scene="a",
                   map_points=rng.uniform(0, 3, (64, 3)), teacher_descriptors=None),
            Sample(images=np.stack([image, image]), points=points, scene="b", map_points=None,
                   teacher_descriptors=rng.normal(size=(64, 16)).astype(np.float16))]


def write_encoder_data(folder: Path) -> None:
    """Write prepared data of the encoder: ENCODER_ROOMS times the same small room, and two chunks of its views, as if
    these were real images."""
    room = render_views(3, load_atlas(None), width=240, height=184, count=4)
    for number in range(ENCODER_ROOMS):
        room.save(folder / "rendered" / f"room_{number:05d}.npz")
    rng = np.random.default_rng(0)
    pixels = rng.uniform((12, 12), (225, 170), (120, 2)).astype(np.float32)
    found = Detections(pixels=pixels, scores=np.linspace(1, 0.1, 120, dtype=np.float32),
                       descriptors=functional.normalize(torch.randn(100, 128), dim=1).half().numpy())
    pairs = np.column_stack([np.arange(90), np.arange(90)])
    for name in ("a_000", "b_000"):
        Chunk(scene=name[0], images=[room.images[0], room.images[0]], detections=[found, found],
              matches=[Match(a=0, b=1, indices=pairs)]).save(folder / "chunks" / f"{name}.npz")
