# SPDX-License-Identifier: Apache-2.0
"""Scenes for ACE-G's pre-training: landmarks of a mapping session, and patches of query images of the same scene with
known points (rendered rooms) or poses (real scenes). They are prepared once per run folder."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from aceg_ros.camera import Frame
from aceg_ros.datasets import open_scene
from aceg_ros.encoders.base import Encoder, load_encoder
from aceg_ros.errors import UserError
from aceg_ros.mapping.augmentation import prepare_frame
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.landmarks import find_landmarks
from aceg_ros.mapping.losses import View, points_at_depth
from aceg_ros.mapping.matching import extract_features, measured_depths
from aceg_ros.mapping.triangulation import TriangulationOptions
from aceg_ros.pretraining.common.run import write_arrays
from aceg_ros.synthetic.room_sessions import render_room_sessions
from aceg_ros.synthetic.textures import load_atlas
from aceg_ros.utils.malloc import configure_malloc

FIRST_ROOM = 2_000_000                     # first seed; different from the rooms of the encoder's training
MAX_LANDMARKS, PATCHES_PER_IMAGE = 30_000, 1200
MIN_LANDMARKS = 500                        # scenes with fewer are not used
BLOCK_FRAMES = 12                          # every fourth block of frames of a recording is used for queries


@dataclass(frozen=True, kw_only=True)
class TrainingScene:
    """Landmarks of a mapping session, and patches of query images of the same scene.

    keys (N, C) fp16, points (N, 3), source (N,): landmarks, and which mapping frames they come from.

    features (M, C) fp16, pixels (M, 2), image_index (M,), depth (M,): patches of the query images, with their z-depths,
    NaN if unknown.

    camera_from_map (P, 3, 4), intrinsics (P, 4): of the query images.
    """

    keys: Tensor
    points: Tensor
    source: Tensor
    features: Tensor
    pixels: Tensor
    image_index: Tensor
    depth: Tensor
    camera_from_map: Tensor
    intrinsics: Tensor

    @property
    def images(self) -> int:
        """Number of query images."""
        return len(self.camera_from_map)

    def to(self, device: str) -> TrainingScene:
        return TrainingScene(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def view(self, index: Tensor) -> View:
        """Return pixels and cameras of query patches (B,)."""
        image = self.image_index[index]
        return View(camera_from_map=self.camera_from_map[image], intrinsics=self.intrinsics[image],
                    pixels=self.pixels[index])

    def truth(self, index: Tensor) -> Tensor:
        """Return map points (B, 3) of query patches (B,), NaN if unknown."""
        view = self.view(index)
        in_camera = points_at_depth(view, self.depth[index][:, None])
        rotation, translation = view.camera_from_map[:, :, :3], view.camera_from_map[:, :, 3]
        return ((in_camera - translation)[:, None] @ rotation)[:, 0]

    def patches_of(self, image: int) -> Tensor:
        """Return the indices of the patches of one query image."""
        return (self.image_index == image).nonzero()[:, 0]


@dataclass(frozen=True, kw_only=True)
class TrainingSceneData:
    """The training data of a run.

    scenes: recordings; never query parts that are used for evaluation. textures: folder of additional tiles for the
    rendered rooms, or None.
    """

    encoder: str = "compact"
    scenes: tuple[Path, ...] = ()
    textures: Path | None = None
    rooms: int = 100
    held_out_rooms: int = 8
    device: str = "cpu"
    workers: int = 2


@dataclass(frozen=True, kw_only=True)
class SceneSplit:
    """Training scenes, and held-out rooms for evaluation."""

    training: list[TrainingScene]
    held_out: list[TrainingScene]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A scene to prepare: a rendered room, or a recording if its path is given."""

    file: Path
    encoder: str
    room: int = 0
    recording: Path | None = None


