# SPDX-License-Identifier: Apache-2.0
"""Draw docs/images/localized.jpg, the image of the README: a query with its inliers, beside the map that they are in.

    python scripts/draw_map_image.py [OUTPUT]

The room is this package's own, rendered: images of the real scenes that it is tested on may not be published.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

import aceg_ros as ag
from aceg_ros.camera import Camera, Frame
from aceg_ros.estimate import PoseEstimate
from aceg_ros.geometry import invert, look_at
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.synthetic.demo_room import CAMERA, World, demo_world, mapping_path, query_path
from aceg_ros.synthetic.render import DAYLIGHT, EVENING
from aceg_ros.visualization.overlay import INLIER, draw_estimate

OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "images" / "localized.jpg"
SCALE = 1.5                         # of the demo's 640x480, so that the image is sharp on a dense screen
MAPPING_IMAGES, QUERIES, CHOSEN = 80, 24, 3
LINES = 40                          # inliers that are joined with their landmarks: more hide the image
BACKGROUND, TRAJECTORY, CAMERA_COLOUR = (24, 26, 32), (150, 160, 175), (255, 196, 60)       # RGB
FRUSTUM_M, BRIGHTER = 0.4, 0.6


def scaled(camera: Camera, factor: float) -> Camera:
    """Return a camera with the same view and `factor` times as many pixels each way; pixel centres stay."""
    return replace(camera, width=round(camera.width * factor), height=round(camera.height * factor),
                   fx=camera.fx * factor, fy=camera.fy * factor, cx=(camera.cx + 0.5) * factor - 0.5,
                   cy=(camera.cy + 0.5) * factor - 0.5)


def mapped_and_localized(world: World, images: int) -> tuple[SceneMap, Frame, PoseEstimate]:
    """Map the demo's room by day, and localize one image of another drive in the evening."""
    frames = [world.render_frame(pose, DAYLIGHT, name=f"{number}")
              for number, pose in enumerate(mapping_path(images, world.room))]
    scene_map = ag.build_map(frames)
    query = world.render_frame(query_path(QUERIES, world.room)[CHOSEN], EVENING)
    return scene_map, query, ag.Localizer(scene_map).localize(query)


