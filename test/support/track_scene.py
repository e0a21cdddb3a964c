# SPDX-License-Identifier: Apache-2.0
"""Exact cameras and points in a room, and their observations with noise and outliers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from aceg_ros.geometry import look_at
from aceg_ros.mapping.pose_refinement import RefinementProblem

WIDTH, HEIGHT, FOCAL = 640, 480, 500.0


@dataclass(frozen=True, kw_only=True)
class TrackScene:
    """poses (F, 4, 4), points (T, 3)."""

    poses: np.ndarray
    points: np.ndarray


def make_scene(images: int, points: int, seed: int = 0) -> TrackScene:
    """Cameras on a circle in a room of 8 x 8 x 3 m look across it at points on its walls."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0.0, 2 * np.pi, images, endpoint=False)
    centres = np.column_stack([1.8 * np.cos(angle), 1.8 * np.sin(angle), 1.5 + rng.uniform(-0.4, 0.4, images)])
    targets = np.column_stack([4 * np.cos(angle + 0.4), 4 * np.sin(angle + 0.4), rng.uniform(0.8, 2.2, images)])
    poses = np.stack([look_at(centre, target) for centre, target in zip(centres, targets, strict=True)])
    along, height = rng.uniform(-4, 4, points), rng.uniform(0, 3, points)
    side = rng.integers(0, 4, points)
    wall = np.where(side % 2 == 0, 4.0, -4.0) + rng.uniform(-0.5, 0.5, points)
    on_x = side < 2
    return TrackScene(poses=poses, points=np.column_stack([np.where(on_x, wall, along), np.where(on_x, along, wall),
                                                           height]))


def observe(scene: TrackScene, *, noise_px: float, outliers: float = 0.0, most: int = 6, seed: int = 1
            ) -> RefinementProblem:
    """Observe each point in up to `most` of the images that show it, chosen at random. Poses and points are exact."""
    rng = np.random.default_rng(seed)
    poses = scene.poses
    local = np.einsum("fji,tfj->tfi", poses[:, :3, :3], scene.points[:, None] - poses[None, :, :3, 3])
    pixels = FOCAL * local[..., :2] / np.maximum(local[..., 2:], 1e-3) + (WIDTH / 2, HEIGHT / 2)
    inside = (local[..., 2] > 0.3) & ((pixels > 0) & (pixels < (WIDTH, HEIGHT))).all(-1)
    order = np.argsort(np.where(inside, rng.random(inside.shape), 2.0), axis=1)[:, :most]
    chosen = np.zeros_like(inside)
    np.put_along_axis(chosen, order, True, axis=1)
    tracks, images = np.nonzero(chosen & inside)
    seen = pixels[tracks, images] + rng.normal(0.0, noise_px, (len(tracks), 2))
    wrong = rng.random(len(tracks)) < outliers
    seen[wrong] = rng.uniform(0, (WIDTH, HEIGHT), (int(wrong.sum()), 2))
    return RefinementProblem(intrinsics=np.tile([FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2], (len(poses), 1)),
                             map_from_camera=poses, images=images, tracks=tracks, pixels=seen,
                             noise_px=np.full(len(tracks), max(noise_px, 0.01)), points=scene.points)


def disturb(problem: RefinementProblem, errors: np.ndarray, points: float = 0.05) -> RefinementProblem:
    """Return the problem with errors of the poses, (F, 6) metres and radians, and random ones of the points."""
    poses = problem.map_from_camera.copy()
    poses[:, :3, 3] += errors[:, :3]
    poses[:, :3, :3] = Rotation.from_rotvec(errors[:, 3:]).as_matrix() @ poses[:, :3, :3]
    moved = problem.points + np.random.default_rng(3).normal(0.0, points, problem.points.shape)
    return replace(problem, map_from_camera=poses, points=moved)


def random_errors(count: int, position_m: float, rotation_rad: float, seed: int = 2) -> np.ndarray:
    """Return errors of poses (count, 6) whose lengths are, root mean square, as given."""
    rng = np.random.default_rng(seed)
    return rng.normal(0.0, 1.0, (count, 6)) * np.repeat([position_m, rotation_rad], 3) / 3**0.5
