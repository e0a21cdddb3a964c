# SPDX-License-Identifier: Apache-2.0
"""Two drives of a robot with cameras around it in a random room: a mapping drive, and a later query drive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.rig import Rig, RigFrame
from aceg_ros.synthetic.move_objects import with_objects_moved
from aceg_ros.synthetic.render import Light, random_light, render
from aceg_ros.synthetic.room import Room, free_position, random_room
from aceg_ros.synthetic.textures import TextureAtlas

WIDTH, HEIGHT, FIELD_OF_VIEW_DEG = 480, 360, 60.0
HEIGHT_M, RADIUS_M = 1.1, 0.2                           # of the cameras above the base and around it
NAMES = ("front", "left", "rear", "right")
PATH_SHARE, PATH_JITTER_M = 0.25, 0.3                   # of the mapping drive: half-axes over the room's size


def robot_camera() -> Camera:
    """Return the camera of the simulated robot."""
    focal = WIDTH / 2 / np.tan(np.radians(FIELD_OF_VIEW_DEG / 2))
    return Camera(width=WIDTH, height=HEIGHT, fx=focal, fy=focal, cx=(WIDTH - 1) / 2, cy=(HEIGHT - 1) / 2)


def robot_rig() -> Rig:
    """Return a rig of four cameras that look ahead, to the left, back and to the right; x of the base is ahead."""
    forward = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])      # base axes from optical ones
    mounts = {}
    for number, name in enumerate(NAMES):
        turn = planar_pose(0.0, 0.0, number * np.pi / 2)[:3, :3]
        mounts[name] = np.eye(4)
        mounts[name][:3, :3] = turn @ forward
        mounts[name][:3, 3] = turn @ (RADIUS_M, 0.0, HEIGHT_M)
    return Rig(rig_from_camera=mounts)


def planar_pose(x: float, y: float, yaw: float) -> np.ndarray:
    """Return the pose (4, 4) of a base on the floor."""
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    pose[:2, 3] = x, y
    return pose


@dataclass(frozen=True, kw_only=True)
class RigSessions:
    """Two drives: poses (4, 4) of the base, and the room and light of each; images are rendered one by one."""

    rig: Rig
    atlas: TextureAtlas
    rooms: tuple[Room, Room]
    poses: tuple[Sequence[np.ndarray], Sequence[np.ndarray]]
    lights: tuple[Sequence[Light], Sequence[Light]]

    def mapping(self) -> Iterator[RigFrame]:
        yield from self._drive(0)

    def query(self) -> Iterator[RigFrame]:
        yield from self._drive(1)

    def _drive(self, number: int) -> Iterator[RigFrame]:
        for index, (pose, light) in enumerate(zip(self.poses[number], self.lights[number], strict=True)):
            frames = {}
            for name, mount in self.rig.rig_from_camera.items():
                seen = render(self.rooms[number], self.atlas, robot_camera(), pose @ mount, light=light)
                frames[name] = Frame(image=seen.image, camera=robot_camera(), stamp_s=float(index),
                                     map_from_camera=pose @ mount, name=f"{index:06d}_{name}", depth_m=seen.depth_m)
            yield RigFrame(rig=self.rig, frames=frames, stamp_s=float(index), map_from_rig=pose, name=f"{index:06d}")


def rig_sessions(seed: int, atlas: TextureAtlas, *, mapping: int = 16, query: int = 12) -> RigSessions:
    """Draw a room and two drives: a loop that is mapped, and later stops anywhere in the room, at any heading.

    Args:
        seed: of the room, the poses and the lights.
        atlas: textures of the room.
        mapping: number of stops of the mapping drive, all under one light.
        query: number of stops of the query drive, each under another light, after objects were moved and removed.
    """
    rng = np.random.default_rng(seed)
    room = random_room(seed, len(atlas))
    loop = [_stop(room, rng, np.array([np.cos(angle), np.sin(angle)]) * PATH_SHARE * np.array(room.size[:2]),
                  angle + np.pi / 2) for angle in 2 * np.pi * np.arange(mapping) / mapping]
    stops = [_stop(room, rng, None, rng.uniform(-np.pi, np.pi)) for _ in range(query)]
    light = random_light(rng)
    return RigSessions(rig=robot_rig(), atlas=atlas, rooms=(room, with_objects_moved(room, rng)), poses=(loop, stops),
                       lights=([light] * mapping, [random_light(rng) for _ in range(query)]))


def _stop(room: Room, rng: np.random.Generator, centre: np.ndarray | None, yaw: float) -> np.ndarray:
    """Draw a base whose cameras are free, near a centre (2,) or anywhere."""
    half = np.array(room.size[:2]) / 2

    def propose() -> np.ndarray:
        position = rng.uniform(-0.8, 0.8, 2) * half if centre is None else centre + rng.normal(0, PATH_JITTER_M, 2)
        return np.array([*position, HEIGHT_M])

    x, y, _ = free_position(room, rng, propose)
    return planar_pose(x, y, yaw)
