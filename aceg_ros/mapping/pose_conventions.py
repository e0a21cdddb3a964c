# SPDX-License-Identifier: Apache-2.0
"""Conventions that wrong poses may follow: how to convert them, and what to tell the user."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.spatial.transform import Rotation

from aceg_ros.geometry import invert

_MIRROR = np.diag([1.0, -1.0, 1.0, 1.0])
_OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
_BODY_FROM_OPTICAL = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])     # REP 103
MAX_SHIFT = 3                   # images


@dataclass(frozen=True, kw_only=True)
class Convention:
    """A convention of poses. convert: converts poses (F, 4, 4) as read to map_from_camera in the order of the images.
    advice: continues the sentence "The images and the poses do not agree:"."""

    advice: str
    convert: Callable[[np.ndarray], np.ndarray]


def _as_read(poses: np.ndarray) -> np.ndarray:
    return poses


def _mirrored(poses: np.ndarray) -> np.ndarray:
    return _MIRROR @ poses @ _MIRROR


def _quaternions_rolled(poses: np.ndarray) -> np.ndarray:
    """Correct poses whose quaternions were written as w x y z but read as x y z w."""
    w, x, y, z = Rotation.from_matrix(poses[:, :3, :3]).as_quat().T
    converted = poses.copy()
    converted[:, :3, :3] = Rotation.from_quat(np.column_stack([x, y, z, w])).as_matrix()
    return converted


_INVERTED = ("world-to-camera, and camera-to-world is needed (only a COLMAP model is the other way round): invert each"
             " pose")
_MEANINGS: tuple[tuple[str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("", _as_read),
    (_INVERTED, invert),
    ("those of a left-handed world (Unity, Unreal): mirror one axis of the world and of the camera", _mirrored),
    ("poses whose quaternions were written as w x y z but read as x y z w: write them in the other order",
     _quaternions_rolled),
)
_AXES: tuple[tuple[str, np.ndarray], ...] = (
    ("", np.eye(4)),
    ("those of a camera with OpenGL axes (NeRF, Blender: x right, y up, z backward), and OpenCV's are needed (x right,"
     " y down, z forward; only in transforms.json it is the other way round): negate the second and the third column of"
     " each camera-to-world rotation", _OPENCV_FROM_OPENGL),
    ("those of a body frame (x forward, y left, z up), and those of the camera's optical frame are needed (x right, y"
     " down, z forward): give the poses of the optical frame, in a bag by the options tf or pose_of",
     _BODY_FROM_OPTICAL),
)


def conventions() -> Iterator[Convention]:
    """Yield other conventions of the poses, likely ones first, without a change of their order."""
    combined = ((first, second) for first in _MEANINGS for second in _AXES)
    for (meaning, convert), (axes, turned) in sorted(combined, key=lambda pair: bool(pair[0][0]) + bool(pair[1][0])):
        words = [part for part in (meaning, axes) if part]
        if words:
            yield Convention(advice="the poses look like " + "; and then like ".join(words),
                             convert=partial(_convert, convert, turned))


def _convert(convert: Callable[[np.ndarray], np.ndarray], turned: np.ndarray, poses: np.ndarray) -> np.ndarray:
    return convert(poses) @ turned


def turned_camera(camera_from_frame: np.ndarray) -> Convention:
    """Return the convention of poses of a frame that is rotated against the camera by camera_from_frame (3, 3)."""
    angle_deg = np.degrees(Rotation.from_matrix(camera_from_frame).magnitude())
    turned = np.eye(4)
    turned[:3, :3] = camera_from_frame.T
    return Convention(convert=lambda poses: poses @ turned, advice=(
        f"the poses look like those of a frame that is rotated by {angle_deg:.0f} degrees against the camera: give the"
        " poses of the camera's optical frame (x right, y down, z forward)"))


def orders(count: int) -> Iterator[Convention]:
    """Yield other orders of the poses of `count` images."""
    for shift in range(1, MAX_SHIFT + 1):
        for step, which in ((shift, "before"), (-shift, "after")):
            images = "image" if shift == 1 else f"{shift}rd image" if shift == 3 else f"{shift}nd image"
            yield _order(f"each pose looks like that of the {images} {which}: images or poses are missing at the"
                         " beginning, or their times differ", np.clip(np.arange(count) + step, 0, count - 1))
    yield _order("the poses look like those of the images in reverse order: pair them in the same order",
                 np.arange(count)[::-1])
    for first in (0, 1):
        as_text = np.array(sorted(range(count), key=lambda index: str(index + first)))
        for order in (as_text, np.argsort(as_text)):
            yield _order("the poses look like those of the images in the order of their names as text (10 before 9):"
                         " pair them in the same order", order)


def _order(advice: str, order: np.ndarray) -> Convention:
    return Convention(advice=advice, convert=lambda poses: poses[order])
