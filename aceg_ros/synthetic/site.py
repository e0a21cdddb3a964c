# SPDX-License-Identifier: Apache-2.0
"""A building of furnished rooms in one map frame, some of them twins, with a mapping visit and a later one of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.synthetic.camera_poses import poses_near, random_viewpoint
from aceg_ros.synthetic.move_objects import with_objects_moved
from aceg_ros.synthetic.render import random_light
from aceg_ros.synthetic.room import Room, random_room
from aceg_ros.synthetic.room_sessions import HEIGHT, WIDTH, render_frames
from aceg_ros.synthetic.textures import TextureAtlas

SPACING_M = 12.0                        # between the middles of rooms, which are 9 m wide at most
FOCAL_PX = 400.0
TWIN_MOVED, TWIN_REMOVED = 0.15, 0.1    # shares of the boxes by which a twin that is alike differs


@dataclass(frozen=True, kw_only=True)
class SiteRoom:
    """One room of a site. twin: number of the room that it is a twin of, None if it is like no other. exact: whether
    it equals its twin, so that no image can tell which it shows; else it is alike. site_from_room: (4, 4), a
    translation. seed: of its sessions."""

    room: Room
    number: int
    site_from_room: np.ndarray
    seed: int
    twin: int | None = None
    exact: bool = False

    def render_sessions(self, atlas: TextureAtlas, *, mapping: int, query: int
                        ) -> tuple[Iterator[Frame], Iterator[Frame]]:
        """Render the images of the mapping visit, under one light, and of a later one under other lights, with objects
        moved and removed, from near viewpoints that both share. Poses are in the frame of the site."""
        rng = np.random.default_rng(self.seed)
        camera = Camera(width=WIDTH, height=HEIGHT, fx=FOCAL_PX, fy=FOCAL_PX, cx=(WIDTH - 1) / 2, cy=(HEIGHT - 1) / 2)
        chosen = [random_viewpoint(self.room, rng) for _ in range(max(3, mapping // 8))]
        poses = poses_near(self.room, chosen, rng, mapping + query)
        light, later = random_light(rng), with_objects_moved(self.room, rng)
        lights = [random_light(rng) for _ in range(query)]
        return (self._placed(render_frames(self.room, atlas, camera, poses[:mapping], lights=[light] * mapping)),
                self._placed(render_frames(later, atlas, camera, poses[mapping:], lights=lights)))

    def _placed(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame in frames:
            assert frame.map_from_camera is not None
            yield replace(frame, name=f"room{self.number}_{frame.name}",
                          map_from_camera=self.site_from_room @ frame.map_from_camera)


def make_site(seed: int, textures: int, *, rooms: int, twins: int) -> list[SiteRoom]:
    """Draw a site.

    Args:
        seed: of the rooms; that of room i is seed + i.
        textures: number of tiles in the atlas.
        rooms: number of rooms, on a square grid.
        twins: number of pairs of twins, the last rooms; every second pair is exact.

    Raises ValueError if there are not two rooms for each pair.
    """
    if 2 * twins > rooms:
        raise ValueError(f"{rooms} rooms cannot have {twins} pairs of twins.")
    columns = int(np.ceil(np.sqrt(rooms)))
    found: list[SiteRoom] = []
    for number in range(rooms):
        pair = number - (rooms - twins)         # of which the first room was drawn before
        twin = None if pair < 0 else rooms - 2 * twins + pair
        exact = pair >= 0 and pair % 2 == 0
        room = random_room(seed + number, textures) if twin is None else found[twin].room
        if twin is not None and not exact:
            room = with_objects_moved(room, np.random.default_rng(seed + number), TWIN_MOVED, TWIN_REMOVED)
        place = np.eye(4)
        place[:2, 3] = SPACING_M * np.array(divmod(number, columns))
        found.append(SiteRoom(room=room, number=number, site_from_room=place, seed=seed + 1000 + number, twin=twin,
                              exact=exact))
    return found
