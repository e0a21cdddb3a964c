# SPDX-License-Identifier: Apache-2.0
"""A cheap scene with depth: a patterned wall with a patterned board in front of it, seen by a moving camera."""

from __future__ import annotations

import cv2
import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.geometry import invert, look_at

CAMERA = Camera(width=320, height=240, fx=260.0, fy=260.0, cx=159.5, cy=119.5)
WALL_M, BOARD_M = 4.0, 2.5              # distances along y
_PIXELS_PER_M = 100


def drive(count: int = 16) -> np.ndarray:
    """Poses (count, 4, 4) of a camera that moves along the walls, to and fro, up and down, and looks around."""
    angles = np.linspace(0.0, 4.6, count)
    return np.array([look_at(
        (1.6 * np.sin(angle) + 0.2 * angle, 0.35 * np.cos(2.3 * angle), 0.25 * np.sin(3.1 * angle)),
        (1.2 * np.sin(1.7 * angle), WALL_M, 0.7 * np.cos(1.9 * angle)), up=(0.25 * np.sin(1.3 * angle), 0.0, 1.0))
        for angle in angles])


def frames(poses: np.ndarray, *, depth: bool = False, seed: int = 0) -> list[Frame]:
    """What the camera sees from these poses. seed: of the patterns."""
    wall, board = pattern(seed, 14.0, 8.0), pattern(seed + 1, 1.6, 1.2)
    return [render(pose, wall, board, number, depth=depth) for number, pose in enumerate(poses)]


def pattern(seed: int, width_m: float, height_m: float) -> np.ndarray:
    """Rectangles of random sizes and colours, which no two places share."""
    rng = np.random.default_rng(seed)
    width, height = round(width_m * _PIXELS_PER_M), round(height_m * _PIXELS_PER_M)
    image = np.full((height, width, 3), 128, np.uint8)
    for _ in range(round(width_m * height_m * 60)):
        corner = rng.integers(0, (width, height))
        size = rng.integers(4, 40, 2)
        cv2.rectangle(image, corner.tolist(), (corner + size).tolist(), rng.integers(0, 256, 3).tolist(), -1)
    return image


def render(pose: np.ndarray, wall: np.ndarray, board: np.ndarray, number: int, *, depth: bool) -> Frame:
    size = CAMERA.width, CAMERA.height
    image = cv2.warpPerspective(wall, _homography(pose, wall, WALL_M), size, flags=cv2.INTER_LINEAR)
    to_board = _homography(pose, board, BOARD_M)
    inside = cv2.warpPerspective(np.ones(board.shape[:2], np.uint8), to_board, size) > 0
    image[inside] = cv2.warpPerspective(board, to_board, size, flags=cv2.INTER_LINEAR)[inside]
    depth_m = np.where(inside, BOARD_M, WALL_M).astype(np.float32) if depth else None       # to 20 %: enough here
    return Frame(image=image, camera=CAMERA, stamp_s=number / 30, map_from_camera=pose, name=f"{number}.png",
                 depth_m=depth_m)


def _homography(pose: np.ndarray, pattern: np.ndarray, distance_m: float) -> np.ndarray:
    """From pixels of a pattern, on the plane y = distance_m around the z axis, to pixels of the camera."""
    height, width = pattern.shape[:2]
    map_from_pattern = np.array([[1 / _PIXELS_PER_M, 0, -width / 2 / _PIXELS_PER_M], [0, 0, distance_m],
                                 [0, -1 / _PIXELS_PER_M, height / 2 / _PIXELS_PER_M], [0, 0, 1]])
    return CAMERA.K @ (invert(pose) @ map_from_pattern)[:3]
