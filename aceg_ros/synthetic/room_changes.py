# SPDX-License-Identifier: Apache-2.0
"""Sessions in a random room that differ in one thing: light, objects, viewpoint, or texture that there never was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.synthetic.camera_poses import poses_near, random_viewpoint
from aceg_ros.synthetic.move_objects import with_objects_moved
from aceg_ros.synthetic.render import random_light
from aceg_ros.synthetic.room import Room, random_room
from aceg_ros.synthetic.room_sessions import HEIGHT, WIDTH, render_frames
from aceg_ros.synthetic.textures import TextureAtlas

CHANGES = ("none", "light", "objects", "viewpoint", "texture")
MOVED, REMOVED = 0.5, 0.2           # shares of the boxes when objects change
FAR = 3.0                           # times as much when the viewpoint changes
PLAIN_SHARE, PLAIN_TILE_M = 0.7, 40.0       # of faces without texture, where a tile is so large that it is plain


def render_changed_session(seed: int, atlas: TextureAtlas, change: str, *, mapping: int = 24, query: int = 8,
                           viewpoints: int = 3) -> tuple[Iterator[Frame], Iterator[Frame]]:
    """Render a mapping session, and a query session in which one of CHANGES is different.

    The room, the viewpoints, the mapping poses and the light of the mapping session depend on the seed alone. Without
    texture, walls and objects are plain in both sessions.

    Returns:
        The frames of the mapping and of the query session, with exact poses and depths.
    """
    if change not in CHANGES:
        raise ValueError(f"change {change!r} is none of {CHANGES}")
    rng = np.random.default_rng(seed)
    room = random_room(seed, len(atlas))
    focal = rng.uniform(330, 560)
    camera = Camera(width=WIDTH, height=HEIGHT, fx=focal, fy=focal, cx=(WIDTH - 1) / 2, cy=(HEIGHT - 1) / 2)
    chosen = [random_viewpoint(room, rng) for _ in range(viewpoints)]
    light = random_light(rng)
    mapping_poses = poses_near(room, chosen, rng, mapping)
    query_poses = poses_near(room, chosen, rng, query, spread=FAR if change == "viewpoint" else 1.0)
    later = with_objects_moved(room, rng, MOVED, REMOVED) if change == "objects" else room
    if change == "texture":
        room = later = _plain(room, rng)
    lights = [random_light(rng) if change == "light" else light for _ in range(query)]
    return (render_frames(room, atlas, camera, mapping_poses, lights=[light] * mapping),
            render_frames(later, atlas, camera, query_poses, lights=lights))


def _plain(room: Room, rng: np.random.Generator) -> Room:
    """Return the room with a share of its faces without texture."""
    tile_m = np.where(rng.random(room.faces.tile_m.shape[:2])[..., None] < PLAIN_SHARE, PLAIN_TILE_M, room.faces.tile_m)
    return replace(room, faces=replace(room.faces, tile_m=tile_m))
