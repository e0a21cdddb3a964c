# SPDX-License-Identifier: Apache-2.0
"""The cameras of a recording's images, from their camera_info."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from aceg_ros.camera import Camera
from aceg_ros.datasets.camera_info import camera_from_info
from aceg_ros.datasets.camera_pool import CameraPool
from aceg_ros.errors import UserError


class Cameras:
    """The cameras of a camera_info topic by stamp."""

    def __init__(self, topic: str, rectified: bool | None) -> None:
        self._topic, self._rectified = topic, rectified
        self._by_stamp: dict[int, Camera | str] = {}        # or why there is none
        self._stamps: list[int] = []
        self._pool = CameraPool()

    def add(self, stamp_ns: int, message: Any) -> None:
        try:
            self._by_stamp[stamp_ns] = self._pool.shared(camera_from_info(message, self._rectified))
        except (UserError, ValueError) as error:
            self._by_stamp[stamp_ns] = str(error)

    def add_damaged(self, stamp_ns: int, reason: str) -> None:
        self._by_stamp.setdefault(stamp_ns, reason)

    def at(self, stamp_ns: int) -> Camera | str:
        """Return the camera of the last camera_info up to that stamp, or of the first one if all are later.

        If that camera_info is unusable, or there is none, return the reason as a sentence.
        """
        if len(self._stamps) != len(self._by_stamp):
            self._stamps = sorted(self._by_stamp)
        if not self._stamps:
            return f"there is no message on {self._topic}, the topic of camera_info."
        found = self._by_stamp[self._stamps[max(bisect_right(self._stamps, stamp_ns) - 1, 0)]]
        return f"its camera_info cannot be used: {found}" if isinstance(found, str) else found
