# SPDX-License-Identifier: Apache-2.0
"""Trains the cross-image regressor of method sacreg, with the published loss (Revaud et al., CVPRW 2024)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aceg_ros.encoders.base import load_encoder
from aceg_ros.errors import UserError
from aceg_ros.networks.coordinate_encoding import coordinate_loss
from aceg_ros.networks.cross_image_fusion import load_cross_image, save_cross_image
from aceg_ros.networks.cross_image_regressor import CrossImageConfig, CrossImageRegressor, KeyframeTokens
from aceg_ros.pretraining.common.loop import (
    LoopOptions,
    Statistics,
    TrainingTask,
    never,
    run_training,
    split_parameters,
    warmup_cosine,
)
from aceg_ros.pretraining.common.run import lock_options
from aceg_ros.pretraining.sacreg.samples import CrossImageSample, SampleSize, draw_sample
from aceg_ros.pretraining.sacreg.scenes import MIN_LANDMARKS, CrossImageData, CrossImageScene
from aceg_ros.pretraining.sacreg.scores import evaluate
from aceg_ros.utils.device import training_precision

DRAWS = 20                          # that may be of no use before a scene is given up
PRIOR_RATE = 0.3                    # of the learning rate, for the projections that start as the identity
PRIOR_LAYERS = ("embed.", ".query.weight", ".key.weight")


@dataclass(frozen=True, kw_only=True)
class CrossImageTraining:
    """Options of a run. folder: of the prepared data. samples: whose gradients are accumulated for a step. start: file
    or name of weights to start from, such as of another encoder; None: a matcher."""

    run: Path
    folder: Path
    data: CrossImageData
    iterations: int = 4500
    samples: int = 1
    peak_rate: float = 7e-4
    start: str | None = None
    sample_size: SampleSize = field(default_factory=SampleSize)
    network: CrossImageConfig = field(default_factory=CrossImageConfig)
    seed: int = 0
    device: str = "cpu"
    checkpoint_every: int = 500

    def loop_options(self) -> LoopOptions:
        return LoopOptions(run=self.run, iterations=self.iterations, peak_rate=self.peak_rate, weight_decay=0.0,
                           step_every=self.samples, evaluate_first=True, checkpoint_every=self.checkpoint_every,
                           device=self.device)


def train(options: CrossImageTraining, should_stop: Callable[[], bool] = never) -> Path:
    """Run or resume the training on the scenes that are prepared by now; a resumed run also uses later ones.

    Returns:
        The file of the exported weights.

    Raises:
        UserError: no scene is prepared, or the run was started with other options.
    """
    lock_options(options.run, options)
    task = CrossImageTask(options)
    run_training(task, options.loop_options(), should_stop=should_stop)
    return task.result


class CrossImageTask(TrainingTask[CrossImageSample]):
    """Trains the network; a batch is a few query images with the same keyframes."""

    model: CrossImageRegressor

    def __init__(self, options: CrossImageTraining):
        torch.manual_seed(options.seed)
        self.model = CrossImageRegressor(options.network)
        if options.start is not None:
            self.model.load_state_dict(_initial_weights(options.start, options.network))
        self.model.to(options.device)
        self.result = options.run / "sacreg.safetensors"
        self._options = options
        self._training = _load(options, held_out=False)
        self._held_out = _load(options, held_out=True)
        if not self._training:
            raise UserError(f"No training scene is prepared in {options.folder}: prepare some first.")

    def draw(self, iteration: int) -> CrossImageSample:
        rng = np.random.default_rng((self._options.seed, iteration))
        for _ in range(DRAWS):
            scene = self._training[int(rng.integers(len(self._training)))]
            sample = draw_sample(scene, rng, self._options.sample_size, self._options.network)
            if sample is not None:
                return sample
        raise UserError(f"{DRAWS} draws gave no sample: the prepared scenes have too few landmarks.")

    def add_gradients(self, batch: CrossImageSample) -> Statistics:
        loss, error = sample_loss(self.model, batch, self._options.device)
        (loss / self._options.samples).backward()
        return {"loss": loss.detach(), "error": error.detach()}

    def learning_rate(self, done: int) -> float:
        return self._options.peak_rate * warmup_cosine((done - 1) / self._options.iterations)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The projections that start as the identity are what makes a new network a matcher: they change slowly."""
        prior, others = split_parameters(self.model, lambda name, _: any(part in name for part in PRIOR_LAYERS)
                                         and "itself" not in name and "mixer" not in name)
        return [{"params": others}, {"params": prior, "rate_factor": PRIOR_RATE}]

    def evaluate(self) -> dict[str, float]:
        self.model.eval()
        scores = evaluate(self.model, self._held_out, self._options.device)
        self.model.train()
        return scores

    def export(self) -> None:
        save_cross_image(self.model, load_encoder(self._options.data.encoder).identity, self.result)


def _initial_weights(source: str, network: CrossImageConfig) -> dict[str, Tensor]:
    """Load the weights to start from. Raises UserError if they are of another configuration."""
    weights = load_cross_image(source)
    if weights.net.config != network:
        raise UserError(f"The weights '{source}' are of a network of other sizes: start without them (no --start).")
    return dict(weights.net.state_dict())


def _load(options: CrossImageTraining, held_out: bool) -> list[CrossImageScene]:
    """Load the scenes that are prepared and have enough landmarks."""
    files = [path for path in options.data.files(options.folder, held_out) if path.exists()]
    return [scene for scene in map(CrossImageScene.load, files) if len(scene.points) >= MIN_LANDMARKS]


def sample_loss(net: CrossImageRegressor, sample: CrossImageSample, device: str) -> tuple[Tensor, Tensor]:
    """Compute the mean loss of the keypoints whose points are known, and their mean L1 error of the encoding."""
    points, valid = sample.points.to(device), sample.valid.to(device)
    losses, errors = [], []
    with training_precision(device):
        tokens = net.mix(sample.descriptors.to(device), sample.positions.to(device), points, valid)
        keyframes = KeyframeTokens(tokens[None], points[None], valid[None])
        for query in sample.queries:
            found = net(query.descriptors.to(device), query.positions.to(device), keyframes)
            known = torch.isfinite(query.truth).all(1).to(device)
            confidence = found.confidence[0, known]
            error = coordinate_loss(found.encoding[0, known], torch.ones_like(confidence),
                                    query.truth.to(device)[known])
            losses.append(confidence * error - confidence.log())
            errors.append(error)
    return torch.cat(losses).mean(), torch.cat(errors).mean()
