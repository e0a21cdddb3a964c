"""A room some days later: things moved, things gone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from aceg_ros.synthetic.room import Faces, Room

MOVED, GONE = 0.15, 0.1               # shares of the boxes
SHELL = 1                             # boxes that stay: the walls


def rearranged(room: Room, rng: np.random.Generator, moved: float = MOVED, gone: float = GONE) -> Room:
    """The room with some of its boxes shifted and turned, and some taken away; the walls stay."""
    count = len(room)
    fate = rng.random(count)
    fate[:SHELL] = 1.0
    shifts = fate < moved
    centre, yaw = room.centre.copy(), room.yaw.copy()
    centre[shifts, :2] += rng.normal(0, 0.35, (count, 2))[shifts]
    yaw[shifts] += rng.normal(0, 0.4, count)[shifts]
    kept = (fate < moved) | (fate >= moved + gone)
    faces = Faces(*(getattr(room.faces, name)[kept] for name in ("texture", "tile_m", "offset", "tint")))
    return replace(room, centre=centre[kept], half=room.half[kept], yaw=yaw[kept], faces=faces)
