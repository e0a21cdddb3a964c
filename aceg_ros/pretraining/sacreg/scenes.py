# SPDX-License-Identifier: Apache-2.0
"""Scenes for SACReg's training: keypoints of posed images with the points that they show, prepared once.

Rendered rooms have exact points for every keypoint, and images of a later session under other light and with objects
moved. Recordings have the landmarks of our own mapping, for the keypoints that it matched. Of each image there is also
a variant: cropped, turned, resized and with other colours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from scipy.spatial import cKDTree

from aceg_ros.camera import Frame, lift_pixels
from aceg_ros.datasets import open_scene
from aceg_ros.encoders.base import Encoder, load_encoder
from aceg_ros.encoders.keypoints import Keypoints, extract_keypoints
from aceg_ros.mapping.augmentation import PreparedFrame, prepare_frame
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.build_database import gather_observations
from aceg_ros.mapping.matching import ExtractedFeatures, extract_mapping_keypoints
from aceg_ros.mapping.pair_matching import covisible_pairs, estimate_tolerance_px, match_pairs
from aceg_ros.mapping.tracks import Observations, build_tracks
from aceg_ros.maps.keyframe_database import quantised
from aceg_ros.pretraining.common.run import write_arrays
from aceg_ros.pretraining.encoder.augment import photometric, random_warp
from aceg_ros.pretraining.encoder.chunks import scene_name
from aceg_ros.synthetic.room_sessions import render_room_sessions
from aceg_ros.synthetic.textures import load_atlas

FIRST_ROOM = 4_000_000              # first seed; rooms of other trainings and of benchmarks have others
KEYPOINTS, VARIANT_KEYPOINTS = 1000, 500
COVISIBLE_IMAGES, MIN_LANDMARKS = 8, 300
SAME_KEYPOINT_PX = 1.5              # of a keypoint of a variant and one with a landmark
KEYFRAME, QUERY, VARIANT = 0, 1, 2  # roles of images: those of the map, of a later session, changed copies


@dataclass(frozen=True, kw_only=True)
class CrossImageScene:
    """F images with M keypoints, ordered by image, the most reliable of each first, and T landmarks.

    Attributes:
        descriptors: (M, C) int8, unit vectors times DESCRIPTOR_SCALE.
        pixels: (M, 2) float32.
        first: (F + 1,) int64; the keypoints of image f are first[f] to first[f + 1].
        track: (M,) int32, the landmark that a keypoint of a keyframe observes, -1 for none.
        truth: (M, 3) float32, the point that each keypoint shows, NaN if unknown.
        points: (T, 3) float32, triangulated.
        roles: (F,) int8, KEYFRAME, QUERY or VARIANT.
        source: (F,) int64, the image that each is a variant of, itself for others.
        poses: (F, 4, 4) map_from_camera, of variants that of their source.
        intrinsics: (F, 4) fx, fy, cx, cy; meaningless for variants.
        sizes: (F, 2) width and height.
    """

    descriptors: np.ndarray
    pixels: np.ndarray
    first: np.ndarray
    track: np.ndarray
    truth: np.ndarray
    points: np.ndarray
    roles: np.ndarray
    source: np.ndarray
    poses: np.ndarray
    intrinsics: np.ndarray
    sizes: np.ndarray

    def save(self, path: Path) -> None:
        write_arrays(path, {field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> CrossImageScene:
        with np.load(path) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})

    def of_role(self, *roles: int) -> np.ndarray:
        """Return the images that have one of these roles."""
        return np.flatnonzero(np.isin(self.roles, roles))

    def keypoints_of(self, image: int) -> np.ndarray:
        """Return the keypoints of an image, the most reliable first."""
        return np.arange(self.first[image], self.first[image + 1])


@dataclass(frozen=True, kw_only=True)
class CrossImageData:
    """The training data. scenes: posed recordings, mapping parts alone. held_out: recordings to evaluate on. textures:
    folder of further tiles for the rendered rooms, or None. rooms, held_out_rooms: numbers of rendered rooms."""

    encoder: str = "compact4"
    scenes: tuple[Path, ...] = ()
    held_out: tuple[Path, ...] = ()
    textures: Path | None = None
    rooms: int = 60
    held_out_rooms: int = 4
    device: str = "cpu"

    def files(self, folder: Path, held_out: bool) -> list[Path]:
        """Return the files of the prepared scenes, whether they exist or not: rooms and recordings in turn, so that a
        training that begins early has some of both."""
        tag = load_encoder(self.encoder).identity.split(":")[-1]
        numbers = range(self.held_out_rooms) if held_out else range(self.held_out_rooms, self.held_out_rooms
                                                                    + self.rooms)
        rooms = [folder / f"room_{number:05d}_{tag}.npz" for number in numbers]
        recordings = [folder / f"scene_{scene_name(path)}_{tag}.npz"
                      for path in (self.held_out if held_out else self.scenes)]
        longer, shorter = sorted((rooms, recordings), key=len, reverse=True)
        together = [each for pair in zip(longer, shorter, strict=False) for each in pair]
        return together + longer[len(shorter):]


def prepare_scenes(data: CrossImageData, folder: Path, should_stop: Callable[[], bool]) -> None:
    """Prepare the scenes that are missing in `folder`, held-out ones first, one file each, until should_stop().

    Raises UserError if a recording cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    encoder = load_encoder(data.encoder, data.device)
    recordings = {scene_name(path): path for path in (*data.scenes, *data.held_out)}
    for path in (*data.files(folder, held_out=True), *data.files(folder, held_out=False)):
        if path.exists():
            continue
        if should_stop():
            return
        kind, name = path.stem.rsplit("_", 1)[0].split("_", 1)
        if kind == "room":
            mapping, query = map(list, render_room_sessions(FIRST_ROOM + int(name), load_atlas(data.textures,
                                                                                               data.device),
                                                            device=data.device))
        else:
            mapping, query = list(open_scene(recordings[name])), []
        scene = make_scene(mapping, query, encoder)
        scene.save(path)
        print(f"{path.name}: {len(mapping)} + {len(query)} images, {len(scene.points)} landmarks,"
              f" {(scene.track >= 0).sum()} observations", flush=True)


