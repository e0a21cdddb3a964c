# SPDX-License-Identifier: Apache-2.0
"""Predicts where a map localizes: how many of its landmarks an image would find from a pose, and the chance of a pose.

A landmark is found again from where it was observed: the probability falls with the angle between the viewing
directions and with the ratio of the distances to the nearest observation. It is in the image if it projects into it;
what hides it is not known, but it was not observed from behind a wall. The constants were fitted to images of rendered
rooms (docs/benchmarks/2026-11-27-coverage.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aceg_ros.camera import Camera, project_map_points
from aceg_ros.errors import UserError
from aceg_ros.geometry import rotation_to_quaternion
from aceg_ros.maps.keyframe_database import SECTION, KeyframeDatabase
from aceg_ros.maps.scene_map import SceneMap

ANGLE_RAD, OCTAVES = np.radians(40.0), 0.75          # standard deviations of viewing direction and of distance
LOGIT_AT_ONE, LOGIT_PER_LOG = -7.69, 1.50           # of the chance of a pose, by the logarithm of landmarks found
MIN_DEPTH_M = 0.1
MARGIN_DEPTHS = 0.5                                 # of the grid around the keyframes, in median depths
MAX_CELLS = 2000


class LandmarkVisibility:
    """The observations of a map's landmarks, as directions and distances."""

    def __init__(self, database: KeyframeDatabase):
        self._points = database.points_array
        self._landmarks = database.landmark_array
        keyframes = np.repeat(np.arange(len(database)), np.diff(database.starts))
        away = database.pose_array[keyframes, :3, 3] - self._points[self._landmarks]
        distance = np.maximum(np.linalg.norm(away, axis=1), 1e-9)
        self._directions, self._octaves = (away / distance[:, None]).astype(np.float32), np.log2(distance)

    def probabilities(self, position: np.ndarray) -> np.ndarray:
        """Return the probability (L,) that an image from a position (3,) that shows a landmark finds it."""
        away = position - self._points
        distance = np.maximum(np.linalg.norm(away, axis=1), 1e-9)
        directions = (away / distance[:, None]).astype(np.float32)
        cosine = np.einsum("nc,nc->n", self._directions, directions[self._landmarks])
        angle = np.arccos(np.clip(cosine, -1.0, 1.0)) / ANGLE_RAD
        octaves = (self._octaves - np.log2(distance)[self._landmarks]) / OCTAVES
        found = np.zeros(len(self._points))
        np.maximum.at(found, self._landmarks, np.exp(-0.5 * (np.square(angle) + np.square(octaves))))
        return found

    def expected_inliers(self, map_from_camera: np.ndarray, camera: Camera,
                         probabilities: np.ndarray | None = None) -> float:
        """Return the number of landmarks that a pinhole camera at a pose (4, 4) is expected to find again.

        probabilities: those of its position, if they are known.
        """
        if probabilities is None:
            probabilities = self.probabilities(map_from_camera[:3, 3])
        pixels, depth = project_map_points(self._points, camera, map_from_camera)
        inside = (depth > MIN_DEPTH_M) & (pixels > 0).all(1) & (pixels < (camera.width - 1, camera.height - 1)).all(1)
        return float(probabilities[inside].sum())


def chance_of_pose(expected_inliers: np.ndarray | float) -> np.ndarray:
    """Return the predicted chance that an image with so many expected inliers is localized."""
    logit = LOGIT_AT_ONE + LOGIT_PER_LOG * np.log1p(np.asarray(expected_inliers, float))
    return 1.0 / (1.0 + np.exp(-logit))


