# SPDX-License-Identifier: Apache-2.0
"""Wall-clock time of consecutive stages."""

from __future__ import annotations

from time import perf_counter


class Stopwatch:
    """Measures consecutive stages: `lap` ends one and starts the next. laps_ms: milliseconds by stage name."""

    def __init__(self) -> None:
        self.laps_ms: dict[str, float] = {}
        self._start = perf_counter()

    def lap(self, name: str) -> None:
        now = perf_counter()
        self.laps_ms[name] = (now - self._start) * 1e3
        self._start = now
