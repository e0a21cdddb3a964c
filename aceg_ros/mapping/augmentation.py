# SPDX-License-Identifier: Apache-2.0
"""ACE's augmentation of mapping images: in-plane rotation, scale, brightness and contrast, with adapted K and pose."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.encoders.preprocess import resample, working_size

MAX_ROTATION_RAD = np.radians(15)
SCALES = (2 / 3, 3 / 2)
MAX_JITTER = 0.1


@dataclass(frozen=True, kw_only=True)
class PreparedFrame:
    """A posed frame in the size that the encoder takes: image (H, W, 3) uint8, pinhole camera, pose (4, 4).

    mask (H, W) bool: pixels that the camera saw, as opposed to filled ones; None: all. depth_m: z-depths, 0 or NaN if
    unknown, in any resolution that covers the image, or None.
    """

    image: np.ndarray
    camera: Camera
    map_from_camera: np.ndarray
    mask: np.ndarray | None
    depth_m: np.ndarray | None = None


def augment(frame: PreparedFrame, rng: np.random.Generator, short_side: int, multiple: int) -> PreparedFrame:
    """Return a randomly augmented version of a prepared frame."""
    scale = np.exp(rng.uniform(np.log(SCALES[0]), np.log(SCALES[1])))
    angle = rng.uniform(-MAX_ROTATION_RAD, MAX_ROTATION_RAD)
    width, height = working_size(frame.camera.width, frame.camera.height, round(short_side * scale), multiple)
    camera = frame.camera.resized(width, height)
    # Rotating the image by `angle` about the principal point corresponds to rolling the camera. With fx != fy, this is
    # no pure rotation of pixels, hence the products with K.
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])
    warp = camera.K @ rotation @ np.linalg.inv(frame.camera.K)
    size = (width, height)
    image = cv2.warpPerspective(frame.image, warp, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    source_mask = np.ones(frame.image.shape[:2], np.uint8) if frame.mask is None else frame.mask.astype(np.uint8)
    mask = cv2.warpPerspective(source_mask, warp, size, flags=cv2.INTER_NEAREST).astype(bool)
    depth = frame.depth_m
    if depth is not None:
        full = cv2.resize(depth.astype(np.float32), frame.image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        depth = cv2.warpPerspective(full, warp, size, flags=cv2.INTER_NEAREST, borderValue=0.0)
    pose = frame.map_from_camera.copy()
    pose[:3, :3] = pose[:3, :3] @ rotation.T
    return PreparedFrame(image=_jitter(image, rng), camera=camera, map_from_camera=pose, mask=mask, depth_m=depth)


def _jitter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    brightness, contrast = rng.uniform(1 - MAX_JITTER, 1 + MAX_JITTER, 2)
    levels = np.arange(256) * brightness
    mean = image.mean() * brightness
    table = np.clip((levels - mean) * contrast + mean, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table)


def prepare_frame(frame: Frame, short_side: int, multiple: int) -> PreparedFrame:
    """Undistort and resample a posed frame to the size that the encoder takes."""
    assert frame.map_from_camera is not None
    rectified, mask = frame.rectified()
    image, camera, mask = resample(rectified.image, rectified.camera, mask, short_side=short_side, multiple=multiple)
    depth = rectified.depth_m
    if depth is not None:
        depth = cv2.resize(np.nan_to_num(depth.astype(np.float32)), (camera.width, camera.height),
                           interpolation=cv2.INTER_NEAREST)
    return PreparedFrame(image=image, camera=camera, map_from_camera=frame.map_from_camera, mask=mask, depth_m=depth)
