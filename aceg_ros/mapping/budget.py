"""The time that a mapping run may take, who may stop it, and who is told how it gets on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from aceg_ros.utils.progress import Progress

DEFAULT_BUDGET_S = {"cpu": 300.0, "cuda": 120.0}


def default_budget_s(device: str) -> float:
    """Seconds that a mapping run may take on a device ("cpu", "cuda"), if the user does not say."""
    return DEFAULT_BUDGET_S[device]


def _ignore(_: Progress) -> None: ...


def _never() -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class MappingBudget:
    """The budget of a mapping run, or of one of its phases.

    started, deadline, finish: time.monotonic() seconds at which the run began, this phase has to end, and the whole
    run has to end. total_s: what the whole run may take. should_stop turns true when the user wants what there is by
    now. stage: the name under which this phase reports its progress.
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
        """The budget of a run that begins now, or that began at time.monotonic() = started.

        total_s: seconds that it may take, without a limit if none are given.
        """
        started = time.monotonic() if started is None else started
        return cls(total_s=total_s, started=started, deadline=started + total_s, finish=started + total_s,
                   progress=progress, should_stop=should_stop)

    def phase(self, stage: str, *, share: float = 1.0, at_most_s: float = math.inf) -> MappingBudget:
        """The budget of a phase that begins now: this share of the time left, and at most so many seconds of it."""
        now = time.monotonic()
        deadline = self.deadline
        if math.isfinite(deadline) and share < 1.0:
            deadline = now + share * (deadline - now)
        return replace(self, stage=stage, deadline=min(deadline, now + at_most_s))

    def reserve(self, seconds: float) -> MappingBudget:
        """The same budget that ends so many seconds earlier: they are kept for what comes after."""
        return self if math.isinf(self.deadline) else replace(self, deadline=self.deadline - seconds)

    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.started

    def remaining_s(self) -> float:
        """Seconds until this phase has to end, 0 after its deadline."""
        return max(self.deadline - time.monotonic(), 0.0)

    def is_over(self) -> bool:
        """Whether the phase has to end: its time is up, or the user has asked to stop."""
        return time.monotonic() > self.deadline or self.should_stop()

    def report(self, fraction: float, reprojection_px: float = math.nan, remaining_s: float | None = None) -> None:
        """Report progress of this phase: its fraction that is done in [0, 1], and the median reprojection error.

        remaining_s: seconds until the run ends, if that is known to be earlier than its deadline.
        """
        if remaining_s is None:
            remaining_s = max(self.finish - time.monotonic(), 0.0)
        self.progress(Progress(stage=self.stage, fraction=fraction, remaining_s=remaining_s,
                               reprojection_px=reprojection_px))
