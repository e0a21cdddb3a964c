# SPDX-License-Identifier: Apache-2.0
"""Visits of one random room: by day, by night, and by day with furniture moved, each with images to map and others to
localize."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.synthetic.camera_poses import poses_near, random_viewpoint
from aceg_ros.synthetic.move_objects import with_objects_moved
from aceg_ros.synthetic.render import Light
from aceg_ros.synthetic.room import random_room
from aceg_ros.synthetic.room_sessions import HEIGHT, WIDTH, render_frames
from aceg_ros.synthetic.textures import TextureAtlas

DAY = Light(exposure=0.62)
NIGHT = Light(ambient=0.08, lamps=((0.7, -0.6, 0.6),), gains=(1.25, 0.97, 0.65), exposure=0.6, gamma=1.25)
VISITS = ("day", "night", "moved")
MOVED, REMOVED = 0.5, 0.2           # shares of the boxes
NOISE = {"day": 1.5, "night": 5.0, "moved": 1.5}        # of a pixel, in grey values
VIEWPOINTS = 5


@dataclass(frozen=True, kw_only=True)
class RenderedVisit:
    """The mapping and the query frames of a visit, with exact poses and depths, rendered as they are read."""

    name: str
    mapping: Iterator[Frame]
    query: Iterator[Frame]


def render_visits(seed: int, atlas: TextureAtlas, *, mapping: int = 40, query: int = 20) -> Iterator[RenderedVisit]:
    """Render the VISITS of a random room, all from near the same viewpoints; the room, viewpoints, poses and changes
    depend on the seed alone."""
    rng = np.random.default_rng(seed)
    room = random_room(seed, len(atlas))
    focal = rng.uniform(330, 560)
    camera = Camera(width=WIDTH, height=HEIGHT, fx=focal, fy=focal, cx=(WIDTH - 1) / 2, cy=(HEIGHT - 1) / 2)
    viewpoints = [random_viewpoint(room, rng) for _ in range(VIEWPOINTS)]
    moved = with_objects_moved(room, rng, MOVED, REMOVED)
    for name in VISITS:
        poses = poses_near(room, viewpoints, rng, mapping + query)
        frames = [_noisy(frame, NOISE[name], rng) for frame in render_frames(
            moved if name == "moved" else room, atlas, camera, poses,
            lights=[NIGHT if name == "night" else DAY] * len(poses))]
        yield RenderedVisit(name=name, mapping=iter(frames[:mapping]), query=iter(frames[mapping:]))


def _noisy(frame: Frame, deviation: float, rng: np.random.Generator) -> Frame:
    noise = rng.normal(0.0, deviation, frame.image.shape)
    return replace(frame, image=np.clip(frame.image + noise, 0, 255).astype(np.uint8))
