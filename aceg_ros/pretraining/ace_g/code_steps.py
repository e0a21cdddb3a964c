# SPDX-License-Identifier: Apache-2.0
"""The steps of training with map codes: mapping steps fit the code of a scene, query steps train the regressor."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aceg_ros.mapping.losses import laplace_loss, laplace_reprojection_loss
from aceg_ros.mapping.training_loop import one_cycle
from aceg_ros.networks.map_code_transformer import MapCode, TransformerHead, TransformerHeadConfig
from aceg_ros.pretraining.ace_g.scenes import TrainingScene, TrainingSceneData
from aceg_ros.pretraining.common.loop import LoopOptions, Statistics
from aceg_ros.utils.device import training_precision

QUERY_AGE = 0.2                        # share of a code's lifetime after which it is used for query steps


@dataclass(frozen=True, kw_only=True)
class MapCodeTraining:
    """Options of a run.

    codes: code vectors per scene. active: number of scenes mapped at the same time. lifetime: mapping steps of a code
    before a new scene replaces it. query_share: query steps per mapping step, once a code is old enough. step_every:
    iterations per optimizer step of the regressor. code_rate, peak_rate: peak learning rates of codes and regressor.
    """

    run: Path
    data: TrainingSceneData
    iterations: int = 20_000
    size: TransformerHeadConfig = field(default_factory=lambda: TransformerHeadConfig(
        dim_in=128, num_blocks=4, num_attention_heads=4, dim_emb=128, mlp_ratio=2.0, unit_features=True))
    codes: int = 256
    active: int = 8
    lifetime: int = 300
    query_share: float = 1.0
    step_every: int = 10
    batch: int = 1024
    code_rate: float = 2e-3
    peak_rate: float = 1e-3
    feature_dropout: float = 0.1
    seed: int = 0
    device: str = "cpu"
    checkpoint_every: int = 2000

    def loop_options(self) -> LoopOptions:
        return LoopOptions(run=self.run, iterations=self.iterations, peak_rate=self.peak_rate, log_every=500,
                           step_every=self.step_every, checkpoint_every=self.checkpoint_every, device=self.device)


@dataclass(kw_only=True)                # mutable: every step makes it older
class CodeFit:
    """A scene's code while it is fitted. age: number of mapping steps so far, of `lifetime`."""

    scene: TrainingScene
    code: MapCode
    optimizer: torch.optim.Optimizer
    age: int = 0
    lifetime: int

    @classmethod
    def start(cls, scene: TrainingScene, options: MapCodeTraining, *, seed: int, lifetime: int) -> CodeFit:
        """Start from noise. The code's mean is that of the landmarks, because the mapping cameras are not stored."""
        generator = torch.Generator().manual_seed(seed)
        code = MapCode.noise(options.codes, options.size.dim_emb, scene.points.mean(0).cpu(),
                             generator).to(options.device)
        optimizer = torch.optim.AdamW(code.parameters(), lr=options.code_rate, weight_decay=0.01)
        return cls(scene=scene, code=code, optimizer=optimizer, lifetime=max(lifetime, 1))


def training_step(net: TransformerHead, fit: CodeFit, rng: np.random.Generator, options: MapCodeTraining) -> Statistics:
    """Do a mapping step and, for a share of steps, a query step; accumulates their gradients in the regressor."""
    losses = {"mapping_loss": mapping_step(net, fit, rng, options)}
    if fit.age > fit.lifetime * QUERY_AGE and rng.random() < options.query_share:
        index = torch.from_numpy(rng.integers(len(fit.scene.features), size=options.batch)).to(options.device)
        loss = query_loss(net, fit.code, fit.scene, index)
        (loss / options.step_every).backward(inputs=list(net.parameters()))       # the code is frozen
        losses["query_loss"] = loss.detach()
    return losses


def mapping_step(net: TransformerHead, fit: CodeFit, rng: np.random.Generator, options: MapCodeTraining) -> Tensor:
    """Fit the code to a batch of landmarks by one step. Returns the loss (detached)."""
    scene = fit.scene
    index = torch.from_numpy(rng.integers(len(scene.points), size=options.batch)).to(options.device)
    features = functional.dropout(scene.keys[index].float(), options.feature_dropout)
    with training_precision(features.device.type):
        predicted = net(features, fit.code)
    loss = laplace_loss(predicted.coordinates.float(), predicted.sigma.float(), scene.points[index]).mean()
    (loss / options.step_every).backward()
    for group in fit.optimizer.param_groups:
        group["lr"] = options.code_rate * one_cycle(fit.age / fit.lifetime)
    fit.optimizer.step()
    fit.optimizer.zero_grad(set_to_none=True)
    fit.age += 1
    return loss.detach()


def query_loss(net: TransformerHead, code: MapCode, scene: TrainingScene, index: Tensor) -> Tensor:
    """Compute the mean loss of query patches (B,), by their map points or, if these are unknown, by reprojection."""
    with training_precision(scene.points.device.type):
        predicted = net(scene.features[index].float(), code)
    coordinates, sigma, truth = predicted.coordinates.float(), predicted.sigma.float(), scene.truth(index)
    known = torch.isfinite(truth).all(1)
    loss = laplace_loss(coordinates, sigma, torch.where(known[:, None], truth, 0.0))
    if not bool(known.all()):
        loss = torch.where(known, loss, laplace_reprojection_loss(coordinates, sigma, scene.view(index))[0])
    return loss.mean()


def fit_code(net: TransformerHead, scene: TrainingScene, options: MapCodeTraining, seed: int) -> MapCode:
    """Map a scene with the regressor frozen: return its code after a lifetime of mapping steps."""
    fit = CodeFit.start(scene, options, seed=seed, lifetime=options.lifetime)
    rng = np.random.default_rng(seed)
    net.requires_grad_(False)
    for _ in range(options.lifetime):
        mapping_step(net, fit, rng, options)
    net.requires_grad_(True)
    return fit.code
