# SPDX-License-Identifier: Apache-2.0
"""Random camera poses in a room: viewpoints, and poses near one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from aceg_ros.geometry import look_at
from aceg_ros.synthetic.room import Room, free_position

POSITION_M, TARGET_M, ROLL_RAD = 0.6, 0.45, 0.08        # standard deviations of the poses of a visit near a viewpoint


@dataclass(frozen=True, kw_only=True)
class Viewpoint:
    """Position (3,) of a camera in the map, and a point (3,) on a wall that it looks at."""

    position: np.ndarray
    target: np.ndarray


def random_viewpoint(room: Room, rng: np.random.Generator) -> Viewpoint:
    """Draw a free position at eye height, and a point on one of the four walls to look at."""
    half = np.array(room.size) / 2
    position = free_position(room, rng, lambda: half * rng.uniform((-0.8, -0.8, 0), (0.8, 0.8, 0))
                             + (0, 0, rng.uniform(0.8, 1.9)))
    target = half * rng.uniform(-1, 1, 3)
    axis = rng.integers(2)
    target[axis] = half[axis] * rng.choice((-1, 1))
    target[2] = rng.uniform(0.5, 1.7)
    return Viewpoint(position=position, target=target)


def pose_near(room: Room, viewpoint: Viewpoint, rng: np.random.Generator, *, position_m: float, target_m: float,
              roll_rad: float) -> np.ndarray:
    """Draw a pose map_from_camera (4, 4) near a viewpoint.

    position_m, target_m, roll_rad: standard deviations of the camera's position, of its target and of its roll.
    """
    position = free_position(room, rng,
                             lambda: viewpoint.position + rng.normal(0, (position_m, position_m, 0.2)))
    target = viewpoint.target + rng.normal(0, target_m, 3)
    if np.linalg.norm((target - position)[:2]) < 0.5:
        position = viewpoint.position
    pose = look_at(position, target)
    pose[:3, :3] = pose[:3, :3] @ Rotation.from_rotvec((0, 0, rng.normal(0, roll_rad))).as_matrix()
    return pose


def poses_near(room: Room, viewpoints: Sequence[Viewpoint], rng: np.random.Generator, count: int, *,
               spread: float = 1.0) -> list[np.ndarray]:
    """Draw `count` poses of a visit, near the viewpoints in turn. spread: factor of the usual distances from them."""
    return [pose_near(room, viewpoints[index % len(viewpoints)], rng, position_m=spread * POSITION_M,
                      target_m=spread * TARGET_M, roll_rad=ROLL_RAD) for index in range(count)]
