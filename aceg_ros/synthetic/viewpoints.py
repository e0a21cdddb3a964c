"""Where a camera stands in a random room, and what it looks at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from aceg_ros.geometry import look_at
from aceg_ros.synthetic.room import Room, free_spot


@dataclass(frozen=True)
class Station:
    """Somewhere to stand (3,) and something on a wall to look at (3,)."""

    spot: np.ndarray
    target: np.ndarray


def random_station(room: Room, rng: np.random.Generator) -> Station:
    half = np.array(room.size) / 2
    spot = free_spot(room, rng, lambda: half * rng.uniform((-0.8, -0.8, 0), (0.8, 0.8, 0))
                     + (0, 0, rng.uniform(0.8, 1.9)))
    target = half * rng.uniform(-1, 1, 3)
    across = rng.integers(2)                                   # look at one of the four walls
    target[across] = half[across] * rng.choice((-1, 1))
    target[2] = rng.uniform(0.5, 1.7)
    return Station(spot, target)


def pose_near(room: Room, station: Station, rng: np.random.Generator, spread_m: float, aim_m: float,
              roll_rad: float) -> np.ndarray:
    """Pose (4, 4) of a camera near a station that looks near its target; standard deviations of all three."""
    spot = free_spot(room, rng, lambda: station.spot + rng.normal(0, (spread_m, spread_m, 0.2)))
    aim = station.target + rng.normal(0, aim_m, 3)
    if np.linalg.norm((aim - spot)[:2]) < 0.5:
        spot = station.spot
    pose = look_at(spot, aim)
    pose[:3, :3] = pose[:3, :3] @ Rotation.from_rotvec((0, 0, rng.normal(0, roll_rad))).as_matrix()
    return pose
