# SPDX-License-Identifier: Apache-2.0
"""Selects keyframes for mapping: sharp images taken far enough from the last keyframe."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np

from aceg_ros.geometry import pose_error

MIN_PARALLAX_M = 0.05           # extent of the keyframe positions along an axis; below it the camera only rotated
_RECENT = 30                    # images that a new one's sharpness is compared with
_MIN_RECENT = 5


@dataclass(frozen=True, kw_only=True)
class KeyframeConfig:
    """When an image becomes a keyframe.

    min_distance_m, min_angle_deg: distance or angle from the last keyframe; 0 accepts every image. min_interval_s: time
    since the last keyframe. min_sharpness: as a share of the median of the recent images. overdue: a blurred image is
    accepted all the same if it is this many times as far from the last keyframe as needed.
    """

    min_distance_m: float = 0.1
    min_angle_deg: float = 8.0
    min_interval_s: float = 0.1
    min_sharpness: float = 0.5
    overdue: float = 3.0


class KeyframeSelector:
    """Decides which images of a moving camera become keyframes."""

    def __init__(self, config: KeyframeConfig) -> None:
        self._config = config
        self._last: tuple[float, np.ndarray] | None = None
        self._sharpness: deque[float] = deque(maxlen=_RECENT)

    def motion(self, stamp_s: float, map_from_camera: np.ndarray) -> float:
        """Return the motion since the last keyframe, as a multiple of what is needed; 0 if it is too early."""
        if self._last is None:
            return np.inf
        last_s, last_pose = self._last
        if 0 <= stamp_s - last_s < self._config.min_interval_s:
            return 0.0
        distance_m, angle_deg = pose_error(map_from_camera, last_pose)
        if not self._config.min_distance_m or not self._config.min_angle_deg:
            return np.inf
        return max(distance_m / self._config.min_distance_m, angle_deg / self._config.min_angle_deg)

    def is_sharp(self, rgb: np.ndarray, motion: float) -> bool:
        """Return whether an image (H, W, 3) is sharp enough to be a keyframe, given the `motion` since the last one."""
        value = sharpness(rgb)
        usual = float(np.median(self._sharpness)) if len(self._sharpness) >= _MIN_RECENT else 0.0
        self._sharpness.append(value)
        return value >= self._config.min_sharpness * usual or (np.isfinite(motion) and motion >= self._config.overdue)

    def set_last(self, stamp_s: float, map_from_camera: np.ndarray) -> None:
        """Record that the image of this stamp and pose became a keyframe."""
        self._last = stamp_s, map_from_camera


def sharpness(rgb: np.ndarray) -> float:
    """Return the variance of the Laplacian over that of the image: blur and defocus lower it, exposure does not."""
    grey = cv2.cvtColor(rgb[::2, ::2], cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var() / max(float(grey.var()), 1.0))


def has_parallax(positions: np.ndarray) -> bool:
    """Return whether camera positions (N, 3) are far enough from each other for triangulation."""
    return len(positions) > 1 and bool(np.ptp(positions, axis=0).max() >= MIN_PARALLAX_M)