@dataclass(frozen=True, kw_only=True)
class CoverageGrid:
    """Predicted chances of a pose on a grid of positions and headings.

    chances: (R, C, H), row by row from the origin, for each of the headings. inliers: the same, expected inliers.
    map_from_grid: (4, 4); x of the grid is along columns, y along rows, z is up; the origin is the corner of the first
    cell. resolution_m: side of a cell. headings_rad: (H,) of the viewing direction, from x of the grid.
    """

    chances: np.ndarray
    inliers: np.ndarray
    map_from_grid: np.ndarray
    resolution_m: float
    headings_rad: np.ndarray

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height of the grid in metres."""
        rows, columns = self.chances.shape[:2]
        return columns * self.resolution_m, rows * self.resolution_m

    @property
    def orientation(self) -> np.ndarray:
        """The rotation of the grid in the map as a quaternion (x, y, z, w)."""
        return rotation_to_quaternion(self.map_from_grid[:3, :3])

    def to_grid(self, points: np.ndarray) -> np.ndarray:
        """Return map points (N, 3) in the grid frame."""
        return (points - self.map_from_grid[:3, 3]) @ self.map_from_grid[:3, :3]


def compute_coverage(database: KeyframeDatabase, camera: Camera, *, resolution_m: float | None = None,
                     headings: int = 8) -> CoverageGrid:
    """Predict the chance of a pose on a grid around the keyframes, at their height and with their tilt.

    Args:
        database: of the map.
        camera: a pinhole camera.
        resolution_m: side of the cells; None: a tenth of the median depth. Larger if there would be too many cells.
        headings: number of viewing directions.
    """
    poses, depth_m = database.pose_array, float(np.median(database.depths_m))
    axes = grid_axes(poses)
    local = poses[:, :3, 3] @ axes
    low, high = local.min(0) - MARGIN_DEPTHS * depth_m, local.max(0) + MARGIN_DEPTHS * depth_m
    size = high[:2] - low[:2]
    smallest_m = float(np.sqrt(size[0] * size[1] / MAX_CELLS))
    resolution_m = max(resolution_m or depth_m / 10.0, smallest_m)
    columns, rows = (int(np.ceil(each / resolution_m)) for each in size)
    angles = 2 * np.pi * np.arange(headings) / headings
    tilt = float(np.median(np.arcsin(np.clip(poses[:, :3, 2] @ axes[:, 2], -1.0, 1.0))))
    directions = [_level_camera(axes, angle, tilt) for angle in angles]
    visibility, height = LandmarkVisibility(database), float(np.median(local[:, 2]))
    inliers = np.zeros((rows, columns, headings))
    for row in range(rows):
        for column in range(columns):
            centre = np.array([low[0] + (column + 0.5) * resolution_m, low[1] + (row + 0.5) * resolution_m, height])
            position = axes @ centre
            probabilities = visibility.probabilities(position)
            for number, rotation in enumerate(directions):
                pose = np.eye(4)
                pose[:3, :3], pose[:3, 3] = rotation, position
                inliers[row, column, number] = visibility.expected_inliers(pose, camera, probabilities)
    origin = np.eye(4)
    origin[:3, :3], origin[:3, 3] = axes, axes @ np.array([low[0], low[1], height])
    return CoverageGrid(chances=chance_of_pose(inliers), inliers=inliers, map_from_grid=origin,
                        resolution_m=resolution_m, headings_rad=angles)


def coverage_of_map(scene_map: SceneMap, *, resolution_m: float | None = None, headings: int = 8) -> CoverageGrid:
    """Predict the coverage of a map for its first mapping camera; see `compute_coverage`.

    Raises UserError if the map has no keyframe database, or no camera.
    """
    if SECTION not in scene_map.sections or not scene_map.cameras:
        raise UserError("The map has no keyframe database, which tells from where its landmarks were seen: map the"
                        " recording again with the default method.")
    database = KeyframeDatabase.from_section(scene_map.sections[SECTION])
    return compute_coverage(database, scene_map.cameras[0].rectified(), resolution_m=resolution_m, headings=headings)


def grid_axes(poses: np.ndarray) -> np.ndarray:
    """Return axes (3, 3), as columns, whose last one is up in most images of these poses (F, 4, 4): an axis of the map,
    if it is near, or the mean direction."""
    up = -poses[:, :3, 1].mean(0)
    up = up / max(float(np.linalg.norm(up)), 1e-9)
    nearest = int(np.argmax(np.abs(up)))
    if abs(up[nearest]) > np.cos(np.radians(20.0)):
        up = np.sign(up[nearest]) * np.eye(3)[nearest]
    first = np.eye(3)[int(np.argmin(np.abs(up)))] if nearest != 2 else np.eye(3)[0]
    first = first - up * (first @ up)
    first = first / np.linalg.norm(first)
    return np.column_stack([first, np.cross(up, first), up])


def _level_camera(axes: np.ndarray, heading_rad: float, tilt_rad: float) -> np.ndarray:
    """Return map_from_camera's rotation of a camera that looks along a heading, tilted up."""
    ahead = np.cos(heading_rad) * axes[:, 0] + np.sin(heading_rad) * axes[:, 1]
    forward = np.cos(tilt_rad) * ahead + np.sin(tilt_rad) * axes[:, 2]
    right = np.cross(ahead, axes[:, 2])
    return np.column_stack([right, np.cross(forward, right), forward])
