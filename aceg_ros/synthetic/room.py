# SPDX-License-Identifier: Apache-2.0
"""Procedural rooms: a shell full of textured boxes (tables, shelves with books, cabinets, posters on the walls)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Faces:
    """Six faces (-x, +x, -y, +y, -z, +z) of each of N boxes.

    texture (N, 6) int; tile_m (N, 6, 2) metres that one tile covers along u and v; offset (N, 6, 2) in tiles;
    tint (N, 6, 3) colour factors.
    """

    texture: np.ndarray
    tile_m: np.ndarray
    offset: np.ndarray
    tint: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Room:
    """N boxes; box 0 is the shell, seen from inside. Map frame: metres, z up, floor at z = 0, centred in x and y.

    centre, half (N, 3); yaw (N,) rotation about z; faces.
    """

    size: tuple[float, float, float]
    centre: np.ndarray
    half: np.ndarray
    yaw: np.ndarray
    faces: Faces
    seed: int

    def __len__(self) -> int:
        return len(self.centre)

    def free(self, position: np.ndarray, margin_m: float = 0.25) -> bool:
        """Return whether a position (3,) is at least margin_m away from the walls and from every box."""
        if (np.abs(position - self.centre[0]) > self.half[0] - margin_m).any():
            return False
        cos, sin = np.cos(self.yaw[1:]), np.sin(self.yaw[1:])
        delta = position - self.centre[1:]
        local = np.stack([cos * delta[:, 0] + sin * delta[:, 1], cos * delta[:, 1] - sin * delta[:, 0], delta[:, 2]], 1)
        return bool((np.abs(local) > self.half[1:] + margin_m).any(axis=1).all())


def free_position(room: Room, rng: np.random.Generator, propose: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the first of 200 proposed positions (3,) that is free, or one under the ceiling if none is."""
    for _ in range(200):
        position = propose()
        if room.free(position):
            return position
    return np.array([0.0, 0.0, room.size[2] - 0.3])


class _Builder:
    """Collects boxes and builds a `Room` from them."""

    def __init__(self, rng: np.random.Generator, textures: int):
        self.rng, self.textures = rng, textures
        self.boxes: list[tuple] = []

    def add_box(self, centre, half, yaw=0.0, *, tile_m: float | None = None, one_texture=True) -> None:
        """Add a box. tile_m: size of a tile; None stretches one tile over each face (posters, books, labels)."""
        rng = self.rng
        half = np.maximum(np.asarray(half, float), 0.004)
        texture = np.full(6, rng.integers(self.textures)) if one_texture else rng.integers(self.textures, size=6)
        sides = np.array([[1, 2], [1, 2], [0, 2], [0, 2], [0, 1], [0, 1]])
        tile = 2 * half[sides] if tile_m is None else np.full((6, 2), tile_m)
        tint = rng.uniform(0.7, 1.1, (1, 1)) * (1 + rng.normal(0, 0.06, (1, 3))) * np.ones((6, 3))
        self.boxes.append((np.asarray(centre, float), half, yaw, texture, tile, rng.uniform(0, 1, (6, 2)), tint))

    def room(self, size, seed: int) -> Room:
        centre, half, yaw, texture, tile, offset, tint = (np.stack(column) for column in zip(*self.boxes, strict=True))
        faces = Faces(texture=texture, tile_m=tile, offset=offset, tint=tint)
        return Room(size=size, centre=centre, half=half, yaw=yaw, faces=faces, seed=seed)


def random_room(seed: int, textures: int, posters: tuple[int, int] = (10, 28)) -> Room:
    """Build a random furnished room of 3 to 9 m.

    textures: number of tiles in the atlas. posters: minimum and (exclusive) maximum number of posters on the walls.
    """
    rng = np.random.default_rng(seed)
    builder = _Builder(rng, textures)
    width, length, height = rng.uniform(3.5, 9), rng.uniform(3, 7), rng.uniform(2.4, 3.4)
    builder.add_box((0, 0, height / 2), (width / 2, length / 2, height / 2), tile_m=rng.uniform(0.8, 2.5),
                    one_texture=False)
    for _ in range(int(rng.integers(*posters))):
        _hang_poster(builder, width, length, height)
    for _ in range(int(rng.integers(2, 6))):
        _add_shelf(builder, width, length)
    for _ in range(int(rng.integers(2, 6))):
        _add_table(builder, width, length)
    for _ in range(int(rng.integers(3, 10))):
        _add_box(builder, width, length)
    return builder.room((width, length, height), seed)