def make_scene(mapping: Sequence[Frame], query: Sequence[Frame], encoder: Encoder, seed: int = 0) -> CrossImageScene:
    """Make a scene of posed frames. Depths of the frames, if there are any, tell the points of all keypoints; landmarks
    are triangulated without them, as in mapping."""
    rng = np.random.default_rng(seed)
    frames = [prepare_frame(frame, encoder.short_side_px, encoder.stride) for frame in (*mapping, *query)]
    plain = [replace(frame, depth_m=None) for frame in frames]
    extracted = [extract_mapping_keypoints(frame, encoder, KEYPOINTS) for frame in plain]
    tracks, points, observations = _landmarks(extracted[:len(mapping)], encoder, seed)
    images = []
    for number, (frame, found) in enumerate(zip(frames, extracted, strict=True)):
        pixels = found.pixels.cpu().numpy()
        track = tracks[observations.images == number] if number < len(mapping) else np.full(len(pixels), -1)
        truth = _points_of(frame, pixels)
        if frame.depth_m is None:
            truth[track >= 0] = points[track[track >= 0]]
        role = KEYFRAME if number < len(mapping) else QUERY
        images.append(_Image(frame=frame, source=number, role=role, pixels=pixels, track=track, truth=truth,
                             descriptors=quantised(found.features).cpu().numpy()))
    return _joined(images + [_variant(image, encoder, rng) for image in images], points)


class _Image(NamedTuple):
    """An image and its keypoints; see `CrossImageScene`."""

    frame: PreparedFrame
    source: int
    role: int
    pixels: np.ndarray
    descriptors: np.ndarray
    track: np.ndarray
    truth: np.ndarray


def _landmarks(images: Sequence[ExtractedFeatures], encoder: Encoder, seed: int
               ) -> tuple[np.ndarray, np.ndarray, Observations]:
    """Return the landmark of each keypoint, -1 for none, the points of the landmarks, and the keypoints."""
    observations = gather_observations(images)
    pairs = covisible_pairs(images, COVISIBLE_IMAGES, encoder.stride)
    tolerance_px = estimate_tolerance_px(images, pairs, seed)
    matches = match_pairs(images, pairs, tolerance_px, seed=seed, budget=MappingBudget.start())
    tracks = build_tracks(observations, matches, tolerance_px)
    return tracks.track, tracks.points, observations


def _points_of(frame: PreparedFrame, pixels: np.ndarray) -> np.ndarray:
    """Return the points (N, 3) that pixels (N, 2) show by the depths of the frame, NaN without depths."""
    if frame.depth_m is None:
        return np.full((len(pixels), 3), np.nan)
    return lift_pixels(pixels, frame.depth_m, frame.camera, frame.map_from_camera)


def _variant(image: _Image, encoder: Encoder, rng: np.random.Generator) -> _Image:
    """Return a changed copy of an image: its keypoints show what those nearest to them in the original show."""
    frame = image.frame
    size = frame.camera.width, frame.camera.height
    warp = random_warp(rng, np.array(size) * rng.uniform(0.3, 0.7, 2), size, np.exp(rng.uniform(np.log(0.6),
                                                                                               np.log(1.3))))
    changed = photometric(cv2.warpPerspective(frame.image, warp, size, flags=cv2.INTER_LINEAR), rng)
    inside = np.ones(frame.image.shape[:2], np.uint8) if frame.mask is None else frame.mask.astype(np.uint8)
    mask = cv2.warpPerspective(inside, warp, size, flags=cv2.INTER_NEAREST).astype(bool)
    found: Keypoints = extract_keypoints(changed, frame.camera, encoder, mask=mask, max_count=VARIANT_KEYPOINTS)
    original = found.pixels.astype(np.float64)
    if len(found):
        original = cv2.perspectiveTransform(original[:, None], np.linalg.inv(warp))[:, 0].astype(np.float64)
    truth = _points_of(frame, original)
    known = np.flatnonzero(np.isfinite(image.truth).all(1))
    if frame.depth_m is None and len(known) and len(original):
        distance, nearest = cKDTree(image.pixels[known]).query(original)
        near = distance < SAME_KEYPOINT_PX
        truth[near] = image.truth[known[nearest[near]]]
    return _Image(frame=frame, source=image.source, role=VARIANT, pixels=found.pixels, truth=truth,
                  descriptors=quantised(found.descriptors).cpu().numpy(), track=np.full(len(original), -1))


def _joined(images: list[_Image], points: np.ndarray) -> CrossImageScene:
    cameras = [image.frame.camera for image in images]
    return CrossImageScene(
        descriptors=np.concatenate([image.descriptors for image in images]),
        pixels=np.concatenate([image.pixels for image in images]).astype(np.float32),
        first=np.cumsum([0, *(len(image.pixels) for image in images)]),
        track=np.concatenate([image.track for image in images]).astype(np.int32),
        truth=np.concatenate([image.truth for image in images]).astype(np.float32), points=points.astype(np.float32),
        roles=np.array([image.role for image in images], np.int8),
        source=np.array([image.source for image in images]),
        poses=np.stack([image.frame.map_from_camera for image in images]),
        intrinsics=np.array([[camera.fx, camera.fy, camera.cx, camera.cy] for camera in cameras]),
        sizes=np.array([[camera.width, camera.height] for camera in cameras]))