def prepare_scenes(data: TrainingSceneData, folder: Path) -> SceneSplit:
    """Load the scenes of a run from `folder`, and prepare missing ones.

    Raises:
        UserError: too few scenes can be used, or a recording cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    identity = load_encoder(data.encoder).identity.replace(":", "_")
    jobs = [_Job(file=folder / f"room_{number:05d}_{identity}.npz", encoder=data.encoder, room=number)
            for number in range(data.rooms)]
    jobs += [_Job(file=folder / f"scene_{path.parent.name}_{path.name}_{identity}.npz", encoder=data.encoder,
                  recording=path) for path in data.scenes]
    missing = [job for job in jobs if not job.file.exists()]
    if missing:
        with ProcessPoolExecutor(data.workers, get_context("spawn"), _start_worker,
                                 (data.textures, data.device)) as pool:
            list(tqdm(pool.map(_prepare, missing), "scenes", len(missing)))
    scenes = [_load(job.file).to(data.device) for job in jobs]
    scenes = [scene for scene in scenes if len(scene.points) > MIN_LANDMARKS]
    if len(scenes) <= data.held_out_rooms:
        raise UserError(f"Only {len(scenes)} scenes can be used, and {data.held_out_rooms} are held out: give more with"
                        " --rooms.")
    return SceneSplit(training=scenes[data.held_out_rooms:], held_out=scenes[:data.held_out_rooms])


def _load(path: Path) -> TrainingScene:
    with np.load(path) as arrays:
        return TrainingScene(**{field.name: torch.from_numpy(arrays[field.name]) for field in fields(TrainingScene)})


_textures: Path | None = None              # of a worker process
_device = "cpu"


def _start_worker(textures: Path | None, device: str) -> None:
    global _textures, _device
    configure_malloc()
    torch.set_num_threads(1)
    _textures, _device = textures, device


def _prepare(job: _Job) -> None:
    mapping: Sequence[Frame]
    query: Sequence[Frame]
    if job.recording is None:
        mapping, query = map(list, render_room_sessions(FIRST_ROOM + job.room, load_atlas(_textures, _device),
                                                        device=_device))
    else:
        frames = list(open_scene(job.recording))
        is_query = [index // BLOCK_FRAMES % 4 == 2 for index in range(len(frames))]
        mapping = [frame for frame, chosen in zip(frames, is_query, strict=True) if not chosen]
        query = [frame for frame, chosen in zip(frames, is_query, strict=True) if chosen]
    scene = make_training_scene(mapping, query, load_encoder(job.encoder, _device))
    write_arrays(job.file, {field.name: getattr(scene, field.name).cpu().numpy() for field in fields(scene)})


def make_training_scene(mapping: Sequence[Frame], query: Sequence[Frame], encoder: Encoder) -> TrainingScene:
    """Find landmarks in the mapping frames as in mapping, and extract patches of the query frames as in localization,
    with their depths if the frames have any."""
    prepared = [replace(prepare_frame(frame, encoder.short_side_px, encoder.stride), depth_m=None)
                for frame in mapping]
    landmarks = find_landmarks(prepared, encoder, TriangulationOptions(), MappingBudget.start())
    chosen = torch.randperm(len(landmarks), generator=torch.Generator().manual_seed(0))[:MAX_LANDMARKS]
    landmarks = landmarks.subset(chosen.to(landmarks.points.device))
    query_frames = [prepare_frame(frame, encoder.short_side_px, encoder.stride) for frame in query]
    extracted = [extract_features(frame, encoder, PATCHES_PER_IMAGE) for frame in query_frames]
    return TrainingScene(
        keys=landmarks.features, points=landmarks.points, source=landmarks.source,
        features=torch.cat([each.features.half() for each in extracted]),
        pixels=torch.cat([each.pixels for each in extracted]),
        image_index=torch.cat([torch.full((len(each.cells),), index, device=each.pixels.device)
                               for index, each in enumerate(extracted)]),
        depth=torch.cat([measured_depths(frame, each) for frame, each in zip(query_frames, extracted, strict=True)]),
        camera_from_map=torch.stack([each.camera_from_map for each in extracted]),
        intrinsics=torch.stack([each.intrinsics for each in extracted]).float())
