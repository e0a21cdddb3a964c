# SPDX-License-Identifier: Apache-2.0
"""The images of a bag, decoded one by one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from aceg_ros.datasets.bag.recording import DAMAGE, Recording
from aceg_ros.datasets.image_decoder import decode_image
from aceg_ros.errors import UserError


class ImageStream:
    """Random access to the images of one topic; fast in ascending order."""

    def __init__(self, path: Path, topic: str) -> None:
        self.path, self.topic = path, topic
        self._messages: Iterator[Any] = iter(())
        self._next, self._thread = 0, 0

    def image(self, index: int) -> np.ndarray:
        """Return image number `index` as (H, W, 3) uint8 RGB. Raises UserError if it cannot be read or decoded."""
        # Each thread opens the files itself.
        if index < self._next or self._thread != threading.get_ident() or self._next == 0:
            self._messages, self._next, self._thread = self._read_all(), 0, threading.get_ident()
        message: Any = None
        try:
            while self._next <= index:
                message = next(self._messages)
                self._next += 1
        except (*DAMAGE, StopIteration) as error:
            raise UserError(f"the bag cannot be read there ({error!r}).") from None
        if isinstance(message, str):
            raise UserError(f"{message}.")
        return decode_image(message)

    def _read_all(self) -> Iterator[Any]:
        """Yield the messages; for a damaged one, the reason."""
        with Recording(self.path) as recording:
            connections = [connection for connection in recording.connections if connection.topic == self.topic]
            for connection, _, data in recording.messages(connections):
                try:
                    yield recording.deserialize(connection, data)
                except ValueError as error:
                    yield str(error)
