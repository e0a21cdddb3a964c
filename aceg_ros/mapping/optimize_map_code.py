# SPDX-License-Identifier: Apache-2.0
"""ACE-G's mapping with the published regressor, which stays frozen: optimises the map code by reprojection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.losses import laplace_reprojection_loss
from aceg_ros.mapping.patch_buffer import PatchBuffer
from aceg_ros.mapping.training_loop import TrainingResult, run_training
from aceg_ros.networks.map_code_transformer import MapCode, TransformerHead
from aceg_ros.utils.device import half_precision

REPORT_EVERY = 5                # iterations, which are long


@dataclass(frozen=True, kw_only=True)
class MapCodeOptions:
    """Options of the optimisation; defaults are the paper's "5 min" setting.

    iterations: upper bound; the time budget may end it earlier. feature_dropout: share of feature entries set to zero.
    """

    codes: int = 4096
    iterations: int = 1000
    batch: int = 40_960
    peak_rate: float = 2e-3
    weight_decay: float = 0.01
    feature_dropout: float = 0.1
    seed: int = 0


def optimize_map_code(code: MapCode, regressor: TransformerHead, buffer: PatchBuffer, *, options: MapCodeOptions,
                      budget: MappingBudget) -> TrainingResult:
    """Optimise `code`, in place, on the patches of the buffer; see `run_training`."""
    optimizer = torch.optim.AdamW(code.parameters(), lr=options.peak_rate, weight_decay=options.weight_decay)
    generator = torch.Generator().manual_seed(options.seed)

    def step(_: float, rate: float) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = options.peak_rate * rate
        index = torch.randint(buffer.size, (options.batch,), generator=generator)
        patches = buffer.patches(index.to(buffer.device))
        with half_precision(buffer.device):
            found = regressor(functional.dropout(patches.features, options.feature_dropout), code)
        loss, errors = laplace_reprojection_loss(found.coordinates.float(), found.sigma.float(), patches.view)
        optimizer.zero_grad(set_to_none=True)
        loss.mean().backward()
        optimizer.step()
        return errors.median()

    return run_training(step, options.iterations, budget, REPORT_EVERY)
