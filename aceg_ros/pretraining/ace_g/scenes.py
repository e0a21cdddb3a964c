"""Places for ACE-G's pre-training: landmarks of a mapping visit, and patches of other pictures of the same place, whose
points (rendered rooms) or views (real scenes) are known. Prepared once per run folder."""

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
from aceg_ros.mapping.augmentation import prepared_picture
from aceg_ros.mapping.landmarks import find_landmarks
from aceg_ros.mapping.losses import View, points_at_depth
from aceg_ros.mapping.matching import look, measured_depths
from aceg_ros.mapping.triangulation import TriangulationOptions
from aceg_ros.synthetic.room_sessions import render_room_sessions
from aceg_ros.synthetic.textures import load_atlas
from aceg_ros.utils.malloc import configure_malloc

FIRST_ROOM = 2_000_000                 # seeds: no room of the encoder's training among them
LANDMARKS, PATCHES = 30_000, 1200      # of a place, of a later picture
BLOCK = 12                             # pictures of a real scene in a row that are asked about; three times as many map


@dataclass(frozen=True)
class Place:
    """keys (N, C) fp16, points (N, 3), source (N,): landmarks and the mapping pictures they are from.

    Asked about: features (M, C) fp16, pixels (M, 2) and picture (M,) of patches, depth (M,), NaN where unknown;
    camera_from_map (P, 3, 4) and intrinsics (P, 4) of their pictures.
    """

    keys: Tensor
    points: Tensor
    source: Tensor
    features: Tensor
    pixels: Tensor
    picture: Tensor
    depth: Tensor
    camera_from_map: Tensor
    intrinsics: Tensor

    def to(self, device: str) -> Place:
        return Place(*(getattr(self, field.name).to(device) for field in fields(self)))

    def view(self, index: Tensor) -> View:
        picture = self.picture[index]
        return View(self.camera_from_map[picture], self.intrinsics[picture], self.pixels[index])

    def truth(self, index: Tensor) -> Tensor:
        """Map points (B, 3) of patches that are asked about, NaN where unknown."""
        view = self.view(index)
        in_camera = points_at_depth(view, self.depth[index][:, None])
        rotation, translation = view.camera_from_map[:, :, :3], view.camera_from_map[:, :, 3]
        return ((in_camera - translation)[:, None] @ rotation)[:, 0]


@dataclass(frozen=True)
class PlaceData:
    """scenes: folders of posed pictures (mapping parts only); textures: folder of tiles or None."""

    encoder: str = "compact"
    scenes: tuple[Path, ...] = ()
    textures: Path | None = None
    rooms: int = 100
    held_out_rooms: int = 8
    device: str = "cpu"
    workers: int = 2


_Job = tuple[Path, str, int, Path | None]                # file, encoder, number of a room, or a scene


def open_places(data: PlaceData, folder: Path) -> tuple[list[Place], list[Place]]:
    """Training places and held-out rooms; what is missing in the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = load_encoder(data.encoder).identity.replace(":", "_")
    jobs: list[_Job] = [(folder / f"room_{number:05d}_{identity}.npz", data.encoder, number, None)
                        for number in range(data.rooms)]
    jobs += [(folder / f"scene_{path.parent.name}_{path.name}_{identity}.npz", data.encoder, 0, path)
             for path in data.scenes]
    missing = [job for job in jobs if not job[0].exists()]
    if missing:
        with ProcessPoolExecutor(data.workers, get_context("spawn"), _start,
                                 (data.textures, data.device)) as pool:
            list(tqdm(pool.map(_make, missing), "places", len(missing)))
    places = [_load(job[0]).to(data.device) for job in jobs]
    places = [place for place in places if len(place.points) > 500]
    if len(places) <= data.held_out_rooms:
        raise UserError(f"Only {len(places)} places can be used, and {data.held_out_rooms} are held out: give more with"
                        " --rooms.")
    return places[data.held_out_rooms:], places[:data.held_out_rooms]


def _load(path: Path) -> Place:
    with np.load(path) as kept:
        return Place(*(torch.from_numpy(kept[field.name]) for field in fields(Place)))


_textures: Path | None = None
_device = "cpu"


def _start(textures: Path | None, device: str) -> None:
    global _textures, _device
    configure_malloc()
    torch.set_num_threads(1)
    _textures, _device = textures, device


def _make(job: _Job) -> None:
    path, encoder, number, scene = job
    if scene is None:
        atlas = load_atlas(_textures, _device)
        mapping, later = render_room_sessions(FIRST_ROOM + number, atlas, device=_device)
        place = make_place(list(mapping), list(later), load_encoder(encoder, _device), _device)
    else:
        frames = list(open_scene(scene))
        asked = [index // BLOCK % 4 == 2 for index in range(len(frames))]
        place = make_place([frame for frame, later_one in zip(frames, asked, strict=True) if not later_one],
                           [frame for frame, later_one in zip(frames, asked, strict=True) if later_one],
                           load_encoder(encoder, _device), _device)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, **{field.name: getattr(place, field.name).cpu().numpy() for field in fields(place)})
    temporary.rename(path)


def make_place(mapping: Sequence[Frame], later: Sequence[Frame], encoder: Encoder, device: str = "cpu") -> Place:
    """Landmarks as mapping finds them; patches of later frames as localization chooses them, with their depths where
    the frames have any."""
    pictures = [prepared_picture(frame, encoder.short_side_px, encoder.stride) for frame in mapping]
    pictures = [replace(picture, depth_m=None) for picture in pictures]
    landmarks = find_landmarks(pictures, encoder, device, TriangulationOptions(), 0, float("inf"), lambda: False,
                               lambda _: None)
    chosen = torch.randperm(len(landmarks), generator=torch.Generator().manual_seed(0))[:LANDMARKS]
    landmarks = landmarks.subset(chosen.to(landmarks.points.device))
    features, pixels, depth, number = [], [], [], []
    poses, intrinsics = [], []
    for index, frame in enumerate(later):
        picture = prepared_picture(frame, encoder.short_side_px, encoder.stride)
        seen = look(picture, encoder, device, PATCHES)
        features.append(seen.features.half())
        pixels.append(seen.pixels)
        number.append(torch.full((len(seen.cells),), index, device=seen.pixels.device))
        depth.append(measured_depths(picture, seen))
        poses.append(seen.camera_from_map)
        intrinsics.append(seen.intrinsics)
    return Place(landmarks.features, landmarks.points, landmarks.source, torch.cat(features), torch.cat(pixels),
                 torch.cat(number), torch.cat(depth), torch.stack(poses), torch.stack(intrinsics).float())
