# SPDX-License-Identifier: Apache-2.0
"""Trains the keypoint relative pose network on pairs of posed images; resumable."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aceg_ros.encoders.base import load_encoder
from aceg_ros.errors import UserError
from aceg_ros.networks.keypoint_relative_pose import (
    KeypointPoseConfig,
    KeypointPoseNet,
    RatedMatches,
    homogeneous,
)
from aceg_ros.networks.relative_pose_file import load_relative_pose, save_keypoint_network
from aceg_ros.networks.weighted_essential import sampson_errors
from aceg_ros.pretraining.common.loop import (
    LoopOptions,
    Statistics,
    TrainingTask,
    never,
    run_training,
    split_parameters,
    warmup_cosine,
)
from aceg_ros.pretraining.common.muon import MuonAdamW
from aceg_ros.pretraining.common.run import lock_options
from aceg_ros.pretraining.reloc3r.samples import PoseBatch, SceneKeypoints, draw_pairs
from aceg_ros.pretraining.sacreg.scenes import CrossImageData, CrossImageScene
from aceg_ros.utils.device import training_precision

CURRICULUM = 0.5                     # share of the iterations over which pairs become farther
ERROR_UNIT, MAX_ERROR = 0.004, 30.0  # of Sampson errors in the loss of the pose: unit, and largest in such units
MIN_RIGHT = 10                       # matches that are right in a pair whose pose is learned from
POSE_SHARE = 0.2                     # of the loss of the pose in the sum
CONFIDENCE_SHARE = 0.1
AUC_DEG = 10.0
DRAWN_MATCHES = 256                  # of a pair, at most: fewer than an image that is localized has, which saves time


@dataclass(frozen=True, kw_only=True)
class RelativePoseTraining:
    """A training run. folder: of the prepared scenes, which a training of sacreg may share. size: of the network.
    batch: pairs of an iteration. held_out_pairs: that scores are computed on, near and far. start: weights to begin
    with, also of another encoder; None for random ones."""

    run: Path
    folder: Path
    data: CrossImageData
    size: KeypointPoseConfig = field(default_factory=KeypointPoseConfig)
    iterations: int = 3000
    batch: int = 16
    peak_rate: float = 1e-3
    start: str | None = None
    checkpoint_every: int = 200
    held_out_pairs: int = 192
    seed: int = 0
    device: str = "cpu"


def load_start(net: KeypointPoseNet, source: str) -> None:
    """Load weights to begin with. Raises UserError if they are not those of such a network."""
    try:
        net.load_state_dict(load_relative_pose(source).net.state_dict())
    except RuntimeError as error:
        raise UserError(f"{source} does not hold weights to begin with ({error}).") from None


def train(options: RelativePoseTraining, should_stop: Callable[[], bool] = never) -> Path:
    """Train, or go on with an interrupted run. Returns the weights file.

    should_stop: called before every step; if true, the run ends early and can be resumed. Raises UserError if there is
    nothing to train on, or the run was started with other options.
    """
    lock_options(options.run, options)
    task = RelativePoseTask(options)
    loop = LoopOptions(run=options.run, iterations=options.iterations, peak_rate=options.peak_rate,
                       checkpoint_every=options.checkpoint_every, log_every=50, log_mean=50, evaluate_first=True,
                       device=options.device)
    run_training(task, loop, should_stop=should_stop)
    return task.weights


class RelativePoseTask(TrainingTask[PoseBatch]):
    """Network, pairs, loss and scores."""

    def __init__(self, options: RelativePoseTraining):
        self._options = options
        self._encoder = load_encoder(options.data.encoder)
        torch.manual_seed(options.seed)
        self.model = self._net = KeypointPoseNet(options.size).to(options.device)
        if options.start is not None:
            load_start(self._net, options.start)
        self.weights = options.run / "reloc3r.safetensors"
        self._scenes, self._held_out = self._prepared(held_out=False), self._prepared(held_out=True)
        if not self._scenes:
            raise UserError(f"No scene is prepared in {options.folder}: prepare some first (--stage prepare).")

    def _prepared(self, *, held_out: bool) -> list[SceneKeypoints]:
        """Read the scenes that are prepared by now and have pairs."""
        files = self._options.data.files(self._options.folder, held_out=held_out)
        scenes = [SceneKeypoints.from_prepared(CrossImageScene.load(path)) for path in files if path.exists()]
        return [scene for scene in scenes if len(scene.pairs)]

    def make_optimizer(self, options: LoopOptions) -> torch.optim.Optimizer:
        return MuonAdamW(self.parameter_groups(), options.peak_rate, options.weight_decay)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the matrices of the blocks, for Muon, and the other parameters, for AdamW."""
        matrices, others = split_parameters(
            self.model, lambda name, value: value.ndim == 2 and name.startswith("halves"))
        return [{"params": matrices, "orthogonal": True}, {"params": others, "orthogonal": False}]

    def draw(self, iteration: int) -> PoseBatch:
        rng = np.random.default_rng((self._options.seed, iteration))
        progress = min(iteration / (CURRICULUM * self._options.iterations), 1.0)
        return draw_pairs(self._scenes, self._options.batch, progress, rng, matches=DRAWN_MATCHES)

    def add_gradients(self, batch: PoseBatch) -> Statistics:
        batch = self._moved(batch)
        with training_precision(self._options.device):
            rated = self._net.rate(batch.matches)
        rating = torch.stack([rating_loss(logits, batch.right) for logits in rated.logits]).sum()
        errors = torch.stack([pose_loss(essential, batch) for essential in rated.essential]).sum()
        rotation, direction = self._angles(rated, batch)
        # The likelihood of the sum of both angles, so that the network says how far off it may be.
        confidence = ((rotation + direction) * torch.exp(-rated.log_sigma) + rated.log_sigma).mean()
        loss = rating + POSE_SHARE * errors + CONFIDENCE_SHARE * confidence
        loss.backward()
        for parameter in self.model.parameters():           # an eigenproblem whose eigenvalues agree has no derivative
            if parameter.grad is not None:
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        return {"loss": loss.detach(), "rating": rating.detach(), "pose": errors.detach(),
                "confidence": confidence.detach(), "direction_deg": direction.mean() * 180.0 / math.pi}

    def learning_rate(self, done: int) -> float:
        return self._options.peak_rate * warmup_cosine(min(done / self._options.iterations, 1.0))

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Median errors in degrees on pairs of the held-out scenes, near and far, the area under the recall curve up to
        10 degrees, and the loss of the ratings."""
        if not self._held_out:
            return {}
        scores: dict[str, float] = {}
        self.model.eval()
        for name, progress in (("near", 0.0), ("far", 1.0)):
            batch = self._moved(draw_pairs(self._held_out, self._options.held_out_pairs, progress,
                                           np.random.default_rng(self._options.seed),
                                           matches=DRAWN_MATCHES))
            with training_precision(self._options.device):
                rated = self._net.rate(batch.matches)
            rotation, direction = (angle.rad2deg() for angle in self._angles(rated, batch))
            larger = torch.maximum(rotation, direction)
            scores |= {f"{name}_rotation_deg": float(rotation.median()),
                       f"{name}_direction_deg": float(direction.median()),
                       f"{name}_auc10": float((1.0 - larger / AUC_DEG).clamp(min=0.0).mean()),
                       f"{name}_rating": float(rating_loss(rated.logits[1], batch.right))}
        self.model.train()
        return scores

    def export(self) -> None:
        save_keypoint_network(self._net, self._encoder.identity, self.weights)

    def _moved(self, batch: PoseBatch) -> PoseBatch:
        device = self._options.device
        return PoseBatch(type(batch.matches)(*(part.to(device) for part in batch.matches)),
                         *(part.to(device) for part in batch[1:]))

    def _angles(self, rated: RatedMatches, batch: PoseBatch) -> tuple[Tensor, Tensor]:
        """Return the angles (B,), (B,) of the refined rotation and direction from the truth, radians."""
        weights = rated.logits[1].detach().float().sigmoid() * batch.matches.valid
        found, towards = self._net.pose_of(rated.essential[1], batch.matches, weights)
        cosine = ((found.mT @ batch.rotation).diagonal(dim1=1, dim2=2).sum(1) - 1.0) / 2.0
        between = (towards * batch.direction).sum(1)
        return torch.acos(cosine.clamp(-1.0, 1.0)).float(), torch.acos(between.clamp(-1.0, 1.0)).float()


def rating_loss(logits: Tensor, right: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of right and of wrong matches (B, T), which count equally."""
    losses = [functional.softplus(-logits)[right == 1], functional.softplus(logits)[right == 0]]
    return torch.stack([each.mean() for each in losses if len(each)]).mean()


def pose_loss(essential: Tensor, batch: PoseBatch) -> Tensor:
    """Return the mean log error of the right matches under essential matrices (B, 3, 3), in pairs with enough."""
    errors = sampson_errors(essential, homogeneous(batch.matches.first_rays).double(),
                            homogeneous(batch.matches.second_rays).double()).abs() / ERROR_UNIT
    right = (batch.right == 1).double()
    mean = (errors.clamp(max=MAX_ERROR).log1p() * right).sum(1) / right.sum(1).clamp(min=1.0)
    enough = right.sum(1) >= MIN_RIGHT
    return (mean * enough).sum().float() / enough.sum().clamp(min=1)
