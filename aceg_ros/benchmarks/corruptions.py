"""Fixed changes of query pictures, to measure what an encoder and a map put up with.

Blur and noise are ImageNet-C's (Hendrycks & Dietterich, ICLR 2019) gaussian_blur at severity 2 and gaussian_noise at
severity 1; the others are stated in numbers here, and nothing is drawn but the noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from aceg_ros.camera import Frame

TURN_RAD, ZOOM = np.radians(20.0), 1.5


@dataclass(frozen=True)
class Corrupted:
    """A changed frame; its pose and camera follow the change. pixels_from_original (3, 3): where a pixel went."""

    frame: Frame
    pixels_from_original: np.ndarray


def _photometric(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Frame], Corrupted]:
    """`change` takes and gives (H, W, 3) float32 in [0, 1]."""

    def apply(frame: Frame) -> Corrupted:
        changed = np.clip(change(frame.image.astype(np.float32) / 255), 0.0, 1.0)
        return Corrupted(replace(frame, image=(changed * 255).round().astype(np.uint8)), np.eye(3))

    return apply


def _motion_blur(image: np.ndarray, length: int = 13) -> np.ndarray:
    """Along the rows, as a robot that turns on the spot gives."""
    return cv2.blur(image, (length, 1))


def _noise(image: np.ndarray) -> np.ndarray:
    return image + np.random.default_rng(0).normal(0.0, 0.08, image.shape).astype(np.float32)


def _warped(frame: Frame, warp: np.ndarray, pose_turn: np.ndarray, zoom: float) -> Corrupted:
    camera, size = frame.camera, (frame.camera.width, frame.camera.height)
    if not camera.is_pinhole:
        raise ValueError("geometric corruptions take rectified frames")
    image = cv2.warpPerspective(frame.image, warp, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    pose = None if frame.map_from_camera is None else frame.map_from_camera @ pose_turn
    camera = replace(camera, fx=camera.fx * zoom, fy=camera.fy * zoom)
    return Corrupted(replace(frame, image=image, camera=camera, map_from_camera=pose, depth_m=None), warp)


def _turned(frame: Frame) -> Corrupted:
    """The camera rolled about its optical axis."""
    cos, sin = np.cos(TURN_RAD), np.sin(TURN_RAD)
    turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    inverse = np.eye(4)
    inverse[:3, :3] = turn.T
    return _warped(frame, frame.camera.K @ turn @ np.linalg.inv(frame.camera.K), inverse, 1.0)


def _zoomed(frame: Frame) -> Corrupted:
    """A longer lens of the same picture size."""
    zoom = np.diag([ZOOM, ZOOM, 1.0])
    shift = np.eye(3)
    shift[:2, 2] = frame.camera.cx, frame.camera.cy
    return _warped(frame, shift @ zoom @ np.linalg.inv(shift), np.eye(4), ZOOM)


CORRUPTIONS: dict[str, Callable[[Frame], Corrupted]] = {
    "none": lambda frame: Corrupted(frame, np.eye(3)),
    "darkened": _photometric(lambda image: 0.4 * image),                                  # 1.3 stops
    "brightened": _photometric(lambda image: 1.7 * image),                                # 0.8 stops, whites clip
    "warmed": _photometric(lambda image: image * np.array([1.25, 1.0, 0.65], np.float32)),
    "cooled": _photometric(lambda image: image * np.array([0.7, 1.0, 1.25], np.float32)),
    "gamma": _photometric(lambda image: image**1.8),
    "blurred": _photometric(lambda image: cv2.GaussianBlur(image, (0, 0), 2.0)),
    "motion blur": _photometric(_motion_blur),
    "noise": _photometric(_noise),
    "turned 20 deg": _turned,
    "zoomed 1.5": _zoomed,
}
