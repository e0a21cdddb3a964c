"""The training loop that all pre-trainings share: resumable, safe to interrupt, in one process or several.

An iteration draws a batch, adds its gradients to the model's, and every `step_every` iterations the optimizer steps. A
task draws from a random generator seeded with (seed, iteration), so that on a CPU a resumed run ends with the weights
of an uninterrupted one, wherever it was interrupted.
"""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from aceg_ros.pretraining.common.distributed import ProcessGroup
from aceg_ros.pretraining.common.run import load_checkpoint, log_statistics, save_checkpoint

Batch = TypeVar("Batch")
Statistics = dict[str, Tensor]


class TrainingTask(ABC, Generic[Batch]):
    """A network, its data, its loss and its scores: all that one pre-training adds to the loop.

    model: all that the optimizer changes and the checkpoint keeps.
    """

    model: nn.Module

    @abstractmethod
    def draw(self, iteration: int) -> Batch:
        """The batch of an iteration, from a random generator of its own. May be called in a thread, some iterations
        ahead, if the loop's options say so."""

    @abstractmethod
    def add_gradients(self, batch: Batch) -> Statistics:
        """Add the batch's gradients to those of the model; returns its losses (detached) by name."""

    @abstractmethod
    def learning_rate(self, done: int) -> float:
        """The rate of the optimizer's step that ends `done` iterations."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Scores on held-out data."""

    @abstractmethod
    def export(self) -> None:
        """Write the weights as inference loads them."""

    def clipped_parameters(self) -> Iterable[nn.Parameter]:
        """The parameters whose gradient is clipped to a norm of 1."""
        return self.model.parameters()

    def save_state(self, done: int) -> None:
        """Keep what this process needs to resume beside the checkpoint; every process calls it."""

    def load_state(self, done: int) -> None:
        """Load what `save_state` kept after `done` iterations."""


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How long a run lasts, and when it does what.

    run: its folder.
    iterations: in all.
    peak_rate, weight_decay: of AdamW.
    step_every: iterations whose gradients are added up for one step of the optimizer.
    checkpoint_every, log_every: iterations between two checkpoints with their evaluation, and two lines of the curve.
    log_mean: latest iterations whose losses are averaged in a line of the curve.
    evaluate_first: whether the untrained model is evaluated.
    draw_ahead: batches that threads draw ahead; 0 draws each just before its iteration.
    """

    run: Path
    iterations: int
    peak_rate: float
    weight_decay: float = 0.01
    step_every: int = 1
    checkpoint_every: int = 500
    log_every: int = 100
    log_mean: int = 100
    evaluate_first: bool = False
    draw_ahead: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.checkpoint_every % self.step_every:
            raise ValueError("checkpoint_every must be a multiple of step_every: gradients are not kept")


def never() -> bool:
    """Nobody wants the run to stop."""
    return False


def warmup_cosine(t: float) -> float:
    """Share of the peak rate at t in [0, 1]: warm-up over the first 4 %, then a cosine to 1 % of the peak."""
    return t / 0.04 + 0.02 if t < 0.04 else 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (t - 0.04) / 0.96))


def run_training(task: TrainingTask, options: LoopOptions, group: ProcessGroup | None = None,
                 should_stop: Callable[[], bool] = never) -> None:
    """Train the task's model from its last checkpoint on, or from the start.

    Args:
        task: the network, its data and its loss.
        options: of the loop.
        group: the processes that train together; None for this one alone.
        should_stop: asked before every step. If true, the run keeps a checkpoint, exports what it has, and returns.
    """
    group = group or ProcessGroup()
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=options.peak_rate, weight_decay=options.weight_decay)
    done = load_checkpoint(options.run, task.model, optimizer, options.device)
    task.load_state(done)
    if options.evaluate_first and done == 0 and group.is_main:
        log_statistics(options.run, iteration=0, **task.evaluate())
    curve = _Curve(options, done)
    with closing(_batches(task, range(done, options.iterations), options.draw_ahead)) as batches:
        for batch in batches:
            # Between two steps of the optimizer there are gradients, which no checkpoint keeps.
            if done % options.step_every == 0 and group.any(should_stop()):
                _save(task, options, optimizer, group, done=done)
                return
            curve.add(task.add_gradients(batch))
            done += 1
            if done % options.step_every == 0:
                _step(task, optimizer, group, task.learning_rate(done))
            if done % options.log_every == 0 and group.is_main:
                curve.log(done)
            if done % options.checkpoint_every == 0 or done == options.iterations:
                if group.is_main:
                    log_statistics(options.run, iteration=done, **task.evaluate())
                _save(task, options, optimizer, group, done=done)


def _step(task: TrainingTask, optimizer: torch.optim.Optimizer, group: ProcessGroup, rate: float) -> None:
    for parameters in optimizer.param_groups:
        parameters["lr"] = rate
    group.average_gradients(task.model)
    nn.utils.clip_grad_norm_(task.clipped_parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _save(task: TrainingTask, options: LoopOptions, optimizer: torch.optim.Optimizer, group: ProcessGroup, *,
          done: int) -> None:
    group.barrier()                    # the states of all processes belong to the same checkpoint
    task.save_state(done)
    if group.is_main:
        task.export()
        save_checkpoint(options.run, task.model, optimizer, done)


def _batches(task: TrainingTask[Batch], iterations: range, ahead: int) -> Generator[Batch, None, None]:
    """The batches of these iterations, in their order, drawn ahead in threads."""
    if ahead == 0:
        yield from map(task.draw, iterations)
        return
    with ThreadPoolExecutor(max(1, ahead // 2)) as pool:
        waiting: deque[Future[Batch]] = deque()
        for iteration in iterations:
            waiting.append(pool.submit(task.draw, iteration))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def batches_ahead(device: str) -> int:
    """How many batches to draw ahead while the device trains: on a GPU, all processors draw."""
    return 2 if device == "cpu" else 2 * (os.cpu_count() or 1)


class _Curve:
    """Averages the latest losses for the lines of the curve."""

    def __init__(self, options: LoopOptions, done: int):
        self._options, self._started, self._first = options, time.monotonic(), done
        self._recent: dict[str, deque[Tensor]] = {}

    def add(self, statistics: Statistics) -> None:
        for name, value in statistics.items():
            self._recent.setdefault(name, deque(maxlen=self._options.log_mean)).append(value)

    def log(self, done: int) -> None:
        means = {name: float(torch.stack(list(values)).mean()) for name, values in self._recent.items()}
        log_statistics(self._options.run, iteration=done, **means,
                       seconds_per_iteration=(time.monotonic() - self._started) / (done - self._first))