def long_hall(seed: int, textures: int, length_m: float, width_m: float = 5.0) -> Room:
    """Build an office hall along x, furnished along its long walls about as densely as a random room; the middle is
    free."""
    rng = np.random.default_rng(seed)
    builder = _Builder(rng, textures)
    height = rng.uniform(2.5, 3.2)
    builder.add_box((0, 0, height / 2), (length_m / 2, width_m / 2, height / 2), tile_m=rng.uniform(0.8, 2.5),
                    one_texture=False)
    for _ in range(round(1.6 * length_m)):
        _hang_poster(builder, length_m, width_m, height, position=_along_side)
    for _ in range(round(0.3 * length_m)):
        _add_shelf(builder, length_m, width_m, _along_side)
    for _ in range(round(0.5 * length_m)):
        half = rng.uniform((0.12, 0.12, 0.15), (0.45, 0.3, 0.7))
        x, side = rng.uniform(-length_m / 2 + 0.5, length_m / 2 - 0.5), rng.choice((-1, 1))
        builder.add_box((x, side * rng.uniform(1.4, width_m / 2 - 0.5), half[2]), half, rng.uniform(0, np.pi),
                        tile_m=(None, 0.5, 1.0)[rng.integers(3)], one_texture=False)
    return builder.room((length_m, width_m, height), seed)


def _along_wall(rng, width, length, depth):
    """Draw (x, y, yaw) of an object against a random wall; its back is `depth` metres behind its centre."""
    wall = rng.integers(4)
    if wall < 2:
        return rng.uniform(-width / 2 + 0.6, width / 2 - 0.6), (length / 2 - depth) * (1 - 2 * wall), 0.0
    return (width / 2 - depth) * (5 - 2 * wall), rng.uniform(-length / 2 + 0.6, length / 2 - 0.6), np.pi / 2


def _along_side(rng, width, length, depth):
    """Draw as `_along_wall`, in nine of ten cases at one of the two walls along x."""
    if rng.uniform() < 0.1:
        return _along_wall(rng, width, length, depth)
    return rng.uniform(-width / 2 + 0.6, width / 2 - 0.6), (length / 2 - depth) * rng.choice((-1, 1)), 0.0


def _hang_poster(builder, width, length, height, *, position=_along_wall):
    x, y, yaw = position(builder.rng, width, length, 0.01)
    half = builder.rng.uniform((0.15, 0.015, 0.12), (0.7, 0.02, 0.55))
    builder.add_box((x, y, builder.rng.uniform(0.8, height - 0.4)), half, yaw, one_texture=False)


def _add_shelf(builder, width, length, position=_along_wall):
    rng = builder.rng
    depth, half_width = rng.uniform(0.12, 0.22), rng.uniform(0.35, 0.8)
    x, y, yaw = position(rng, width, length, depth)
    along = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    boards = int(rng.integers(2, 6))
    for board in range(boards):
        z = 0.1 + board * 0.38
        builder.add_box((x, y, z), (half_width, depth, 0.02), yaw, tile_m=0.7)
        cursor = -half_width + 0.02
        while cursor < half_width - 0.1 and rng.uniform() > 0.06:
            half = np.array([rng.uniform(0.02, 0.12), depth * rng.uniform(0.5, 0.9), rng.uniform(0.06, 0.15)])
            builder.add_box(np.array([x, y, z + 0.02 + half[2]]) + along * (cursor + half[0]), half, yaw)
            cursor += 2 * half[0] + rng.choice([0.005, 0.03, 0.12])


def _add_table(builder, width, length):
    rng = builder.rng
    x, y, yaw = rng.uniform(-width / 3, width / 3), rng.uniform(-length / 3, length / 3), rng.uniform(0, np.pi)
    half_x, half_y, z = rng.uniform(0.35, 0.8), rng.uniform(0.25, 0.45), rng.uniform(0.45, 0.95)
    builder.add_box((x, y, z), (half_x, half_y, 0.02), yaw, tile_m=0.8)
    rotation = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
    for sign_x in (-1, 1):
        for sign_y in (-1, 1):
            leg = rotation @ np.array([sign_x * (half_x - 0.05), sign_y * (half_y - 0.05)])
            builder.add_box((x + leg[0], y + leg[1], z / 2), (0.03, 0.03, z / 2), yaw, tile_m=0.5)
    for _ in range(int(rng.integers(2, 7))):
        centre = rotation @ np.array([rng.uniform(-half_x, half_x), rng.uniform(-half_y, half_y)]) * 0.8
        half = rng.uniform((0.03, 0.03, 0.02), (0.17, 0.12, 0.18))
        builder.add_box((x + centre[0], y + centre[1], z + 0.02 + half[2]), half, rng.uniform(0, np.pi),
                        one_texture=False)


def _add_box(builder, width, length):
    rng = builder.rng
    half = rng.uniform((0.12, 0.12, 0.15), (0.45, 0.35, 0.7))
    x, y = rng.uniform(-width / 2 + 0.5, width / 2 - 0.5), rng.uniform(-length / 2 + 0.5, length / 2 - 0.5)
    builder.add_box((x, y, half[2]), half, rng.uniform(0, np.pi), tile_m=rng.choice([None, 0.5, 1.0]),
                    one_texture=False)
