# SPDX-License-Identifier: Apache-2.0
"""The fixed room of the demo and of tests, with a mapping drive and a different query drive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.geometry import look_at
from aceg_ros.synthetic.render import DAYLIGHT, EVENING, Light, render
from aceg_ros.synthetic.room import Room, random_room
from aceg_ros.synthetic.textures import TextureAtlas, make_atlas, paint_tiles

ROOM_SEED, TILES, TILE_SEED = 26, 240, 3
POSTERS = (120, 121)           # many, because walls of one repeated tile look the same everywhere
CAMERA = Camera(width=640, height=480, fx=525.0, fy=520.0, cx=318.0, cy=242.0)
FACING = np.pi                 # heading towards the wall that the drives look at, in radians from x
LIGHTS = {"day": DAYLIGHT, "evening": EVENING}


@dataclass(frozen=True, kw_only=True)
class World:
    """A room, its textures, and the camera that renders frames of it."""

    room: Room
    atlas: TextureAtlas
    camera: Camera = CAMERA

    def render_frame(self, map_from_camera: np.ndarray, light: Light = DAYLIGHT, name: str = "",
                     stamp_s: float = 0.0) -> Frame:
        """Render a frame with exact pose and depth; map_from_camera (4, 4) must be inside the room."""
        rendering = render(self.room, self.atlas, self.camera, map_from_camera, light=light)
        return Frame(image=rendering.image, camera=self.camera, stamp_s=stamp_s, map_from_camera=map_from_camera,
                     name=name, depth_m=rendering.depth_m)


def demo_world(camera: Camera = CAMERA) -> World:
    """Make the demo's room with a camera."""
    return World(room=random_room(ROOM_SEED, TILES, POSTERS), atlas=make_atlas(paint_tiles(TILES, TILE_SEED)),
                 camera=camera)


def mapping_path(count: int, room: Room) -> list[np.ndarray]:
    """Return the poses (4, 4) of a drive in two loops, on which the camera sweeps over one end of the room."""
    poses = []
    for t in np.arange(count) / count:
        angle = 4 * np.pi * t
        heading = FACING + 0.55 * np.sin(2.5 * angle)
        poses.append(_pose_on_ellipse(room, angle, heading, radius=0.22 + 0.1 * t,
                                      height=1.62 + 0.12 * np.sin(3 * angle)))
    return poses


def query_path(count: int, room: Room) -> list[np.ndarray]:
    """Return the poses (4, 4) of a different drive: opposite direction, closer to the centre, lower, other headings."""
    poses = []
    for t in np.arange(count) / count:
        angle = -2 * np.pi * t + 1.0
        heading = FACING + 0.35 * np.sin(3 * angle + 0.8)
        poses.append(_pose_on_ellipse(room, angle, heading, radius=0.17, height=1.55 + 0.06 * np.sin(4 * angle)))
    return poses


def _pose_on_ellipse(room: Room, angle: float, heading: float, *, radius: float, height: float) -> np.ndarray:
    """Return a pose on an ellipse of `radius` times the room's size, looking almost level along heading (from x)."""
    position = np.array([radius * room.size[0] * np.cos(angle), radius * room.size[1] * np.sin(angle), height])
    return look_at(position, position + np.array([np.cos(heading), np.sin(heading), -0.12]))
