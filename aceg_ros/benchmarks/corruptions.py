# SPDX-License-Identifier: Apache-2.0
"""Fixed corruptions of query images, for measuring the robustness of encoders and maps.

    python -m aceg_ros.benchmarks.corruptions IMAGE -o DIR

writes the image under each corruption. Blur and noise are gaussian_blur at severity 2 and gaussian_noise at severity 1
of ImageNet-C (Hendrycks & Dietterich, ICLR 2019); the others are defined here. Only the noise is random, with a fixed
seed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets import load_image
from aceg_ros.utils.atomic_file import write_bytes


@dataclass(frozen=True, kw_only=True)
class Corrupted:
    """A corrupted frame, with adapted pose and camera. pixels_from_original (3, 3): homography of its pixels."""

    frame: Frame
    pixels_from_original: np.ndarray


def _photometric(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Frame], Corrupted]:
    """Make a corruption of a function that maps an image (H, W, 3) float32 in [0, 1] to another."""

    def apply(frame: Frame) -> Corrupted:
        changed = np.clip(change(frame.image.astype(np.float32) / 255), 0.0, 1.0)
        image = (changed * 255).round().astype(np.uint8)
        return Corrupted(frame=replace(frame, image=image), pixels_from_original=np.eye(3))

    return apply


def _motion_blur(image: np.ndarray, length: int = 13) -> np.ndarray:
    """Blur along the rows, as when a robot turns in place."""
    return cv2.blur(image, (length, 1))


def _noise(image: np.ndarray) -> np.ndarray:
    return image + np.random.default_rng(0).normal(0.0, 0.08, image.shape).astype(np.float32)


def _warped(frame: Frame, warp: np.ndarray, *, old_from_new: np.ndarray | None = None,
            zoom: float = 1.0) -> Corrupted:
    """Warp a frame by a homography (3, 3) of its pixels; old_from_new (4, 4): the motion of the camera."""
    camera, size = frame.camera, (frame.camera.width, frame.camera.height)
    if not camera.is_pinhole:
        raise ValueError("geometric corruptions take rectified frames")
    image = cv2.warpPerspective(frame.image, warp, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    pose = frame.map_from_camera
    if pose is not None and old_from_new is not None:
        pose = pose @ old_from_new
    camera = replace(camera, fx=camera.fx * zoom, fy=camera.fy * zoom)
    warped = replace(frame, image=image, camera=camera, map_from_camera=pose, depth_m=None)
    return Corrupted(frame=warped, pixels_from_original=warp)


def _rolled(frame: Frame, angle_deg: float) -> Corrupted:
    """Roll the camera about its optical axis."""
    cos, sin = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    rotation = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    old_from_new = np.eye(4)
    old_from_new[:3, :3] = rotation.T
    return _warped(frame, frame.camera.K @ rotation @ np.linalg.inv(frame.camera.K), old_from_new=old_from_new)


def _zoomed(frame: Frame, factor: float) -> Corrupted:
    """Increase the focal length at the same image size."""
    zoom = np.diag([factor, factor, 1.0])
    shift = np.eye(3)
    shift[:2, 2] = frame.camera.cx, frame.camera.cy
    return _warped(frame, shift @ zoom @ np.linalg.inv(shift), zoom=factor)


CORRUPTIONS: dict[str, Callable[[Frame], Corrupted]] = {
    "none": lambda frame: Corrupted(frame=frame, pixels_from_original=np.eye(3)),
    "darkened": _photometric(lambda image: 0.4 * image),                                  # 1.3 stops
    "brightened": _photometric(lambda image: 1.7 * image),                                # 0.8 stops, whites clip
    "warmed": _photometric(lambda image: image * np.array([1.25, 1.0, 0.65], np.float32)),
    "cooled": _photometric(lambda image: image * np.array([0.7, 1.0, 1.25], np.float32)),
    "gamma": _photometric(lambda image: image**1.8),
    "blurred": _photometric(lambda image: cv2.GaussianBlur(image, (0, 0), 2.0)),
    "motion blur": _photometric(_motion_blur),
    "noise": _photometric(_noise),
    "turned 20 deg": partial(_rolled, angle_deg=20.0),
    "turned 45 deg": partial(_rolled, angle_deg=45.0),
    "zoomed 1.5": partial(_zoomed, factor=1.5),
    "zoomed 2": partial(_zoomed, factor=2.0),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the images")
    options = parser.parse_args(arguments)
    image = load_image(options.image)
    height, width = image.shape[:2]
    camera = Camera(width=width, height=height, fx=width, fy=width, cx=(width - 1) / 2, cy=(height - 1) / 2)
    for name, corrupt in CORRUPTIONS.items():
        corrupted = corrupt(Frame(image=image, camera=camera)).frame.image
        path = options.output / f"{name.replace(' ', '_')}.png"
        write_bytes(path, cv2.imencode(".png", corrupted[..., ::-1])[1].tobytes())
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
