# SPDX-License-Identifier: Apache-2.0
"""Trains the compact encoder: descriptors of one surface point in two images must be similar, those of different points
dissimilar."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from aceg_ros.encoders.base import load_encoder
from aceg_ros.encoders.compact import DIM, CompactNet
from aceg_ros.errors import UserError
from aceg_ros.networks.weights_file import write_weights
from aceg_ros.pretraining.common.loop import (
    LoopOptions,
    Statistics,
    TrainingTask,
    batches_ahead,
    never,
    run_training,
    warmup_cosine,
)
from aceg_ros.pretraining.common.run import lock_options
from aceg_ros.pretraining.encoder.augment import Sample, make_sample
from aceg_ros.pretraining.encoder.data import EncoderData, PairSources, prepare_sources
from aceg_ros.pretraining.encoder.losses import encoder_losses
from aceg_ros.pretraining.encoder.pairs import PairSource
from aceg_ros.utils.device import to_device

EVALUATION_BATCHES, EVALUATION_SEED = 12, 7
DRAWS_PER_SAMPLE = 20                  # attempts to draw a pair for a sample, since some pairs share too few points


@dataclass(frozen=True, kw_only=True)
class EncoderTraining:
    """Options of a run.

    pairs: image pairs per batch. points: matches per pair. width, height: of the crops, pixels. start: initial weights
    of an earlier run; None for random ones. without: losses to leave out, for ablations.
    """

    run: Path
    data: EncoderData
    iterations: int = 6000
    pairs: int = 8
    points: int = 256
    width: int = 320
    height: int = 256
    peak_rate: float = 2e-3
    seed: int = 0
    device: str = "cpu"
    start: Path | None = None
    checkpoint_every: int = 250
    without: tuple[str, ...] = ()

    def loop_options(self) -> LoopOptions:
        return LoopOptions(run=self.run, iterations=self.iterations, peak_rate=self.peak_rate, weight_decay=1e-3,
                           checkpoint_every=self.checkpoint_every, log_every=25, log_mean=1,
                           draw_ahead=batches_ahead(self.device), device=self.device)


def train(options: EncoderTraining, *, should_stop: Callable[[], bool] = never) -> Path:
    """Run or resume the training.

    Args:
        options: options of the run.
        should_stop: called before every step; if true, the run ends early and can be resumed.

    Returns:
        The file of the exported weights (fp16 safetensors).

    Raises:
        UserError: scenes, textures or weights cannot be read, or the run was started with other options.
    """
    options.data.check()
    torch.manual_seed(options.seed)
    net = to_device(CompactNet(), options.device)
    if options.start is not None:
        _load_weights(net, options.start)
    # A teacher is identified by its content, not by its file name.
    teacher = options.data.teacher and load_encoder(options.data.teacher, options.device).identity
    lock_options(options.run, replace(options, data=replace(options.data, teacher=teacher)))
    task = EncoderTask(net, options, prepare_sources(options.data, options.run))
    run_training(task, options.loop_options(), should_stop=should_stop)
    return task.result


class EncoderTask(TrainingTask[list[Sample]]):
    """Trains the encoder and, if there is a teacher, a linear map to its descriptors."""

    def __init__(self, net: CompactNet, options: EncoderTraining, sources: PairSources):
        self.result = options.run / "compact.safetensors"
        self._net, self._options, self._sources = net, options, sources
        self._student = nn.Linear(DIM, sources.teacher_dim, device=options.device) if sources.teacher_dim else None
        self.model = nn.ModuleDict({"net": net} if self._student is None else {"net": net, "student": self._student})

    def draw(self, iteration: int) -> list[Sample]:
        return _draw(self._sources.training, np.random.default_rng((self._options.seed, iteration)), self._options)

    def add_gradients(self, batch: list[Sample]) -> Statistics:
        self._net.train()
        losses = encoder_losses(self._net, batch, self._options.device, student=self._student,
                                without=self._options.without)
        losses.total.backward()
        return {"hit": losses.hit, **{name: term.detach() for name, term in losses.terms.items()}}

    def clipped_parameters(self) -> Iterable[nn.Parameter]:
        return self._net.parameters()

    def learning_rate(self, done: int) -> float:
        return self._options.peak_rate * warmup_cosine((done - 1) / self._options.iterations)

    def evaluate(self) -> dict[str, float]:
        return {"held_out_hit": evaluate(self._net, self._sources.held_out, self._options)}

    def export(self) -> None:
        export(self._net, self.result)


@torch.no_grad()
def evaluate(net: CompactNet, source: PairSource, options: EncoderTraining) -> float:
    """Compute the share of points of held-out rooms whose nearest descriptor is their match, over fixed samples."""
    net.eval()
    batches = (_draw([source], np.random.default_rng((EVALUATION_SEED, index)), options)
               for index in range(EVALUATION_BATCHES))
    return float(np.mean([encoder_losses(net, batch, options.device).hit.item() for batch in batches]))


def export(net: CompactNet, path: Path) -> None:
    """Write the weights in fp16 with the constants they were trained with."""
    state = {key: value.half() for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    write_weights(path, state, kind="compact", config=net.config)


def _load_weights(net: CompactNet, path: Path) -> None:
    try:
        missing, unexpected = net.load_state_dict(load_file(path), strict=False)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} does not hold weights of the compact encoder ({error}).") from None
    if unexpected or any(not key.endswith("num_batches_tracked") for key in missing):
        raise UserError(f"{path} does not hold weights of this version of the compact encoder.")


def _draw(sources: list[PairSource], rng: np.random.Generator, options: EncoderTraining) -> list[Sample]:
    """Draw one batch, from the sources in turn."""
    batch: list[Sample] = []
    for slot in range(options.pairs):
        source = sources[slot % len(sources)]
        for _ in range(DRAWS_PER_SAMPLE):
            sample = make_sample(source.sample(rng), rng, width=options.width, height=options.height,
                                 count=options.points)
            if sample is not None:
                batch.append(sample)
                break
    if not batch:
        raise UserError("No training pair with enough common points was found: give more scenes or rooms.")
    return batch
