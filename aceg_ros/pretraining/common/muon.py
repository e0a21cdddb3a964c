# SPDX-License-Identifier: Apache-2.0
"""Muon (Jordan et al., 2024) for weight matrices and AdamW for all other parameters, as one optimizer.

Two cores have time for a few thousand steps only, and Muon converges in fewer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)         # coefficients of the quintic iteration
NEWTON_SCHULZ_STEPS = 3                           # five are usual; three were no worse for the heads of maps
MOMENTUM, BETAS, EPS = 0.95, (0.9, 0.99), 1e-8


class MuonAdamW(torch.optim.Optimizer):
    """Parameter groups with `orthogonal` true get Muon; their parameters must be matrices."""

    def __init__(self, groups: list[dict[str, Any]], rate: float, weight_decay: float):
        super().__init__(groups, {"lr": rate, "weight_decay": weight_decay, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:                                          # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                update = _muon_update if group["orthogonal"] else _adam_update
                parameter.add_(update(parameter.grad, self.state[parameter]), alpha=-group["lr"])


def _muon_update(gradient: Tensor, state: dict[str, Any]) -> Tensor:
    """Return the orthogonalised momentum, scaled so that its entries are about as large as those of Adam's updates."""
    momentum = state.setdefault("momentum", torch.zeros_like(gradient))
    momentum.lerp_(gradient, 1 - MOMENTUM)
    x = gradient.lerp(momentum, MOMENTUM)
    wide = x.shape[0] < x.shape[1]
    x = (x if wide else x.T) / (x.norm() + EPS)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        product = x @ x.T
        x = a * x + (b * product + c * product @ product) @ x
    return (x if wide else x.T) * (0.2 * max(gradient.shape) ** 0.5)


def _adam_update(gradient: Tensor, state: dict[str, Any]) -> Tensor:
    if not state:
        state.update(step=0, mean=torch.zeros_like(gradient), square=torch.zeros_like(gradient))
    state["step"] += 1
    state["mean"].lerp_(gradient, 1 - BETAS[0])
    state["square"].lerp_(gradient.square(), 1 - BETAS[1])
    mean, square = (state[name] / (1 - beta ** state["step"]) for name, beta in zip(("mean", "square"), BETAS,
                                                                                    strict=True))
    return mean / (square.sqrt() + EPS)
