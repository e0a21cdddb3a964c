# SPDX-License-Identifier: Apache-2.0
"""The training loop of all pre-trainings: resumable, and possibly distributed.

Each iteration draws a batch and accumulates its gradients; the optimizer steps every `step_every` iterations. Tasks
seed their random generator with (seed, iteration), so that on a CPU a resumed run ends with the same weights as an
uninterrupted one.
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
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from aceg_ros.pretraining.common.distributed import ProcessGroup
from aceg_ros.pretraining.common.run import load_checkpoint, log_statistics, save_checkpoint

Batch = TypeVar("Batch")
Statistics = dict[str, Tensor]


class TrainingTask(ABC, Generic[Batch]):
    """The specific part of a pre-training: network, data, loss and scores.

    model: everything that is trained and stored in checkpoints.
    """

    model: nn.Module

    @abstractmethod
    def draw(self, iteration: int) -> Batch:
        """Draw the batch of an iteration, with its own random generator. With `LoopOptions.draw_ahead`, it is called in
        threads, some iterations ahead."""

    @abstractmethod
    def add_gradients(self, batch: Batch) -> Statistics:
        """Add the batch's gradients to those of the model. Returns its losses (detached) by name."""

    @abstractmethod
    def learning_rate(self, done: int) -> float:
        """Return the learning rate of the optimizer step after `done` iterations."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Compute scores on held-out data, by name."""

    @abstractmethod
    def export(self) -> None:
        """Write the weights file for inference."""

    def clipped_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters whose gradient norm is clipped to 1."""
        return self.model.parameters()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the groups of parameters to train; `rate_factor` of a group multiplies its learning rate."""
        return [{"params": list(self.model.parameters())}]

    def make_optimizer(self, options: LoopOptions) -> torch.optim.Optimizer:
        """Make the optimizer; its groups are those of `parameter_groups`."""
        return torch.optim.AdamW(self.parameter_groups(), lr=options.peak_rate, weight_decay=options.weight_decay)

    def save_state(self, done: int) -> None:
        """Save further state of this process for resuming, in addition to the checkpoint. Called in every process."""

    def load_state(self, done: int) -> None:
        """Load the state that `save_state` saved after `done` iterations."""


def split_parameters(model: nn.Module, choose: Callable[[str, nn.Parameter], bool]
                     ) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters that are chosen by their name and value, and the others."""
    chosen: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, value in model.named_parameters():
        (chosen if choose(name, value) else others).append(value)
    return chosen, others


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """Options of the training loop.

    run: folder of the run.
    iterations: total number of iterations.
    peak_rate, weight_decay: of AdamW.
    step_every: number of iterations whose gradients are accumulated for one optimizer step.
    checkpoint_every: iterations between checkpoints, at each of which the model is evaluated.
    log_every: iterations between lines of the training curve.
    log_mean: number of recent iterations whose losses are averaged for a line of the curve.
    evaluate_first: whether the untrained model is evaluated as well.
    draw_ahead: number of batches that threads draw ahead; 0 draws each batch just before its iteration.
    processes: number of processes that draw batches ahead, forked from this one, instead of threads; for batches that
    take much Python to draw, such as dataclasses of tensors.
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
    processes: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.checkpoint_every % self.step_every:
            raise ValueError("checkpoint_every must be a multiple of step_every: gradients are not kept")


def never() -> bool:
    """Return False: the default `should_stop`."""
    return False


def warmup_cosine(t: float) -> float:
    """Return the share of the peak rate at t in [0, 1]: warm-up over the first 4 %, then a cosine to 1 %."""
    return t / 0.04 + 0.02 if t < 0.04 else 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (t - 0.04) / 0.96))


def run_training(task: TrainingTask, options: LoopOptions, group: ProcessGroup | None = None,
                 should_stop: Callable[[], bool] = never) -> None:
    """Train the task's model from its last checkpoint, or from the start if there is none.

    Args:
        task: network, data and loss.
        options: options of the loop.
        group: the processes that train together; None for this one alone.
        should_stop: called before every optimizer step. If true, a checkpoint and the current weights are saved.
    """
    group = group or ProcessGroup()
    optimizer = task.make_optimizer(options)
    done = load_checkpoint(options.run, task.model, optimizer, options.device)
    task.load_state(done)
    if options.evaluate_first and done == 0 and group.is_main:
        log_statistics(options.run, iteration=0, **task.evaluate())
    curve = _Curve(options, done)
    iterations = range(done, options.iterations)
    drawn = (batches_of_processes(task, iterations, options.processes) if options.processes
             else _batches(task, iterations, options.draw_ahead))
    with closing(drawn) as batches:
        for batch in batches:
            # Not between two optimizer steps: checkpoints do not contain accumulated gradients.
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
        parameters["lr"] = rate * parameters.get("rate_factor", 1.0)
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
    """Yield the batches of these iterations in order, drawn ahead in threads."""
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


def batches_of_processes(task: TrainingTask[Batch], iterations: range, processes: int) -> Generator[Batch, None, None]:
    """Yield the batches of these iterations in order, drawn ahead in processes. Batches that can be pinned, are."""
    loader: DataLoader[Batch] = DataLoader(
        _Drawn(task), batch_size=None, sampler=iterations, num_workers=processes,
        multiprocessing_context="fork", pin_memory=torch.cuda.is_available())
    yield from loader


class _Drawn(Dataset[Batch]):
    """The batches of a task, by their iteration."""

    def __init__(self, task: TrainingTask[Batch]) -> None:
        self._task = task

    def __getitem__(self, iteration: int) -> Batch:
        return self._task.draw(iteration)


def batches_ahead(device: str) -> int:
    """Return how many batches to draw ahead. With a GPU, all CPU cores are used for drawing."""
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
