# SPDX-License-Identifier: Apache-2.0
"""The training loop of ACE heads and map codes: a one-cycle schedule within a time budget, with a cool-down if the user
stops it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from aceg_ros.mapping.budget import MappingBudget

RISE = 0.04                             # share of the training in which the learning rate increases
START_RATE, END_RATE = 0.04, 1e-4       # of the peak rate
RECENT_STEPS = 20                       # number of steps that the running median of the pixel error covers
COOLDOWN_SHARE, MAX_COOLDOWN_S = 0.1, 15.0


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Statistics of a training. reprojection_px: median pixel error of the last batches. finished: False if the user
    stopped it."""

    iterations: int
    seconds: float
    reprojection_px: float
    finished: bool


class TrainingStep(Protocol):
    def __call__(self, progress: float, rate: float, /) -> Tensor:
        """Draw a batch and take one optimizer step. Returns the median pixel error of the batch, a scalar.

        progress: of the training, in [0, 1). rate: learning rate as a share of its peak.
        """


def one_cycle(progress: float) -> float:
    """Return the share of the peak rate at progress in [0, 1]: cosine increase over 4 %, then decrease to 1e-4."""
    if progress < RISE:
        low, high, t = START_RATE, 1.0, progress / RISE
    else:
        low, high, t = 1.0, END_RATE, (progress - RISE) / (1 - RISE)
    return low + (high - low) * (1 - float(torch.cos(torch.tensor(torch.pi * t)))) / 2


def run_training(step: TrainingStep, iterations: int, budget: MappingBudget, report_every: int = 20) -> TrainingResult:
    """Train for a number of iterations or until the deadline of the budget, whichever comes first.

    Progress, which drives learning rate and loss, is the larger of the shares of iterations and of time used up, so the
    schedule always completes. If the user stops the run, the learning rate is reduced to zero within a tenth of the
    time so far (at most 15 s), since weights at a high learning rate are much worse.
    """
    schedule = _Schedule(iterations, budget)
    recent: list[Tensor] = []
    done = 0
    while done < iterations:
        elapsed_s = schedule.elapsed_s()
        progress, rate = schedule.at(done, elapsed_s)
        if progress >= 1.0:
            break
        recent = [*recent[1 - RECENT_STEPS:], step(progress, rate)]
        done += 1
        if done % report_every == 0:
            remaining_s = min(schedule.total_s - elapsed_s, elapsed_s / done * (iterations - done))
            budget.report(progress, _median(recent), max(remaining_s, 0.0))
    return TrainingResult(iterations=done, seconds=schedule.elapsed_s(), reprojection_px=_median(recent),
                          finished=not schedule.is_stopped)


class _Schedule:
    """Progress and learning rate of one training that begins now."""

    def __init__(self, iterations: int, budget: MappingBudget):
        self._iterations, self._should_stop = iterations, budget.should_stop
        self._started = time.monotonic()
        self.total_s = max(budget.deadline - self._started, 1e-3)
        self._cooldown: _Cooldown | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether the user has stopped the training."""
        return self._cooldown is not None

    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def at(self, done: int, elapsed_s: float) -> tuple[float, float]:
        """Return progress (1 or more at the end) and share of the peak rate after `done` iterations and elapsed_s."""
        progress = max(done / self._iterations, elapsed_s / self.total_s)
        if self._cooldown is None and self._should_stop():
            seconds = min(COOLDOWN_SHARE * elapsed_s, MAX_COOLDOWN_S, self.total_s - elapsed_s)
            self._cooldown = _Cooldown(started_s=elapsed_s, seconds=seconds, progress=progress)
        if self._cooldown is None:
            return progress, one_cycle(min(progress, 1.0))
        share = (elapsed_s - self._cooldown.started_s) / max(self._cooldown.seconds, 1e-3)
        stopped_at = self._cooldown.progress
        return stopped_at + (1.0 - stopped_at) * share, one_cycle(min(stopped_at, 1.0)) * (1.0 - share)


@dataclass(frozen=True, kw_only=True)
class _Cooldown:
    """The cool-down of a training that the user stopped at this progress, started_s seconds after its start."""

    started_s: float
    seconds: float
    progress: float


def _median(errors: list[Tensor]) -> float:
    return float(torch.stack(errors).median()) if errors else math.nan
