# SPDX-License-Identifier: Apache-2.0
"""Scene coordinates for the pre-training: what maps of rendered rooms and of recordings predict for images that they
were not made from, with the errors of such predictions. Each scene is mapped once and kept in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from aceg_ros.camera import Frame, lift_pixels
from aceg_ros.datasets import open_scene
from aceg_ros.encoders.preprocess import prepare
from aceg_ros.errors import UserError
from aceg_ros.geometry import invert
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.marepo_localizer import coordinates_of, token_arrays, trusted_cells
from aceg_ros.methods.marepo_mapper import make_coordinate_mapper
from aceg_ros.methods.scene_coordinates import SceneCoordinateLocalizer
from aceg_ros.pretraining.common.loop import never
from aceg_ros.pretraining.common.run import write_arrays
from aceg_ros.pretraining.encoder.chunks import scene_name
from aceg_ros.synthetic.room_sessions import render_room_sessions
from aceg_ros.synthetic.textures import load_atlas

FIRST_ROOM = 5_000_000                     # first seed; different from the rooms of other trainings and of benchmarks
BLOCK_FRAMES = 3                           # every fourth block of frames of a recording is not mapped
SOURCES: dict[str, int | None] = {"codes": 8192, "head": None}     # what predicts the coordinates; landmarks at most


@dataclass(frozen=True, kw_only=True)
class CoordinateImages:
    """Predicted scene coordinates of the images of one scene, which has F images of N cells.

    points (F, N, 3) in the map, rays (F, N, 2), mask (F, N) trusted, reliability (F, N) of the descriptors, NaN if
    unknown; truth (F, N, 3): true map points, NaN if unknown. map_from_camera (F, 4, 4). mapped (F,) bool: images that
    the map was made from. focal_px (F,).
    """

    points: np.ndarray
    rays: np.ndarray
    mask: np.ndarray
    reliability: np.ndarray
    truth: np.ndarray
    map_from_camera: np.ndarray
    mapped: np.ndarray
    focal_px: np.ndarray

    def __len__(self) -> int:
        return len(self.points)

    def trusted(self, image: int) -> np.ndarray:
        """Return which cells (N,) of an image the network reads."""
        return trusted_cells(self.mask[image], None if np.isnan(self.reliability[image]).any()
                             else self.reliability[image])

    def points_in_camera(self, image: int) -> np.ndarray:
        """Return the points (N, 3) of an image in the frame of its camera."""
        return in_camera(self.points[image], self.map_from_camera[image])


@dataclass(frozen=True, kw_only=True)
class CoordinateData:
    """What the coordinates are made of.

    encoder: of the maps. scenes: recordings; mapping parts only. rooms: number of rendered rooms. textures: folder of
    additional tiles for them, or None. head_every: a head is trained for every n-th scene only, since it takes
    long. budget_s: for training one. max_cells: see `PoseTransformerConfig`.
    """

    encoder: str = "compact"
    scenes: tuple[Path, ...] = ()
    textures: Path | None = None
    rooms: int = 24
    head_every: int = 3
    budget_s: float = 150.0
    max_cells: int = 2400
    seed: int = 0
    device: str = "cpu"


def prepare_coordinates(data: CoordinateData, folder: Path, should_stop: Callable[[], bool] = never) -> None:
    """Map the scenes that are missing in the folder, and write the coordinates of their images there.

    Rooms and recordings take turns, so that an interrupted preparation has some of both. A recording that cannot be
    mapped gets an empty file, and is not tried again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, sessions) in enumerate(_interleaved(data)):
        missing = [source for source, codes in SOURCES.items() if not (folder / f"{name}_{source}.npz").exists()
                   and (codes is not None or number % data.head_every == 0)]
        if not missing:
            continue
        if should_stop():
            return
        mapping, query = sessions()
        for source in missing:
            found = scene_images(mapping, query, data, SOURCES[source])
            arrays = {} if found is None else {each.name: getattr(found, each.name) for each in fields(found)}
            write_arrays(folder / f"{name}_{source}.npz", arrays)
            print(f"{name} {source}: {'cannot be mapped' if found is None else f'{len(found)} images'}", flush=True)


def load_coordinates(folder: Path) -> dict[str, CoordinateImages]:
    """Load all prepared scenes of a folder, by name. Raises UserError if there are none."""
    found = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as arrays:
            if arrays.files:
                found[path.stem] = CoordinateImages(**{name: arrays[name] for name in arrays.files})
    if not found:
        raise UserError(f"{folder} has no prepared scene coordinates: prepare them first.")
    return found


