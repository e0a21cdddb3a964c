"""Shares one camera among cameras that differ by a fraction of a pixel, because of autofocus or rounding."""

from __future__ import annotations

import numpy as np

from aceg_ros.camera import Camera

MAX_DIFFERENCE_PX = 0.2     # anywhere in the image; beyond it, cameras are rectified separately


class CameraPool:
    """The different cameras of a recording."""

    def __init__(self) -> None:
        self.cameras: list[Camera] = []
        self._last: Camera | None = None

    def shared(self, camera: Camera) -> Camera:
        """Return the first camera of the pool that agrees with this one, or else this one, after adding it."""
        if self._last is None or not agree(camera, self._last):
            self._last = next((known for known in self.cameras if agree(camera, known)), camera)
            if self._last is camera:
                self.cameras.append(camera)
        return self._last


def agree(camera: Camera, other: Camera) -> bool:
    """Return whether both project the same rays to the same pixels, up to MAX_DIFFERENCE_PX."""
    if camera == other:
        return True
    if (camera.width, camera.height, camera.model) != (other.width, other.height, other.model):
        return False
    x, y = np.meshgrid(np.linspace(0, other.width - 1, 5), np.linspace(0, other.height - 1, 5))
    pixels = np.column_stack([x.ravel(), y.ravel()])
    rays = other.unproject(pixels)
    # In the corners, a lens polynomial may have no inverse.
    known = np.isfinite(rays).all(axis=1) & (np.linalg.norm(other.project(rays) - pixels, axis=1) < MAX_DIFFERENCE_PX)
    difference = np.linalg.norm(camera.project(rays) - pixels, axis=1)[known]
    return bool(known.sum() >= 9 and difference.max() <= MAX_DIFFERENCE_PX)
