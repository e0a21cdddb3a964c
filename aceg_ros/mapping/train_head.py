"""The one training loop: random patches over all pictures, one-cycle schedule, an end that the clock sets."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aceg_ros.mapping.losses import ace_loss, guide_loss
from aceg_ros.mapping.patch_buffer import PatchBuffer
from aceg_ros.networks.ace_head import SceneHead
from aceg_ros.utils.device import computes_in_bf16, half_precision

MIN_KNOWN, MIN_KNOWN_PATCHES = 0.005, 300       # share of the buffer, and patches
MUON_STEPS = 3          # of Newton and Schulz; five, its default, are no better here and cost a seventh of the time


@dataclass(frozen=True)
class TrainingOptions:
    """ACE's schedule. iterations: upper bound; the clock may end a run earlier. peak_rate, muon_rate: of AdamW and of
    Muon, see `_optimizers`.

    fading_depth: see `ace_loss`. warm_up: share of the training that sees only patches of known depth, where there are
    enough of them (`enough`), and learns from those depths alone; guided_share: their part of each
    batch after it. A patch that several pictures agree on is one that a query will be recognised by.
    """

    iterations: int = 25_000
    batch: int = 5120
    peak_rate: float = 5e-3
    muon_rate: float = 2e-2
    weight_decay: float = 0.01
    seed: int = 0
    fading_depth: bool = False
    warm_up: float = 0.2
    guided_share: float = 0.5


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


def train_head(head: SceneHead, buffer: PatchBuffer, options: TrainingOptions, deadline: float,
               report: Callable[[float, float, float], None], should_stop: Callable[[], bool]) -> TrainingResult:
    """Fit `head` to the buffer until `options.iterations` or time.monotonic() = deadline, whichever is first.

    Progress, which drives learning rate and loss, is the larger of the share of iterations and the share of time, so
    the schedule always completes. When should_stop turns true, the rest of the schedule is run through in a tenth of
    the time so far (at most 15 s): a head stopped at a high learning rate is far worse than it could be.
    report(progress, remaining seconds, median pixel error).
    """
    generator = torch.Generator().manual_seed(options.seed)
    optimizers = _optimizers(head, options)
    peak_rates = [optimizer.defaults["lr"] for optimizer in optimizers]
    cuda = buffer.device == "cuda"
    scaler = torch.amp.GradScaler("cuda", enabled=cuda)
    started = time.monotonic()
    budget = max(deadline - started, 1e-3)
    recent: list[Tensor] = []
    known = buffer.known_depths()
    warm_up, guided_share = (options.warm_up, options.guided_share) if enough(known, buffer) else (0.0, 0.0)
    batches = _Batches(known, buffer.size, options.batch, generator)
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
        warming_up = progress < warm_up
        patches = buffer.patches(batches.draw(1.0 if warming_up else guided_share).to(buffer.device))
        for optimizer, peak_rate in zip(optimizers, peak_rates, strict=True):
            optimizer.param_groups[0]["lr"] = peak_rate * rate
        with half_precision(buffer.device):
            coordinates = head(patches.features)
        if warming_up and patches.depth_m is not None:
            loss, errors = guide_loss(coordinates.float(), patches.view, patches.depth_m, head.contraction)
        else:
            loss, errors = ace_loss(coordinates.float(), patches.view, progress, patches.depth_m,
                                    options.fading_depth, head.contraction)
        head.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        for optimizer in optimizers:
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


def _optimizers(head: SceneHead, options: TrainingOptions) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the hidden matrices, AdamW for biases and outputs.

    A few thousand steps are all that two cores have time for, and Muon makes more of each (docs/benchmarks/
    2026-11-26-ace-head.md). torch has it from 2.9 on, and computes it in bf16: where the processor does not, a step
    takes several times as long as the rest of the training, so that there all is AdamW's.
    """
    matrices = [p for p in head.parameters() if p.ndim == 2 and p is not head.fc3.weight]
    others = [p for p in head.parameters() if p.ndim != 2 or p is head.fc3.weight]
    fast = matrices[0].is_cuda or computes_in_bf16()
    if not (fast and hasattr(torch.optim, "Muon")):
        matrices, others = [], [*head.parameters()]
    adam = torch.optim.AdamW(others, lr=options.peak_rate, weight_decay=options.weight_decay, fused=True)
    if not matrices:
        return [adam]
    return [adam, torch.optim.Muon(matrices, lr=options.muon_rate, weight_decay=options.weight_decay,
                                   ns_steps=MUON_STEPS)]


def enough(known: Tensor, buffer: PatchBuffer) -> bool:
    """Whether the patches of known depth can lead the training."""
    return len(known) > max(MIN_KNOWN * buffer.size, MIN_KNOWN_PATCHES)


class _Batches:
    """Batches of indices: some among the known ones, the rest among all of them; each once, in random order, and then
    again."""

    def __init__(self, known: Tensor, size: int, batch: int, generator: torch.Generator):
        self._pools, self._batch, self._generator = (known, torch.arange(size)), batch, generator
        self._orders = [known[:0], known[:0]]

    def draw(self, known_share: float) -> Tensor:
        known = round(known_share * self._batch)
        return torch.cat([self._take(0, known), self._take(1, self._batch - known)])

    def _take(self, which: int, count: int) -> Tensor:
        pool = self._pools[which]
        assert len(pool) or not count, "batches of an empty pool"
        while len(self._orders[which]) < count:
            shuffled = pool[torch.randperm(len(pool), generator=self._generator)]
            self._orders[which] = torch.cat([self._orders[which], shuffled])
        chosen, self._orders[which] = self._orders[which][:count], self._orders[which][count:]
        return chosen


@dataclass(frozen=True)
class _Stop:
    """The user asked to stop at_s seconds into the training, at this progress; cooldown_s is left to finish."""

    at_s: float
    cooldown_s: float
    progress: float
