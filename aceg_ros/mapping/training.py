"""The one training loop: random patches over all pictures, one-cycle schedule, an end that the clock sets."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aceg_ros.encoders.base import half_precision
from aceg_ros.mapping.buffer import PatchBuffer
from aceg_ros.mapping.losses import ace_loss


@dataclass(frozen=True)
class TrainingOptions:
    """ACE's schedule. iterations: upper bound; the clock may end a run earlier. fading_depth: see `ace_loss`."""

    iterations: int = 25_000
    batch: int = 5120
    peak_rate: float = 5e-3
    weight_decay: float = 0.01
    seed: int = 0
    fading_depth: bool = False


@dataclass(frozen=True)
class TrainingResult:
    iterations: int
    seconds: float
    reprojection_px: float          # median over the last batches
    finished: bool                  # false: stopped by the user


def one_cycle(progress: float) -> float:
    """Share of the peak rate at progress in [0, 1]: cosine rise over the first 4 %, cosine fall to 1e-4 after it."""
    rise = 0.04
    if progress < rise:
        low, high, t = 0.04, 1.0, progress / rise
    else:
        low, high, t = 1.0, 1e-4, (progress - rise) / (1 - rise)
    return low + (high - low) * (1 - float(torch.cos(torch.tensor(torch.pi * t)))) / 2


def train_head(head: nn.Module, buffer: PatchBuffer, options: TrainingOptions, deadline: float,
               report: Callable[[float, float, float], None], should_stop: Callable[[], bool]) -> TrainingResult:
    """Fit `head` to the buffer until `options.iterations` or time.monotonic() = deadline, whichever is first.

    Progress, which drives learning rate and loss, is the larger of the share of iterations and the share of time, so
    the schedule always completes. When should_stop turns true, the rest of the schedule is run through in a tenth of
    the time so far (at most 15 s): a head stopped at a high learning rate is far worse than it could be.
    report(progress, remaining seconds, median pixel error).
    """
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=options.peak_rate, weight_decay=options.weight_decay,
                                  fused=True)
    cuda = buffer.device == "cuda"
    scaler = torch.amp.GradScaler("cuda", enabled=cuda)
    started = time.monotonic()
    budget = max(deadline - started, 1e-3)
    recent: list[Tensor] = []
    order = torch.empty(0, dtype=torch.long)
    done = 0
    stopped: _Stop | None = None
    while done < options.iterations:
        elapsed = time.monotonic() - started
        progress = max(done / options.iterations, elapsed / budget)
        rate = one_cycle(min(progress, 1.0))
        if stopped is None and should_stop():
            stopped = _Stop(elapsed, min(0.1 * elapsed, 15.0, budget - elapsed), progress)
        if stopped is not None:
            share = (elapsed - stopped.at_s) / max(stopped.cooldown_s, 1e-3)
            progress = stopped.progress + (1.0 - stopped.progress) * share
            rate = one_cycle(stopped.progress) * (1.0 - share)
        if progress >= 1.0:
            break
        if len(order) < options.batch:                 # a new epoch: every patch once, in random order
            order = torch.cat([order, torch.randperm(buffer.size, generator=generator)])
        index, order = order[:options.batch].to(buffer.device), order[options.batch:]
        patches = buffer.patches(index)
        for group in optimizer.param_groups:
            group["lr"] = options.peak_rate * rate
        with half_precision(buffer.device):
            coordinates = head(patches.features)
        loss, errors = ace_loss(coordinates.float(), patches.view, progress, patches.depth_m,
                                options.fading_depth)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        done += 1
        recent = [*recent[-19:], errors.median()]
        if done % 20 == 0:
            left = min(budget - elapsed, elapsed / done * (options.iterations - done))
            report(progress, max(left, 0.0), float(torch.stack(recent).median()))
    seconds = time.monotonic() - started
    median = float(torch.stack(recent).median()) if recent else float("nan")
    return TrainingResult(done, seconds, median, stopped is None)


@dataclass(frozen=True)
class _Stop:
    """The user asked to stop at_s seconds into the training, at this progress; cooldown_s is left to finish."""

    at_s: float
    cooldown_s: float
    progress: float
