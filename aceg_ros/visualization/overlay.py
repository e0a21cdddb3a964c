"""Draws the correspondences of an estimate: inliers, outliers, and the reprojection of the map points."""

from __future__ import annotations

import cv2
import numpy as np

from aceg_ros.camera import Frame
from aceg_ros.estimate import PoseEstimate
from aceg_ros.geometry import invert

INLIER, OUTLIER, REPROJECTION = (60, 220, 90), (235, 70, 60), (255, 255, 255)      # RGB


def draw_estimate(frame: Frame, estimate: PoseEstimate) -> np.ndarray:
    """Draw an estimate into the rectified image.

    Returns (H, W, 3) uint8 RGB with a dot for each correspondence, green for inliers and red for outliers, a white line
    from each inlier to the reprojection of its map point, and the status as text.
    """
    image = frame.camera.rectify(frame.image)[0].copy()
    height, width = image.shape[:2]
    correspondences = estimate.correspondences
    if correspondences is not None and len(correspondences.pixels):
        # Pixel centres are whole numbers in both images.
        scale = np.array([width / correspondences.camera.width, height / correspondences.camera.height])
        pixels = (correspondences.pixels + 0.5) * scale - 0.5
        is_inlier = np.zeros(len(pixels), bool)
        if estimate.inlier_indices is not None:
            is_inlier[estimate.inlier_indices] = True
        _dots(image, pixels[~is_inlier], OUTLIER)
        if estimate.map_from_camera is not None:
            _lines(image, pixels[is_inlier], (_reprojected(estimate, is_inlier) + 0.5) * scale - 0.5)
        _dots(image, pixels[is_inlier], INLIER)
    text = f"{estimate.status.value}: {estimate.inliers} inliers" if estimate.accepted else estimate.status.value
    for thickness, colour in ((3, (0, 0, 0)), (1, (255, 255, 255))):
        cv2.putText(image, text, (8, height - 10), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, thickness, cv2.LINE_AA)
    return image


def _reprojected(estimate: PoseEstimate, chosen: np.ndarray) -> np.ndarray:
    assert estimate.correspondences is not None and estimate.map_from_camera is not None
    camera_from_map = invert(estimate.map_from_camera)
    points = estimate.correspondences.points[chosen] @ camera_from_map[:3, :3].T + camera_from_map[:3, 3]
    return estimate.correspondences.camera.project(points)


def _dots(image: np.ndarray, pixels: np.ndarray, colour: tuple[int, int, int]) -> None:
    for x, y in np.round(pixels).astype(int):
        cv2.circle(image, (int(x), int(y)), 2, colour, -1)


def _lines(image: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
    drawable = np.abs(ends).max(axis=1, initial=0) < 1e5
    starts, ends = np.round(starts[drawable]).astype(int), np.round(ends[drawable]).astype(int)
    for (x0, y0), (x1, y1) in zip(starts, ends, strict=True):
        cv2.line(image, (int(x0), int(y0)), (int(x1), int(y1)), REPROJECTION, 1, cv2.LINE_AA)