def scene_images(mapping: Sequence[Frame], query: Sequence[Frame], data: CoordinateData, codes: int | None
                 ) -> CoordinateImages | None:
    """Map the frames of a scene, and predict the coordinates of these and of the query frames; None if it cannot be
    mapped."""
    torch.manual_seed(data.seed)
    options = MappingOptions(encoder=data.encoder, seed=data.seed, device=data.device, trust_poses=True)
    mapper = make_coordinate_mapper(options, codes)
    try:
        for frame in mapping:
            mapper.add(frame)
        scene_map = mapper.build(MappingBudget.start(data.budget_s))
    except UserError as error:
        print(error, flush=True)
        return None
    return predict_images(scene_map, mapping, query, data)


def predict_images(scene_map: SceneMap, mapping: Sequence[Frame], query: Sequence[Frame], data: CoordinateData
                   ) -> CoordinateImages:
    """Predict the coordinates of mapped and of other frames in a map."""
    localizer = coordinates_of(scene_map, data.device, max_cells=data.max_cells)
    columns = [_predict(localizer, frame) for frame in (*mapping, *query)]
    points, rays, mask, reliability, truth = (np.stack(column) for column in zip(*columns, strict=True))
    frames = (*mapping, *query)
    return CoordinateImages(points=points, rays=rays, mask=mask, reliability=reliability, truth=truth,
                            map_from_camera=np.stack([np.asarray(frame.map_from_camera) for frame in frames]),
                            mapped=np.arange(len(frames)) < len(mapping),
                            focal_px=np.array([frame.camera.fx for frame in frames]))


def _predict(localizer: SceneCoordinateLocalizer, frame: Frame) -> tuple[np.ndarray, ...]:
    """Return points, rays, mask, reliability and true points of the cells of a frame."""
    found = localizer.scene_coordinates(frame)
    points, rays, mask = token_arrays(found, localizer.stride, False)
    reliability = np.full(len(points), np.nan, np.float32) if found.reliability is None else found.reliability
    return points, rays, mask, reliability.astype(np.float32), _true_points(frame, localizer, found.pixels)


def _true_points(frame: Frame, localizer: SceneCoordinateLocalizer, pixels: np.ndarray) -> np.ndarray:
    """Return the map points (N, 3) at pixels of the prepared image, NaN where the frame has no depth."""
    if frame.depth_m is None:
        return np.full((len(pixels), 3), np.nan, np.float32)
    _, camera, _ = prepare(frame, localizer.short_side_px, localizer.stride)
    return lift_pixels(pixels, frame.depth_m, camera, np.asarray(frame.map_from_camera)).astype(np.float32)


def in_camera(points: np.ndarray, map_from_camera: np.ndarray) -> np.ndarray:
    """Convert map points (N, 3) to the camera frame."""
    camera_from_map = invert(map_from_camera)
    return points @ camera_from_map[:3, :3].T + camera_from_map[:3, 3]


Sessions = Callable[[], tuple[Sequence[Frame], Sequence[Frame]]]


def _interleaved(data: CoordinateData) -> Iterator[tuple[str, Sessions]]:
    """Yield the names of scenes, and what makes their frames: those to be mapped, and others."""
    for index in range(max(data.rooms, len(data.scenes))):
        if index < data.rooms:
            yield f"room_{index:04d}", lambda index=index: _room(data, index)  # type: ignore[misc]
        if index < len(data.scenes):
            path = data.scenes[index]
            yield f"scene_{scene_name(path)}", lambda path=path: _recording(path)  # type: ignore[misc]


def _room(data: CoordinateData, index: int) -> tuple[list[Frame], list[Frame]]:
    atlas = load_atlas(data.textures, data.device)
    mapping, query = render_room_sessions(FIRST_ROOM + index, atlas, device=data.device)
    return list(mapping), list(query)


def _recording(path: Path) -> tuple[list[Frame], list[Frame]]:
    frames = list(open_scene(path))
    is_query = [index // BLOCK_FRAMES % 4 == 2 for index in range(len(frames))]
    return ([frame for frame, chosen in zip(frames, is_query, strict=True) if not chosen],
            [frame for frame, chosen in zip(frames, is_query, strict=True) if chosen])
