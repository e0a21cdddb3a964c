# SPDX-License-Identifier: Apache-2.0
"""Changes a room as between two sessions: moves and removes objects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from aceg_ros.synthetic.room import Faces, Room

MOVED_SHARE, REMOVED_SHARE = 0.15, 0.1      # of the boxes
SHELL_BOXES = 1                             # the first boxes are the walls, which do not move


def with_objects_moved(room: Room, rng: np.random.Generator, moved: float = MOVED_SHARE,
                       removed: float = REMOVED_SHARE) -> Room:
    """Return a copy of the room with a share of its boxes moved and a share removed; the walls do not move."""
    count = len(room)
    draw = rng.random(count)
    draw[:SHELL_BOXES] = 1.0
    shifted = draw < moved
    centre, yaw = room.centre.copy(), room.yaw.copy()
    centre[shifted, :2] += rng.normal(0, 0.35, (count, 2))[shifted]
    yaw[shifted] += rng.normal(0, 0.4, count)[shifted]
    kept = (draw < moved) | (draw >= moved + removed)
    faces = Faces(**{name: getattr(room.faces, name)[kept] for name in ("texture", "tile_m", "offset", "tint")})
    return replace(room, centre=centre[kept], half=room.half[kept], yaw=yaw[kept], faces=faces)
