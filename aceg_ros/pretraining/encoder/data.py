# SPDX-License-Identifier: Apache-2.0
"""The training data of the encoder: rendered rooms, real images, and a teacher's descriptors of both. It is prepared
once per run folder; an interrupted preparation is resumed."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from aceg_ros.datasets import load_image, open_scene
from aceg_ros.datasets.files import list_images
from aceg_ros.encoders.base import Encoder, load_encoder
from aceg_ros.encoders.preprocess import image_to_tensor, patch_centres, working_size
from aceg_ros.errors import UserError
from aceg_ros.pretraining.common.run import write_arrays
from aceg_ros.pretraining.encoder.pairs import PairSource, TeacherDescriptors
from aceg_ros.pretraining.encoder.real_pairs import ImageMatches, MatchedPairs, SelfPairs, match_frames
from aceg_ros.pretraining.encoder.rendered_pairs import RenderedPairs, RoomViews, render_views
from aceg_ros.synthetic.textures import TextureAtlas, load_atlas
from aceg_ros.utils.malloc import configure_malloc

FIRST_ROOM = 1_000_000                                          # first seed
DESCRIPTORS_PER_IMAGE, DESCRIPTORS_PER_VIEW = 1500, 800         # of a teacher


@dataclass(frozen=True, kw_only=True)
class EncoderData:
    """The training data of a run.

    scenes: recordings; never query parts that are used for evaluation. images: folders of images without poses.
    textures: folder of additional tiles for the rendered rooms, or None. teacher: an imported encoder to distill on
    every `teacher_every`-th image and view of a room; None for no distillation.
    """

    scenes: tuple[Path, ...] = ()
    images: tuple[Path, ...] = ()
    textures: Path | None = None
    rooms: int = 320
    held_out_rooms: int = 12
    teacher: str | None = None
    teacher_every: int = 1
    seed: int = 0
    device: str = "cpu"
    workers: int = 2

    def check(self) -> None:
        """Check the data before anything is computed.

        Raises:
            UserError: some of the data cannot be used.
        """
        if self.rooms <= self.held_out_rooms:
            raise UserError(f"Give more rooms than the {self.held_out_rooms} that are held out, not {self.rooms}.")
        if self.textures is not None and not self.textures.is_dir():
            raise UserError(f"There is no texture folder {self.textures}.")
        for path in self.scenes:
            open_scene(path)
        for path in self.images:
            if not path.is_dir() or not list_images(path):
                raise UserError(f"There are no images in {path}.")
        if self.teacher is not None:
            load_encoder(self.teacher, self.device)


@dataclass(frozen=True, kw_only=True)
class PairSources:
    """Sources of training and of held-out pairs. teacher_dim: size of the teacher's descriptors, 0 without one."""

    training: list[PairSource]
    held_out: PairSource
    teacher_dim: int


def prepare_sources(data: EncoderData, run: Path) -> PairSources:
    """Load the sources of a run from its folder, and prepare missing data."""
    teacher = None if data.teacher is None else load_encoder(data.teacher, data.device)
    files = rendered_files(data, run)
    rooms, names = [RoomViews.load(path) for path in files], [path.stem for path in files]
    held_out = RenderedPairs(rooms[:data.held_out_rooms], names[:data.held_out_rooms])
    rooms, names = rooms[data.held_out_rooms:], names[data.held_out_rooms:]
    described = None
    if teacher is not None:
        described = [[None if view % data.teacher_every else
                      _describe(teacher, image, run / "teacher" / f"{name}_{view}.npz", DESCRIPTORS_PER_VIEW)
                      for view, image in enumerate(room.images)]
                     for room, name in zip(tqdm(rooms, "teacher, rooms"), names, strict=True)]
    sources: list[PairSource] = [RenderedPairs(rooms, names, described)]
    real = _real_images(data)
    descriptors: list[TeacherDescriptors | None] = [None] * len(real.images)
    if teacher is not None:
        for index in tqdm(range(0, len(real.images), data.teacher_every), "teacher, images"):
            descriptors[index] = _describe(teacher, real.images[index], run / "teacher" / f"{index:05d}.npz",
                                           DESCRIPTORS_PER_IMAGE)
    if real.images:
        sources += [SelfPairs(real.images, real.scenes, descriptors)]
    if real.matches:
        sources += [MatchedPairs(real.images, real.scenes, real.matches)]
    return PairSources(training=sources, held_out=held_out, teacher_dim=0 if teacher is None else teacher.dim)


