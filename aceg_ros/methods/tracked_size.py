# SPDX-License-Identifier: Apache-2.0
"""Decides which images with a prior are tried at a part of their size."""

from __future__ import annotations

LONGEST_WAIT = 8                # images


class TrackedSize:
    """Of one stream. Where smaller images are not enough twice in a row, the next one is tried in full size; with each
    further one that is not enough, twice as many."""

    def __init__(self) -> None:
        self._failures, self._left = 0, 0

    def next_is_smaller(self) -> bool:
        """Return whether the next image is to be tried smaller."""
        if self._left:
            self._left -= 1
            return False
        return True

    def note(self, *, is_enough: bool) -> None:
        """Note whether a smaller image was enough."""
        self._failures = 0 if is_enough else self._failures + 1
        self._left = min(2 ** (self._failures - 2), LONGEST_WAIT) if self._failures > 1 else 0