def draw_map(scene_map: SceneMap, estimate: PoseEstimate, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Draw the map from behind and above the localized camera.

    Returns:
        The drawing (H, W, 3) uint8 RGB, and where in it the inliers' landmarks are (N, 2), NaN outside.
    """
    pose = estimate.map_from_camera
    forward, up = pose[:3, 2] * (1.0, 1.0, 0.0), np.array([0.0, 0.0, 1.0])
    side = np.cross(forward, up)
    outside = look_at(pose[:3, 3] - 2.3 * forward - 1.4 * side + 1.7 * up, pose[:3, 3] + 0.9 * forward + 0.15 * up)
    drawing = np.full((camera.height, camera.width, 3), BACKGROUND, np.uint8)
    _draw_cloud(drawing, scene_map, outside, camera)
    _draw_path(drawing, scene_map.trajectory[:, :3, 3], outside, camera)
    chosen = estimate.correspondences.points[estimate.inlier_indices]
    pixels = project(chosen, outside, camera)
    for pixel in pixels[np.isfinite(pixels).all(1)]:
        cv2.circle(drawing, _rounded(pixel), 2, INLIER, -1, cv2.LINE_AA)
    _draw_frustum(drawing, pose, outside, camera)
    return drawing, pixels


def _draw_cloud(drawing: np.ndarray, scene_map: SceneMap, outside: np.ndarray, camera: Camera) -> None:
    """Draw the map's points, the nearest last. What is above the camera's view (a ceiling) would hide the rest."""
    xyz, rgb = scene_map.cloud_xyz, scene_map.cloud_rgb
    rgb = (255.0 * (rgb / 255.0) ** BRIGHTER).astype(np.uint8)
    below = xyz[:, 2] < np.quantile(xyz[:, 2], 0.97)
    distance = np.linalg.norm(xyz - outside[:3, 3], axis=1)
    pixels = project(xyz, outside, camera)
    for index in np.argsort(-distance):
        if below[index] and np.isfinite(pixels[index]).all():
            size = int(np.clip(round(16.0 / distance[index]), 1, 5))
            cv2.circle(drawing, _rounded(pixels[index]), size, rgb[index].tolist(), -1, cv2.LINE_AA)


def _draw_path(drawing: np.ndarray, positions: np.ndarray, outside: np.ndarray, camera: Camera) -> None:
    pixels = project(positions, outside, camera)
    for start, end in pairwise(pixels):
        if np.isfinite([start, end]).all():
            cv2.line(drawing, _rounded(start), _rounded(end), TRAJECTORY, 2, cv2.LINE_AA)


def _draw_frustum(drawing: np.ndarray, pose: np.ndarray, outside: np.ndarray, camera: Camera) -> None:
    corners = np.array([[0, 0], [camera.width, 0], [camera.width, camera.height], [0, camera.height]], float)
    rays = np.column_stack([(corners - (camera.cx, camera.cy)) / (camera.fx, camera.fy), np.ones(4)])
    pixels = project(np.vstack([np.zeros(3), FRUSTUM_M * rays]) @ pose[:3, :3].T + pose[:3, 3], outside, camera)
    for number in range(1, 5):
        for other in (0, number % 4 + 1):
            cv2.line(drawing, _rounded(pixels[number]), _rounded(pixels[other]), CAMERA_COLOUR, 3, cv2.LINE_AA)


def project(points: np.ndarray, map_from_camera: np.ndarray, camera: Camera) -> np.ndarray:
    """Project map points (N, 3): pixels (N, 2), NaN behind the camera or outside the image."""
    camera_from_map = invert(map_from_camera)
    local = points @ camera_from_map[:3, :3].T + camera_from_map[:3, 3]
    pixels = np.full((len(points), 2), np.nan)
    front = local[:, 2] > 0.05
    pixels[front] = camera.project(local[front])
    with np.errstate(invalid="ignore"):
        pixels[((pixels < 0) | (pixels >= (camera.width, camera.height))).any(1)] = np.nan
    return pixels


def _rounded(pixel: np.ndarray) -> tuple[int, int]:
    return round(float(pixel[0])), round(float(pixel[1]))


def draw(scene_map: SceneMap, query: Frame, estimate: PoseEstimate) -> np.ndarray:
    """Draw the query with its inliers, the map, and lines from inliers to landmarks; (H, 2 W, 3) uint8 RGB."""
    camera = query.camera
    right, landmarks = draw_map(scene_map, estimate, camera)
    sheet = np.hstack([draw_estimate(query, estimate), right])
    pixels = estimate.correspondences.pixels[estimate.inlier_indices]
    used = estimate.correspondences.camera
    pixels = (pixels + 0.5) * (camera.width / used.width, camera.height / used.height) - 0.5
    visible = np.flatnonzero(np.isfinite(landmarks).all(1))
    lines = sheet.copy()
    for index in visible[np.linspace(0, len(visible) - 1, min(LINES, len(visible))).astype(int)]:
        cv2.line(lines, _rounded(pixels[index]), _rounded(landmarks[index] + (camera.width, 0)), INLIER, 1, cv2.LINE_AA)
    return cv2.addWeighted(lines, 0.6, sheet, 0.4, 0.0)


def main(output: Path = OUTPUT, images: int = MAPPING_IMAGES, scale: float = SCALE) -> None:
    world = demo_world(scaled(CAMERA, scale))
    scene_map, query, estimate = mapped_and_localized(world, images)
    if not estimate.accepted:
        sys.exit(f"The query is not localized: {estimate.message}")
    drawn = cv2.cvtColor(draw(scene_map, query, estimate), cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(output), drawn, [cv2.IMWRITE_JPEG_QUALITY, 88])
    error_m = np.linalg.norm(estimate.map_from_camera[:3, 3] - query.map_from_camera[:3, 3])
    print(f"{output}: {estimate.inliers} inliers, {100 * error_m:.1f} cm off")


if __name__ == "__main__":
    main(*(Path(name) for name in sys.argv[1:2]))
