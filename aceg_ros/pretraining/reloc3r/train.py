# SPDX-License-Identifier: Apache-2.0
"""Trains the keypoint relative pose network on pairs of posed images; resumable."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aceg_ros.encoders.base import load_encoder
from aceg_ros.errors import UserError
from aceg_ros.networks.keypoint_relative_pose import KeypointPoseConfig, KeypointPoseNet, KeypointTokens, PredictedPose
from aceg_ros.networks.relative_pose_file import save_keypoint_network
from aceg_ros.pretraining.common.loop import LoopOptions, Statistics, TrainingTask, never, run_training, warmup_cosine
from aceg_ros.pretraining.common.run import lock_options
from aceg_ros.pretraining.reloc3r.samples import PoseBatch, SceneKeypoints, draw_pairs
from aceg_ros.pretraining.sacreg.scenes import CrossImageData, CrossImageScene
from aceg_ros.utils.device import training_precision

HELD_OUT_PAIRS = 256
SMALL = KeypointPoseConfig(keypoints=512, tokens=128, width=96, blocks=3, matched_rays=True)       # for two CPU cores
CURRICULUM = 0.6                     # share of the iterations over which pairs become farther


@dataclass(frozen=True, kw_only=True)
class RelativePoseTraining:
    """A training run. folder: of the prepared scenes, which a training of sacreg may share. size: of the network.
    batch: pairs of an iteration."""

    run: Path
    folder: Path
    data: CrossImageData
    size: KeypointPoseConfig = field(default_factory=lambda: SMALL)
    iterations: int = 20_000
    batch: int = 32
    peak_rate: float = 1e-3
    checkpoint_every: int = 250
    seed: int = 0
    device: str = "cpu"


def train(options: RelativePoseTraining, should_stop: Callable[[], bool] = never) -> Path:
    """Train, or go on with an interrupted run. Returns the weights file.

    should_stop: called before every step; if true, the run ends early and can be resumed. Raises UserError if there is
    nothing to train on, or the run was started with other options.
    """
    lock_options(options.run, options)
    task = RelativePoseTask(options)
    loop = LoopOptions(run=options.run, iterations=options.iterations, peak_rate=options.peak_rate,
                       checkpoint_every=options.checkpoint_every, device=options.device)
    run_training(task, loop, should_stop=should_stop)
    return task.weights


class RelativePoseTask(TrainingTask[PoseBatch]):
    """Network, pairs, loss and scores."""

    def __init__(self, options: RelativePoseTraining):
        self._options = options
        self._encoder = load_encoder(options.data.encoder)
        torch.manual_seed(options.seed)
        self.model = self._net = KeypointPoseNet(options.size).to(options.device)
        self.weights = options.run / "relative_pose.safetensors"
        self._scenes, self._held_out = self._prepared(held_out=False), self._prepared(held_out=True)
        if not self._scenes:
            raise UserError(f"No scene is prepared in {options.folder}: prepare some first (--stage prepare).")

    def _prepared(self, *, held_out: bool) -> list[SceneKeypoints]:
        """Read the scenes that are prepared by now and have pairs."""
        files = self._options.data.files(self._options.folder, held_out=held_out)
        scenes = [SceneKeypoints.from_prepared(CrossImageScene.load(path), self._options.size.keypoints)
                  for path in files if path.exists()]
        return [scene for scene in scenes if len(scene.pairs)]

    def draw(self, iteration: int) -> PoseBatch:
        rng = np.random.default_rng((self._options.seed, iteration))
        progress = min(iteration / (CURRICULUM * self._options.iterations), 1.0)
        return draw_pairs(self._scenes, self._options.batch, progress, rng)

    def add_gradients(self, batch: PoseBatch) -> Statistics:
        with training_precision(self._options.device):
            found = self._predict(batch)
        rotation, direction = self._angles(found, batch)
        # The likelihood of the sum of both angles, so that the network says how far off it may be.
        loss = ((rotation + direction) * torch.exp(-found.log_sigma) + found.log_sigma).mean()
        loss.backward()
        return {"loss": loss.detach(), "rotation_deg": rotation.detach().mean() * 180.0 / math.pi,
                "direction_deg": direction.detach().mean() * 180.0 / math.pi}

    def learning_rate(self, done: int) -> float:
        return self._options.peak_rate * warmup_cosine(min(done / self._options.iterations, 1.0))

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Median errors in degrees on pairs of the held-out scenes, near and far."""
        if not self._held_out:
            return {}
        scores: dict[str, float] = {}
        self.model.eval()
        for name, progress in (("near", 0.0), ("far", 1.0)):
            batch = draw_pairs(self._held_out, HELD_OUT_PAIRS, progress, np.random.default_rng(self._options.seed))
            rotation, direction = (angle.rad2deg().median() for angle in self._angles(self._predict(batch), batch))
            scores |= {f"{name}_rotation_deg": float(rotation), f"{name}_direction_deg": float(direction)}
        self.model.train()
        return scores

    def export(self) -> None:
        save_keypoint_network(self._net, self._encoder.identity, self.weights)

    def _predict(self, batch: PoseBatch) -> PredictedPose:
        device = self._options.device
        first, second = (KeypointTokens(*(part.to(device) for part in image)) for image in (batch.first, batch.second))
        return self._net(first, second)

    def _angles(self, found: PredictedPose, batch: PoseBatch) -> tuple[Tensor, Tensor]:
        """Return the angles (B,), (B,) of rotation and direction from the truth, radians."""
        rotation, direction = batch.rotation.to(found.rotation.device), batch.direction.to(found.rotation.device)
        # Of the chord, whose derivative stays finite at zero, unlike that of the arc cosine.
        chord = (found.rotation - rotation).square().sum((1, 2)).add(1e-8).sqrt() / (2.0 * math.sqrt(2.0))
        between = (found.direction - direction).square().sum(1).add(1e-8).sqrt() / 2.0
        return 2.0 * torch.asin(chord.clamp(max=0.9999)), 2.0 * torch.asin(between.clamp(max=0.9999))
