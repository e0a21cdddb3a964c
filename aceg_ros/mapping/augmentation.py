"""ACE's augmentation of a mapping picture: in-plane rotation, scale, brightness and contrast; K and pose follow."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.encoders.preprocess import resample, working_size

MAX_TURN_RAD = np.radians(15)
SCALES = (2 / 3, 3 / 2)
MAX_JITTER = 0.1


@dataclass(frozen=True)
class Picture:
    """A picture as the encoder will see it: image (H, W, 3) uint8, pinhole camera, pose, and what of it is real.

    mask (H, W) bool: pixels that come from the picture. depth_m: z-depths, 0 or NaN where unknown, of any resolution
    that covers the picture, or None.
    """

    image: np.ndarray
    camera: Camera
    map_from_camera: np.ndarray
    mask: np.ndarray | None
    depth_m: np.ndarray | None = None


def augment(picture: Picture, rng: np.random.Generator, short_side: int, multiple: int) -> Picture:
    """One random variation of a prepared picture."""
    scale = np.exp(rng.uniform(np.log(SCALES[0]), np.log(SCALES[1])))
    angle = rng.uniform(-MAX_TURN_RAD, MAX_TURN_RAD)
    width, height = working_size(picture.camera.width, picture.camera.height, round(short_side * scale), multiple)
    camera = picture.camera.resized(width, height)
    # Turning the picture by `angle` about the principal point is turning the camera about its optical axis.
    # With fx != fy the turn is a shear in pixels, so it goes through K.
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])
    warp = camera.K @ turn @ np.linalg.inv(picture.camera.K)
    size = (width, height)
    image = cv2.warpPerspective(picture.image, warp, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    source_mask = np.ones(picture.image.shape[:2], np.uint8) if picture.mask is None else picture.mask.astype(np.uint8)
    mask = cv2.warpPerspective(source_mask, warp, size, flags=cv2.INTER_NEAREST).astype(bool)
    depth = picture.depth_m
    if depth is not None:
        full = cv2.resize(depth.astype(np.float32), picture.image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        depth = cv2.warpPerspective(full, warp, size, flags=cv2.INTER_NEAREST, borderValue=0.0)
    pose = picture.map_from_camera.copy()
    pose[:3, :3] = pose[:3, :3] @ turn.T
    return Picture(_jitter(image, rng), camera, pose, mask, depth)


def _jitter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    brightness, contrast = rng.uniform(1 - MAX_JITTER, 1 + MAX_JITTER, 2)
    levels = np.arange(256) * brightness
    mean = image.mean() * brightness
    table = np.clip((levels - mean) * contrast + mean, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table)


def prepared_picture(frame: Frame, short_side: int, multiple: int) -> Picture:
    """The un-augmented picture of a posed frame."""
    assert frame.map_from_camera is not None
    rectified, mask = frame.rectified()
    image, camera, mask = resample(rectified.image, rectified.camera, mask, short_side=short_side, multiple=multiple)
    depth = rectified.depth_m
    if depth is not None:
        depth = cv2.resize(np.nan_to_num(depth.astype(np.float32)), (camera.width, camera.height),
                           interpolation=cv2.INTER_NEAREST)
    return Picture(image, camera, frame.map_from_camera, mask, depth)
