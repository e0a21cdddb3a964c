"""The data of an encoder training: rendered rooms, real pictures, what a teacher says of them. Prepared once per run
folder; an interrupted preparation goes on where it stopped."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from aceg_ros.datasets import open_scene
from aceg_ros.encoders.base import Encoder, load_encoder
from aceg_ros.encoders.preprocess import image_to_tensor, patch_centres, working_size
from aceg_ros.errors import UserError
from aceg_ros.pretraining.encoder.pairs import (
    Lesson,
    MatchedPairs,
    Matches,
    PairSource,
    RenderedPairs,
    SelfPairs,
    load_views,
    match_frames,
    render_views,
)
from aceg_ros.synthetic.textures import TextureAtlas, load_atlas
from aceg_ros.utils.malloc import configure_malloc

LESSON_POINTS, ROOM_LESSON_POINTS = 1500, 800


@dataclass(frozen=True)
class EncoderData:
    """scenes: folders of posed pictures (mapping parts only); textures: folder of tiles or None; teacher: an imported
    encoder to learn from as well, asked about every `teacher_every`-th picture and view of a room."""

    scenes: tuple[Path, ...] = ()
    textures: Path | None = None
    rooms: int = 320
    held_out_rooms: int = 12
    teacher: str | None = None
    teacher_every: int = 1
    seed: int = 0
    device: str = "cpu"
    workers: int = 2

    def check(self) -> None:
        """Raises UserError on what cannot be used, before anything is computed."""
        if self.rooms <= self.held_out_rooms:
            raise UserError(f"Give more rooms than the {self.held_out_rooms} that are held out, not {self.rooms}.")
        if self.textures is not None and not self.textures.is_dir():
            raise UserError(f"There is no texture folder {self.textures}.")
        for path in self.scenes:
            open_scene(path)
        if self.teacher is not None:
            load_encoder(self.teacher, self.device)


def open_sources(data: EncoderData, run: Path) -> tuple[list[PairSource], PairSource, int]:
    """Sources of training pairs, one of held-out rooms, and the width of the teacher's descriptors (0: no teacher)."""
    teacher = None if data.teacher is None else load_encoder(data.teacher, data.device)
    files = _rendered_files(data, run)
    rooms, names = [load_views(path) for path in files], [path.stem for path in files]
    held_out = RenderedPairs(rooms[:data.held_out_rooms], names[:data.held_out_rooms])
    rooms, names = rooms[data.held_out_rooms:], names[data.held_out_rooms:]
    in_rooms = None
    if teacher is not None:
        in_rooms = [[None if view % data.teacher_every else
                     _lesson(teacher, image, run / "lessons" / f"{name}_{view}.npz", ROOM_LESSON_POINTS)
                     for view, image in enumerate(room.images)]
                    for room, name in zip(tqdm(rooms, "teacher, rooms"), names, strict=True)]
    sources: list[PairSource] = [RenderedPairs(rooms, names, in_rooms)]
    images: list[np.ndarray] = []
    places: list[str] = []
    matches: list[Matches] = []
    with ProcessPoolExecutor(data.workers, get_context("spawn")) as pool:
        matched = pool.map(_match_scene, data.scenes, range(data.seed, data.seed + len(data.scenes)))
        for path, found in zip(data.scenes, matched, strict=True):
            first = len(images)
            images += [frame.rectified()[0].image for frame in open_scene(path)]
            places += [str(path)] * (len(images) - first)
            matches += [replace(match, a=match.a + first, b=match.b + first) for match in found]
            print(f"{path}: {len(images) - first} pictures, {len(found)} matched pairs", flush=True)
    lessons: list[Lesson | None] = [None] * len(images)
    if teacher is not None:
        for index in tqdm(range(0, len(images), data.teacher_every), "teacher, pictures"):
            lessons[index] = _lesson(teacher, images[index], run / "lessons" / f"{index:05d}.npz", LESSON_POINTS)
    if images:
        sources += [SelfPairs(images, places, lessons)]
    if matches:
        sources += [MatchedPairs(images, places, matches)]
    return sources, held_out, 0 if teacher is None else teacher.dim


def _lesson(teacher: Encoder, image: np.ndarray, path: Path, count: int) -> Lesson:
    """Descriptors of `count` random patches of a picture, kept in a file."""
    if path.exists():
        with np.load(path) as kept:
            return Lesson(kept["pixels"], kept["descriptors"])
    path.parent.mkdir(exist_ok=True)
    height, width = image.shape[:2]
    size = working_size(width, height, teacher.short_side_px, teacher.stride)
    tensor = image_to_tensor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), teacher.device)
    features = teacher(tensor)[0].cpu()
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in features.shape[1:]), indexing="ij")
    centres = patch_centres(columns.flatten(), rows.flatten(), teacher.stride).numpy()
    chosen = np.random.default_rng(len(centres)).permutation(len(centres))[:count]
    pixels = (centres[chosen] + 0.5) * (width / size[0], height / size[1]) - 0.5
    lesson = Lesson(pixels, features.flatten(1).T.numpy()[chosen].astype(np.float16))
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, pixels=lesson.pixels, descriptors=lesson.descriptors)
    temporary.rename(path)
    return lesson


def _match_scene(path: Path, seed: int) -> list[Matches]:
    cv2.setNumThreads(1)
    return match_frames([frame.rectified()[0] for frame in open_scene(path)], seed)


def _rendered_files(data: EncoderData, run: Path) -> list[Path]:
    """Render what is missing, in worker processes; the files stay in the run folder for the next start."""
    folder = run / "rendered"
    folder.mkdir(exist_ok=True)
    files = [folder / f"room_{number:05d}.npz" for number in range(data.rooms)]
    missing = [number for number, path in enumerate(files) if not path.exists()]
    if missing:
        with ProcessPoolExecutor(data.workers, get_context("spawn"), _start_renderer, (data.textures,)) as pool:
            jobs = [(number, files[number]) for number in missing]
            list(tqdm(pool.map(_render_room, jobs, chunksize=4), "rendering rooms", len(jobs)))
    return files


_atlas: TextureAtlas                   # of a worker process: every room it renders shares it


def _start_renderer(textures: Path | None) -> None:
    global _atlas
    configure_malloc()
    torch.set_num_threads(1)
    _atlas = load_atlas(textures)


def _render_room(job: tuple[int, Path]) -> None:
    number, path = job
    views = render_views(1_000_000 + number, _atlas)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, images=views.images, depth_m=views.depth_m, poses=views.poses, focal_px=views.focal_px)
    temporary.rename(path)
