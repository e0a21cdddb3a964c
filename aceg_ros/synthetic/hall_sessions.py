# SPDX-License-Identifier: Apache-2.0
"""Two sessions in a long hall: a mapping walk that sees every part once, and a later query walk under other light."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.geometry import look_at
from aceg_ros.synthetic.move_objects import with_objects_moved
from aceg_ros.synthetic.render import random_light
from aceg_ros.synthetic.room import long_hall
from aceg_ros.synthetic.room_sessions import HEIGHT, WIDTH, render_frames
from aceg_ros.synthetic.textures import TextureAtlas

LENGTH_M, CAMERA_HEIGHT_M = 30.0, 1.3


def render_hall_sessions(seed: int, atlas: TextureAtlas, *, mapping: int = 260,
                         query: int = 60) -> tuple[Iterator[Frame], Iterator[Frame]]:
    """Render a mapping walk and a later query walk through hall `seed`, with exact poses and depths.

    In both, the camera looks ahead. The query walk is up to half a metre beside the mapping walk, with other headings,
    under another light, and with objects moved and removed.
    """
    rng = np.random.default_rng(seed)
    hall = long_hall(seed, len(atlas), LENGTH_M)
    camera = Camera(width=WIDTH, height=HEIGHT, fx=400.0, fy=400.0, cx=(WIDTH - 1) / 2, cy=(HEIGHT - 1) / 2)
    mapping_poses, query_poses = _walk(rng, mapping), _walk(rng, query)
    lights = random_light(rng), random_light(rng)
    changed = with_objects_moved(hall, rng)
    return (render_frames(hall, atlas, camera, mapping_poses, lights=[lights[0]] * mapping),
            render_frames(changed, atlas, camera, query_poses, lights=[lights[1]] * query))


def _walk(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Return poses along the hall: swaying by a quarter of a metre, looking ahead within 30 degrees to the sides."""
    along = np.linspace(0.07, 0.83, count) * LENGTH_M - LENGTH_M / 2
    phase, frequency = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.25, 0.5, 2)
    across = 0.25 * np.sin(along * frequency[0] + phase[0])
    yaw = np.radians(30) * np.sin(along * frequency[1] + phase[1])
    pitch = np.radians(-4) + np.radians(3) * np.sin(along + phase[2])
    positions = np.stack([along, across, np.full(count, CAMERA_HEIGHT_M)], 1)
    directions = np.stack([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)], 1)
    return [look_at(position, position + direction) for position, direction in zip(positions, directions, strict=True)]
