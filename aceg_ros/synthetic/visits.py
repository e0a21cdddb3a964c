"""Two visits to a random room: one that maps it, and a later one in another light, with things moved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from aceg_ros.camera import Camera, Frame
from aceg_ros.geometry import look_at
from aceg_ros.synthetic.rearrange import rearranged
from aceg_ros.synthetic.render import Light, random_light, render
from aceg_ros.synthetic.room import Room, free_spot, random_room
from aceg_ros.synthetic.textures import TextureAtlas

WIDTH, HEIGHT = 480, 360


@dataclass(frozen=True)
class Station:
    """Somewhere to stand and something to look at."""

    spot: np.ndarray
    target: np.ndarray


def mapping_and_later_visit(seed: int, atlas: TextureAtlas, mapping: int = 24, later: int = 10,
                            stations: int = 3) -> tuple[Iterator[Frame], Iterator[Frame]]:
    """Frames with exact poses and depths of random room `seed`: a mapping visit under one light, and a later one whose
    every picture is lit by itself. Both look at the same walls from places of their own."""
    rng = np.random.default_rng(seed)
    room = random_room(seed, len(atlas))
    focal = rng.uniform(330, 560)
    camera = Camera(WIDTH, HEIGHT, focal, focal, (WIDTH - 1) / 2, (HEIGHT - 1) / 2)
    places = [_station(room, rng) for _ in range(stations)]
    first_light = random_light(rng)
    poses = [_pose(room, places[index % stations], rng) for index in range(mapping + later)]
    changed = rearranged(room, rng)
    lights = [random_light(rng) for _ in range(later)]
    return (_photographs(room, atlas, camera, poses[:mapping], [first_light] * mapping),
            _photographs(changed, atlas, camera, poses[mapping:], lights))


def _photographs(room: Room, atlas: TextureAtlas, camera: Camera, poses: list[np.ndarray],
                 lights: list[Light]) -> Iterator[Frame]:
    for number, (pose, light) in enumerate(zip(poses, lights, strict=True)):
        seen = render(room, atlas, camera, pose, light)
        yield Frame(seen.image, camera, float(number), pose, f"{number:06d}", seen.depth_m)


def _station(room: Room, rng: np.random.Generator) -> Station:
    half = np.array(room.size) / 2
    spot = free_spot(room, rng, lambda: half * rng.uniform((-0.8, -0.8, 0), (0.8, 0.8, 0))
                     + (0, 0, rng.uniform(0.8, 1.9)))
    target = half * rng.uniform(-1, 1, 3)
    across = rng.integers(2)                                   # one of the four walls
    target[across] = half[across] * rng.choice((-1, 1))
    target[2] = rng.uniform(0.5, 1.7)
    return Station(spot, target)


def _pose(room: Room, station: Station, rng: np.random.Generator) -> np.ndarray:
    spot = free_spot(room, rng, lambda: station.spot + rng.normal(0, (0.6, 0.6, 0.2)))
    aim = station.target + rng.normal(0, 0.45, 3)
    if np.linalg.norm((aim - spot)[:2]) < 0.5:
        spot = station.spot
    pose = look_at(spot, aim)
    pose[:3, :3] = pose[:3, :3] @ Rotation.from_rotvec((0, 0, rng.normal(0, 0.08))).as_matrix()
    return pose