@dataclass(frozen=True, kw_only=True)
class _RealImages:
    """Images (H, W, 3) of all scenes, the scene of each, and matches between them."""

    images: list[np.ndarray] = field(default_factory=list)
    scenes: list[str] = field(default_factory=list)
    matches: list[ImageMatches] = field(default_factory=list)


def _real_images(data: EncoderData) -> _RealImages:
    real = _RealImages()
    with ProcessPoolExecutor(data.workers, get_context("spawn")) as pool:
        matches = pool.map(_match_scene, data.scenes, range(data.seed, data.seed + len(data.scenes)))
        for path, found in zip(data.scenes, matches, strict=True):
            first = len(real.images)
            real.images.extend(frame.rectified()[0].image for frame in open_scene(path))
            real.scenes.extend([str(path)] * (len(real.images) - first))
            real.matches.extend(replace(match, a=match.a + first, b=match.b + first) for match in found)
            print(f"{path}: {len(real.images) - first} images, {len(found)} matched pairs", flush=True)
    for path in data.images:
        loaded = [load_image(file) for file in sorted(list_images(path))]
        real.images.extend(loaded)
        real.scenes.extend([str(path)] * len(loaded))
    return real


def _describe(teacher: Encoder, image: np.ndarray, path: Path, count: int) -> TeacherDescriptors:
    """Compute the teacher's descriptors of `count` random patches of an image, or load them from a file."""
    if path.exists():
        with np.load(path) as arrays:
            return TeacherDescriptors(pixels=arrays["pixels"], descriptors=arrays["descriptors"])
    height, width = image.shape[:2]
    size = working_size(width, height, teacher.short_side_px, teacher.stride)
    tensor = image_to_tensor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), teacher.device)
    features = teacher(tensor)[0].cpu()
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in features.shape[1:]), indexing="ij")
    centres = patch_centres(columns.flatten(), rows.flatten(), teacher.stride).numpy()
    chosen = np.random.default_rng(len(centres)).permutation(len(centres))[:count]
    pixels = (centres[chosen] + 0.5) * (width / size[0], height / size[1]) - 0.5
    descriptors = features.flatten(1).T.numpy()[chosen].astype(np.float16)
    write_arrays(path, {"pixels": pixels, "descriptors": descriptors})
    return TeacherDescriptors(pixels=pixels, descriptors=descriptors)


def _match_scene(path: Path, seed: int) -> list[ImageMatches]:
    cv2.setNumThreads(1)
    return match_frames([frame.rectified()[0] for frame in open_scene(path)], seed)


def rendered_files(data: EncoderData, run: Path) -> list[Path]:
    """Render missing rooms in worker processes. Returns the files of all rooms, in the run folder."""
    files = [run / "rendered" / f"room_{number:05d}.npz" for number in range(data.rooms)]
    missing = [number for number, path in enumerate(files) if not path.exists()]
    if missing:
        with ProcessPoolExecutor(data.workers, get_context("spawn"), _start_renderer, (data.textures,)) as pool:
            jobs = [(number, files[number]) for number in missing]
            list(tqdm(pool.map(_render_room, jobs, chunksize=4), "rendering rooms", len(jobs)))
    return files


_atlas: TextureAtlas                   # of a worker process, for all rooms that it renders


def _start_renderer(textures: Path | None) -> None:
    global _atlas
    configure_malloc()
    torch.set_num_threads(1)
    _atlas = load_atlas(textures)


def _render_room(job: tuple[int, Path]) -> None:
    number, path = job
    render_views(FIRST_ROOM + number, _atlas).save(path)
