# SPDX-License-Identifier: Apache-2.0
"""Selects the frames of a video that are sharp and show something new."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from aceg_ros.reconstruction.sources import UnposedImage

SMALL_PX = 320                      # width at which motion and sharpness are measured
MOTION_SHARE = 0.06                 # of the width: median motion from the last frame to the next
CANDIDATE_SHARE = 0.5               # of that motion, from which frames may be taken
MIN_TRACKED_SHARE = 0.4             # of the corners; with fewer, a frame is taken before the view is lost
CORNERS, MIN_CORNERS = 200, 20


def select_frames(frames: Iterable[UnposedImage]) -> Iterator[UnposedImage]:
    """Yield the first frame, then the sharpest of those in which the image has moved on by about MOTION_SHARE."""
    reference: np.ndarray | None = None
    best: tuple[float, UnposedImage, np.ndarray] | None = None
    for frame in frames:
        small = _small(frame.image)
        if reference is None:
            reference = small
            yield frame
            continue
        motion, tracked = image_motion(reference, small)
        moved = motion >= MOTION_SHARE or tracked < MIN_TRACKED_SHARE
        if moved or motion >= CANDIDATE_SHARE * MOTION_SHARE:
            sharpness = image_sharpness(small)
            if best is None or sharpness > best[0]:
                best = sharpness, frame, small
        if moved and best is not None:
            yield best[1]
            reference, best = best[2], None


def image_sharpness(grey: np.ndarray) -> float:
    """Return the variance of the Laplacian, which blur reduces."""
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())


def image_motion(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Return the median motion of corners between two grey images, as a share of the width, and the share of corners
    that were tracked. An image without corners has not moved."""
    corners = cv2.goodFeaturesToTrack(before, CORNERS, 0.01, 7)
    if corners is None or len(corners) < MIN_CORNERS:
        return 0.0, 1.0
    moved, status, _ = cv2.calcOpticalFlowPyrLK(before, after, corners, corners.copy())
    found = status.ravel() == 1
    if not found.any():
        return 0.0, 0.0
    motion = np.linalg.norm((moved - corners).reshape(-1, 2)[found], axis=1)
    return float(np.median(motion)) / before.shape[1], float(found.mean())


def _small(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    scale = min(1.0, SMALL_PX / width)
    return cv2.resize(grey, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
