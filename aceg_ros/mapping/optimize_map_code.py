"""ACE-G's mapping with the published regressor: it stays frozen, the map code is optimised by reprojection."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from aceg_ros.mapping.losses import laplace_reprojection_loss
from aceg_ros.mapping.patch_buffer import PatchBuffer
from aceg_ros.mapping.train_head import TrainingResult, one_cycle
from aceg_ros.networks.map_code_transformer import MapCode, TransformerHead
from aceg_ros.utils.device import half_precision


@dataclass(frozen=True)
class CodeTraining:
    """The paper's "5 min" setting; the clock may end it earlier. feature_dropout: share of feature entries left out."""

    codes: int = 4096
    iterations: int = 1000
    batch: int = 40_960
    peak_rate: float = 2e-3
    weight_decay: float = 0.01
    feature_dropout: float = 0.1
    seed: int = 0


def train_code(head: TransformerHead, code: MapCode, buffer: PatchBuffer, options: CodeTraining, deadline: float,
               report: Callable[[float, float, float], None], should_stop: Callable[[], bool]) -> TrainingResult:
    """Fit `code` to the buffer until `options.iterations` or time.monotonic() = deadline, or until should_stop.

    The learning rate follows the larger of the share of iterations and the share of time, so a run that the clock ends
    has cooled down as well. report(progress, remaining seconds, median pixel error).
    """
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.AdamW(code.parameters(), lr=options.peak_rate, weight_decay=options.weight_decay)
    started = time.monotonic()
    budget = max(deadline - started, 1e-3)
    recent: list[Tensor] = []
    done, stopped = 0, False
    while not stopped:
        elapsed = time.monotonic() - started
        progress = max(done / options.iterations, elapsed / budget)
        if progress >= 1.0:
            break
        for group in optimizer.param_groups:
            group["lr"] = options.peak_rate * one_cycle(progress)
        index = torch.randint(buffer.size, (options.batch,), generator=generator)
        patches = buffer.patches(index.to(buffer.device))
        with half_precision(buffer.device):
            found = head(functional.dropout(patches.features, options.feature_dropout), code)
        loss, errors = laplace_reprojection_loss(found.coordinates.float(), found.sigma.float(), patches.view)
        optimizer.zero_grad(set_to_none=True)
        loss.mean().backward()
        optimizer.step()
        done += 1
        recent = [*recent[-19:], errors.median()]
        if done % 5 == 0:
            report(progress, max(min(budget - elapsed, elapsed / done * (options.iterations - done)), 0.0),
                   float(torch.stack(recent).median()))
        stopped = should_stop()
    median = float(torch.stack(recent).median()) if recent else float("nan")
    return TrainingResult(done, time.monotonic() - started, median, not stopped)
