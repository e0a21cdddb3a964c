# SPDX-License-Identifier: Apache-2.0
"""Decides which images with a prior are tracked."""

from __future__ import annotations

LONGEST_WAIT = 8                # images


class TrackingSchedule:
    """Of one stream. After two images in a row for which tracking was not enough, the next one is not tracked; after
    each further one, twice as many are not."""

    def __init__(self) -> None:
        self._failures, self._left = 0, 0

    def next_is_tracked(self) -> bool:
        """Return whether the next image is to be tracked."""
        if self._left:
            self._left -= 1
            return False
        return True

    def note(self, *, is_enough: bool) -> None:
        """Note whether tracking was enough for an image."""
        self._failures = 0 if is_enough else self._failures + 1
        self._left = min(2 ** (self._failures - 2), LONGEST_WAIT) if self._failures > 1 else 0
