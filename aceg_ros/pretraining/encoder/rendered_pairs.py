# SPDX-License-Identifier: Apache-2.0
"""Pairs of views of rendered rooms, with exact correspondences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aceg_ros.camera import Camera, project_map_points
from aceg_ros.pretraining.common.run import write_arrays
from aceg_ros.pretraining.encoder.pairs import Pair, TeacherDescriptors
from aceg_ros.synthetic.camera_poses import pose_near, random_viewpoint
from aceg_ros.synthetic.render import random_light, render
from aceg_ros.synthetic.room import random_room
from aceg_ros.synthetic.textures import TextureAtlas

VIEWS_PER_ROOM = 6
POINTS_PER_VIEW = 4000


@dataclass(frozen=True, kw_only=True)
class RoomViews:
    """Views of a room from near one viewpoint: images (V, H, W, 3), depth_m (V, H, W), poses (V, 4, 4), focal_px."""

    images: np.ndarray
    depth_m: np.ndarray
    poses: np.ndarray
    focal_px: float

    @property
    def camera(self) -> Camera:
        height, width = self.depth_m.shape[1:]
        return Camera(width=width, height=height, fx=self.focal_px, fy=self.focal_px, cx=(width - 1) / 2,
                      cy=(height - 1) / 2)

    def save(self, path: Path) -> None:
        write_arrays(path, {"images": self.images, "depth_m": self.depth_m, "poses": self.poses,
                            "focal_px": np.array(self.focal_px)})

    @classmethod
    def load(cls, path: Path) -> RoomViews:
        with np.load(path) as arrays:
            return cls(images=arrays["images"], depth_m=arrays["depth_m"], poses=arrays["poses"],
                       focal_px=float(arrays["focal_px"]))


def render_views(seed: int, atlas: TextureAtlas, *, width: int = 480, height: int = 384,
                 count: int = VIEWS_PER_ROOM) -> RoomViews:
    """Render views of random room `seed` from near one viewpoint, each under a different light."""
    rng = np.random.default_rng(seed)
    room = random_room(seed, len(atlas))
    focal = rng.uniform(380, 620)
    camera = Camera(width=width, height=height, fx=focal, fy=focal, cx=(width - 1) / 2, cy=(height - 1) / 2)
    viewpoint = random_viewpoint(room, rng)
    views, poses = [], []
    for _ in range(count):
        pose = pose_near(room, viewpoint, rng, position_m=0.5, target_m=0.35, roll_rad=0.12)
        views.append(render(room, atlas, camera, pose, light=random_light(rng)))
        poses.append(pose)
    return RoomViews(images=np.stack([view.image for view in views]),
                     depth_m=np.stack([view.depth_m for view in views]).astype(np.float16),
                     poses=np.stack(poses), focal_px=focal)


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Pixels of one view transferred to another: map_points (N, 3), pixels (N, 2) there, and visible (N,) bool."""

    map_points: np.ndarray
    pixels: np.ndarray
    visible: np.ndarray


def transfer_pixels(room: RoomViews, pixels: np.ndarray, source: int, target: int) -> Transfer:
    """Transfer pixels (N, 2) of view `source` to view `target` by their depths."""
    camera = room.camera
    columns, rows = pixels.round().astype(int).T
    depth = room.depth_m[source][rows, columns].astype(float)
    rays = np.column_stack([(pixels - (camera.cx, camera.cy)) / camera.fx, np.ones(len(pixels))])
    points = (rays * depth[:, None]) @ room.poses[source][:3, :3].T + room.poses[source][:3, 3]
    projected, target_depth = project_map_points(points, camera, room.poses[target])
    inside = (projected > 1).all(1) & (projected < (camera.width - 2, camera.height - 2)).all(1) & (target_depth > 0.1)
    nearest = np.clip(projected.round().astype(int), 0, (camera.width - 1, camera.height - 1))
    measured = room.depth_m[target][nearest[:, 1], nearest[:, 0]].astype(float)
    unoccluded = np.abs(measured - target_depth) < 0.02 * target_depth + 0.01
    return Transfer(map_points=points, pixels=projected, visible=inside & unoccluded)


class RenderedPairs:
    """Pairs of views of rendered rooms.

    names: of the rooms. teacher: for each room, the teacher's descriptors of each view, None for views without them;
    None without a teacher.
    """

    def __init__(self, rooms: list[RoomViews], names: list[str],
                 teacher: list[list[TeacherDescriptors | None]] | None = None):
        self._rooms, self._names, self._teacher = rooms, names, teacher

    def sample(self, rng: np.random.Generator) -> Pair:
        index = int(rng.integers(len(self._rooms)))
        room = self._rooms[index]
        a, b = (int(view) for view in rng.choice(len(room.images), 2, replace=False))
        camera = room.camera
        described = None if self._teacher is None else self._teacher[index][a]
        if described is None:
            pixels = rng.uniform((2, 2), (camera.width - 3, camera.height - 3), (POINTS_PER_VIEW, 2)).round()
        else:
            pixels = described.pixels
        found = transfer_pixels(room, pixels, a, b)
        return Pair(images=(room.images[a], room.images[b]),
                    points=(pixels[found.visible], found.pixels[found.visible]), scene=self._names[index],
                    map_points=found.map_points[found.visible],
                    teacher_descriptors=None if described is None else described.descriptors[found.visible])
