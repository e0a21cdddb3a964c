# SPDX-License-Identifier: Apache-2.0
"""Training of an ACE head: random patches of all mapping images, supervised by reprojection and by known depths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.losses import ace_loss, known_depth_loss
from aceg_ros.mapping.patch_buffer import PatchBuffer, Patches
from aceg_ros.mapping.training_loop import TrainingResult, run_training
from aceg_ros.networks.ace_head import SceneHead
from aceg_ros.utils.device import computes_in_bf16, half_precision

MUON_STEPS = 3          # Newton-Schulz iterations; the default of five is no better here and takes a seventh longer


@dataclass(frozen=True, kw_only=True)
class HeadTrainingOptions:
    """ACE's training schedule.

    iterations: upper bound; the time budget may end the training earlier. peak_rate, muon_rate: peak learning rates of
    AdamW and of Muon, see `_optimizers`. anneal_depth_loss: see `annealed` of `ace_loss`.

    warm_up: first share of the training, which uses only patches of known depth and is supervised by those depths
    alone, if there are enough of them (`PatchBuffer.has_enough_known_depths`). known_depth_share: share of patches of
    known depth in each later batch. They are favoured because patches that several mapping images agree on are the
    ones that query images match.
    """

    iterations: int = 25_000
    batch: int = 5120
    peak_rate: float = 5e-3
    muon_rate: float = 2e-2
    weight_decay: float = 0.01
    seed: int = 0
    anneal_depth_loss: bool = False
    warm_up: float = 0.2
    known_depth_share: float = 0.5


def train_head(head: SceneHead, buffer: PatchBuffer, options: HeadTrainingOptions,
               budget: MappingBudget) -> TrainingResult:
    """Train the head on the patches of the buffer; see `run_training`."""
    return run_training(_HeadStep(head, buffer, options), options.iterations, budget)


class _HeadStep:
    """One step of a head's training."""

    def __init__(self, head: SceneHead, buffer: PatchBuffer, options: HeadTrainingOptions):
        self._head, self._buffer, self._options = head, buffer, options
        self._optimizers = _optimizers(head, options)
        self._peak_rates = [optimizer.defaults["lr"] for optimizer in self._optimizers]
        self._scaler = torch.amp.GradScaler("cuda", enabled=buffer.device == "cuda")
        known = buffer.known_depths()
        supervised = buffer.has_enough_known_depths(known)
        self._warm_up = options.warm_up if supervised else 0.0
        self._known_depth_share = options.known_depth_share if supervised else 0.0
        generator = torch.Generator().manual_seed(options.seed)
        self._batches = BatchSampler(known, buffer.size, options.batch, generator)

    def __call__(self, progress: float, rate: float) -> Tensor:
        warming_up = progress < self._warm_up
        index = self._batches.draw(1.0 if warming_up else self._known_depth_share)
        patches = self._buffer.patches(index.to(self._buffer.device))
        for optimizer, peak_rate in zip(self._optimizers, self._peak_rates, strict=True):
            optimizer.param_groups[0]["lr"] = peak_rate * rate
        with half_precision(self._buffer.device):
            coordinates = self._head(patches.features)
        loss, errors = self._loss(coordinates.float(), patches, progress, warming_up)
        self._head.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        for optimizer in self._optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()
        return errors.median()

    def _loss(self, coordinates: Tensor, patches: Patches, progress: float, warming_up: bool) -> tuple[Tensor, Tensor]:
        contraction = self._head.contraction
        if warming_up and patches.depth_m is not None:
            return known_depth_loss(coordinates, patches.view, patches.depth_m, contraction)
        return ace_loss(coordinates, patches.view, progress, patches.depth_m, annealed=self._options.anneal_depth_loss,
                        contraction=contraction)


def _optimizers(head: SceneHead, options: HeadTrainingOptions) -> list[torch.optim.Optimizer]:
    """Make Muon (Jordan et al., 2024) for the hidden weight matrices and AdamW for biases and the output layer.

    Two cores have time for a few thousand steps only, and Muon converges in fewer (docs/benchmarks/
    2026-11-26-ace-head.md). torch has Muon from version 2.9 on and computes it in bf16. On a processor without bf16 its
    step would take several times as long as the rest of an iteration, so there AdamW optimises all parameters.
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


class BatchSampler:
    """Draws batches of patch indices: a share of patches with known depth, the rest from all patches.

    Each of the two sets is used up in random order before it is shuffled again.
    """

    def __init__(self, known: Tensor, size: int, batch: int, generator: torch.Generator):
        self._pools, self._batch, self._generator = (known, torch.arange(size)), batch, generator
        self._orders = [known[:0], known[:0]]

    def draw(self, known_share: float) -> Tensor:
        """Return the indices (B,) of the next batch, this share of them with known depth."""
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
