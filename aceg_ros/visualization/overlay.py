# SPDX-License-Identifier: Apache-2.0
"""Draws the correspondences of an estimate, of one image or of a rig's: inliers, outliers, and the reprojection of the
map points."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np

from aceg_ros.camera import Frame
from aceg_ros.estimate import PoseEstimate
from aceg_ros.geometry import invert
from aceg_ros.rig import RigEstimate, RigFrame, ViewShare

_EMPTY_HEIGHT, _EMPTY_WIDTH = 120, 480                          # of a camera without an image
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
    _write(image, f"{estimate.status.value}: {estimate.inliers} inliers" if estimate.accepted
           else estimate.status.value, height - 10)
    return image


def draw_rig_estimate(frame: RigFrame, estimate: RigEstimate) -> np.ndarray:
    """Draw the estimate of a rig into the rectified image of each camera, beside and below each other.

    Returns (H, W, 3) uint8 RGB: the cameras in the order of the frame, each with its name, in cells of the size of the
    largest image. A camera that was left out has its problem as text.
    """
    names = [*frame.frames, *(name for name in estimate.views if name not in frame.frames)]
    images = [_draw_camera(frame, estimate, name) for name in names]
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    columns = math.ceil(math.sqrt(len(images)))
    sheet = np.zeros((math.ceil(len(images) / columns) * height, columns * width, 3), np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        sheet[row * height:row * height + image.shape[0], column * width:column * width + image.shape[1]] = image
    return sheet


def _draw_camera(frame: RigFrame, estimate: RigEstimate, name: str) -> np.ndarray:
    """Draw what one camera of a rig has in the estimate, with its name."""
    share, image = estimate.views.get(name, ViewShare()), frame.frames.get(name)
    if share.problem or image is None:
        drawn = np.zeros((_EMPTY_HEIGHT, _EMPTY_WIDTH, 3), np.uint8) if image is None else image.image.copy()
        _write(drawn, f"left out: {share.problem}", drawn.shape[0] - 10)
    else:
        drawn = draw_estimate(image, _of_camera(estimate.base, share, frame.rig.rig_from_camera[name]))
    _write(drawn, name, 18)
    return drawn


def _of_camera(base: PoseEstimate, share: ViewShare, rig_from_camera: np.ndarray) -> PoseEstimate:
    """Return the estimate of one camera of a rig as it is drawn: its correspondences, and its pose."""
    pose = base.map_from_camera
    return replace(base, map_from_camera=None if pose is None else pose @ rig_from_camera, inliers=share.inliers,
                   inlier_indices=share.inlier_indices, correspondences=share.correspondences)


def _write(image: np.ndarray, text: str, bottom: int) -> None:
    for thickness, colour in ((3, (0, 0, 0)), (1, (255, 255, 255))):
        cv2.putText(image, text, (8, bottom), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, thickness, cv2.LINE_AA)


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
