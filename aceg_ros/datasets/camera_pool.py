# SPDX-License-Identifier: Apache-2.0
"""Shares one camera among cameras that differ by a fraction of a pixel, because of autofocus or rounding."""

from __future__ import annotations

from aceg_ros.camera import Camera, difference_px

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
    same_kind = (camera.width, camera.height, camera.model) == (other.width, other.height, other.model)
    return same_kind and difference_px(camera, other) <= MAX_DIFFERENCE_PX
