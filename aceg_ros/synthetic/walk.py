"""A robot's everyday case: one walk down a long hall that sees each place once, and a later walk in another light."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.geometry import look_at
from aceg_ros.synthetic.rearrange import rearranged
from aceg_ros.synthetic.render import random_light
from aceg_ros.synthetic.room import long_hall
from aceg_ros.synthetic.textures import TextureAtlas
from aceg_ros.synthetic.visits import HEIGHT, WIDTH, photographs

LENGTH_M, HEIGHT_M = 30.0, 1.3


def mapping_and_later_walk(seed: int, atlas: TextureAtlas, mapping: int = 260,
                           later: int = 60) -> tuple[Iterator[Frame], Iterator[Frame]]:
    """Frames with exact poses and depths of hall `seed`: both walks look ahead, the later one from up to half a metre
    beside the first's path and in directions of its own, under another light, with things moved and gone."""
    rng = np.random.default_rng(seed)
    hall = long_hall(seed, len(atlas), LENGTH_M)
    camera = Camera(width=WIDTH, height=HEIGHT, fx=400.0, fy=400.0, cx=(WIDTH - 1) / 2, cy=(HEIGHT - 1) / 2)
    first, second = _walk(rng, mapping), _walk(rng, later)
    lights = random_light(rng), random_light(rng)
    changed = rearranged(hall, rng)
    return (photographs(hall, atlas, camera, first, [lights[0]] * mapping),
            photographs(changed, atlas, camera, second, [lights[1]] * later))


def _walk(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Poses along the hall: weaving by a quarter of a metre, looking ahead, up to 30 degrees to the sides."""
    along = np.linspace(0.07, 0.83, count) * LENGTH_M - LENGTH_M / 2
    phase, turns = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.25, 0.5, 2)
    across = 0.25 * np.sin(along * turns[0] + phase[0])
    yaw = np.radians(30) * np.sin(along * turns[1] + phase[1])
    pitch = np.radians(-4) + np.radians(3) * np.sin(along + phase[2])
    spots = np.stack([along, across, np.full(count, HEIGHT_M)], 1)
    ahead = np.stack([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)], 1)
    return [look_at(spot, spot + way) for spot, way in zip(spots, ahead, strict=True)]
