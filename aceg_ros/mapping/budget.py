# SPDX-License-Identifier: Apache-2.0
"""The budget of a mapping run: its time limit, a stop request of the user, and progress reports."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from aceg_ros.utils.progress import Progress

DEFAULT_BUDGET_S = {"cpu": 300.0, "cuda": 120.0}


def default_budget_s(device: str) -> float:
    """Return the default time limit of a mapping run on a device ("cpu", "cuda"), in seconds."""
    return DEFAULT_BUDGET_S[device]


def _ignore(_: Progress) -> None: ...


def _never() -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class MappingBudget:
    """The budget of a mapping run, or of one of its phases.

    total_s: seconds that the whole run may take. started, deadline, finish: time.monotonic() seconds at which the run
    began, and at which this phase and the whole run have to end. stage: name of the phase in progress reports.
    progress: called with each report. should_stop: returns true once the user asks for the map so far.
    """

    total_s: float
    started: float
    deadline: float
    finish: float
    stage: str = "mapping"
    progress: Callable[[Progress], None] = _ignore
    should_stop: Callable[[], bool] = _never

    @classmethod
    def start(cls, total_s: float = math.inf, *, progress: Callable[[Progress], None] = _ignore,
              should_stop: Callable[[], bool] = _never, started: float | None = None) -> MappingBudget:
        """Start a run now, or at time.monotonic() = started. total_s: seconds that it may take (default: no limit)."""
        started = time.monotonic() if started is None else started
        return cls(total_s=total_s, started=started, deadline=started + total_s, finish=started + total_s,
                   progress=progress, should_stop=should_stop)

    def phase(self, stage: str, *, share: float = 1.0, at_most_s: float = math.inf) -> MappingBudget:
        """Return the budget of a phase that begins now: this share of the remaining time, but at most at_most_s."""
        now = time.monotonic()
        deadline = self.deadline
        if math.isfinite(deadline) and share < 1.0:
            deadline = now + share * (deadline - now)
        return replace(self, stage=stage, deadline=min(deadline, now + at_most_s))

    def reserve(self, seconds: float) -> MappingBudget:
        """Return the same budget with a deadline that is this many seconds earlier, to keep time for later phases."""
        return self if math.isinf(self.deadline) else replace(self, deadline=self.deadline - seconds)

    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.started

    def remaining_s(self) -> float:
        """Seconds until this phase has to end, 0 after its deadline."""
        return max(self.deadline - time.monotonic(), 0.0)

    def is_over(self) -> bool:
        """Return whether the phase has to end, because its time is up or the user has asked to stop."""
        return time.monotonic() > self.deadline or self.should_stop()

    def report(self, fraction: float, reprojection_px: float = math.nan, remaining_s: float | None = None) -> None:
        """Report progress of this phase: the fraction done in [0, 1] and, while training, the reprojection error.

        remaining_s: seconds until the run ends, if this is known to be before its deadline.
        """
        if remaining_s is None:
            remaining_s = max(self.finish - time.monotonic(), 0.0)
        self.progress(Progress(stage=self.stage, fraction=fraction, remaining_s=remaining_s,
                               reprojection_px=reprojection_px))
