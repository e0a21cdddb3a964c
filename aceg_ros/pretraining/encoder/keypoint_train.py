# SPDX-License-Identifier: Apache-2.0
"""Trains the keypoint encoder `compact3` on prepared chunks of real images and on rendered rooms."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from aceg_ros.encoders.compact import DIM
from aceg_ros.encoders.compact3 import Compact3Net
from aceg_ros.errors import UserError
from aceg_ros.networks.weights_file import find_weights, load_without_counters, read_weights, write_weights
from aceg_ros.pretraining.common.loop import (
    LoopOptions,
    Statistics,
    TrainingTask,
    never,
    run_training,
)
from aceg_ros.pretraining.common.run import lock_options
from aceg_ros.pretraining.encoder.keypoint_batch import TEACHER_DIM, KeypointBatch, collate
from aceg_ros.pretraining.encoder.keypoint_data import CHUNKS, ROOMS
from aceg_ros.pretraining.encoder.keypoint_losses import keypoint_losses
from aceg_ros.pretraining.encoder.keypoint_samples import (
    ChunkFiles,
    CropSize,
    MatchedImages,
    RenderedRooms,
    SampleSource,
    WarpedImages,
)
from aceg_ros.pretraining.encoder.keypoint_scores import (
    ExactPair,
    PosedPair,
    exact_scores,
    posed_pairs,
    posed_scores,
    room_pairs,
)
from aceg_ros.pretraining.encoder.rendered_pairs import RoomViews
from aceg_ros.utils.device import to_device

KIND = "compact3"
HELD_OUT_ROOMS, PAIRS_PER_ROOM = 12, 2
PAIRS_PER_SCENE, SCENE_GAP = 6, 4
DRAWS_PER_SAMPLE = 20
REFRESH_EVERY = 50                       # iterations between looks for new chunks, where batches are drawn here
AVERAGE = 0.998                          # of the weights, over iterations
WARMUP, DECAY_SHARE = 300, 0.7           # iterations; share of all at the end in which the rate falls


@dataclass(frozen=True, kw_only=True)
class KeypointTraining:
    """Options of a run.

    data: folder of prepared data (`keypoint_data`); the first 12 rooms are held out. held_out: posed scenes to evaluate
    on, none of which is in the data. iterations: may be changed when a run is resumed; the learning rate falls over
    the last 70 %. minutes: the run ends after this time, and the rate falls accordingly; None for as long as it takes.
    only_keypoints: train the layers that place keypoints alone. pairs: per batch. points: matches per pair. width,
    height: of the crops, pixels. start: weights to begin with; None for random ones.
    """

    run: Path
    data: Path
    held_out: tuple[Path, ...] = ()
    iterations: int = 4000
    minutes: float | None = None
    only_keypoints: bool = False
    pairs: int = 8
    points: int = 256
    width: int = 320
    height: int = 256
    peak_rate: float = 1.5e-3
    seed: int = 0
    device: str = "cpu"
    start: str | None = None
    checkpoint_every: int = 200

    def loop_options(self) -> LoopOptions:
        on_cpu = self.device == "cpu"
        return LoopOptions(run=self.run, iterations=self.iterations, peak_rate=self.peak_rate, weight_decay=1e-3,
                           checkpoint_every=self.checkpoint_every, log_every=25 if on_cpu else 100, log_mean=25,
                           evaluate_first=True, processes=0 if on_cpu else max(1, (os.cpu_count() or 2) - 2),
                           device=self.device)


def train(options: KeypointTraining, *, should_stop: Callable[[], bool] = never) -> Path:
    """Run or resume the training.

    Args:
        options: options of the run.
        should_stop: called before every step; if true, the run ends early and can be resumed.

    Returns:
        The file of the exported weights (fp16 safetensors).

    Raises:
        UserError: data or weights cannot be read, or the run was started with other options.
    """
    cv2.setNumThreads(1)
    torch.manual_seed(options.seed)
    torch.backends.cudnn.benchmark = True
    net = Compact3Net()
    if options.start is not None:
        load_start(net, options.start)
    # How long a run lasts, and on how many images it is evaluated, are no part of what it is.
    lock_options(options.run, replace(options, iterations=0, minutes=None, held_out=()))
    task = KeypointTask(to_device(net, options.device), options)
    run_training(task, options.loop_options(), should_stop=lambda: task.time_share() >= 1.0 or should_stop())
    return task.result


def load_start(net: Compact3Net, source: str) -> None:
    """Load weights to begin with: a name or path.

    Raises:
        UserError: there are no such weights.
    """
    found = find_weights(source)
    if found is None:
        raise UserError(f"There are no weights '{source}'.")
    state = {key: value.float() for key, value in read_weights(found[0], "encoder").tensors.items()}
    try:
        load_without_counters(net, state)
    except RuntimeError as error:
        raise UserError(f"{source} does not hold weights to begin with ({error}).") from None


class KeypointTask(TrainingTask[KeypointBatch]):
    """Trains the network, and a linear map from its descriptors to the teacher's. The moving average of its weights is
    what is evaluated and exported."""

    def __init__(self, net: Compact3Net, options: KeypointTraining) -> None:
        self.result = options.run / f"{KIND}.safetensors"
        self._net, self._options, self._started = net, options, time.monotonic()
        self._trained: list[nn.Module] = net.keypoint_layers() if options.only_keypoints else [net]
        net.requires_grad_(False)
        net.rate_peak.requires_grad_(True)
        for layer in self._trained:
            layer.requires_grad_(True)
        self._average = deepcopy(net).requires_grad_(False).eval()
        self._student = nn.Linear(DIM, TEACHER_DIM, device=options.device)
        self.model = nn.ModuleDict({"net": net, "student": self._student, "average": self._average})
        self._size = CropSize(width=options.width, height=options.height)
        self._files = ChunkFiles(options.data / CHUNKS)
        paths = sorted((options.data / ROOMS).glob("*.npz"))
        rooms = [RoomViews.load(path) for path in paths]
        if len(self._files) == 0 or len(rooms) <= HELD_OUT_ROOMS:
            raise UserError(f"{options.data} has no prepared images or not enough rooms: prepare them first.")
        self._rooms = room_pairs(rooms[:HELD_OUT_ROOMS], PAIRS_PER_ROOM)
        self._posed = [pair for path in options.held_out for pair in posed_pairs(path, PAIRS_PER_SCENE, SCENE_GAP)]
        warps, matches = WarpedImages(self._files), MatchedImages(self._files)
        rendered = RenderedRooms(rooms[HELD_OUT_ROOMS:], [path.stem for path in paths[HELD_OUT_ROOMS:]])
        self._sources: list[SampleSource] = [matches, warps, matches, rendered]

    def draw(self, iteration: int) -> KeypointBatch:
        if iteration % REFRESH_EVERY == 0 and self._options.device == "cpu":
            self._files.refresh()
        rng = np.random.default_rng((self._options.seed, iteration))
        samples = []
        for slot in range(self._options.pairs):
            for _ in range(DRAWS_PER_SAMPLE):
                sample = self._sources[slot % len(self._sources)].draw(rng, self._size)
                if sample is not None:
                    samples.append(sample)
                    break
        if not samples:
            raise UserError("No training pair with enough common points was found: prepare more images.")
        return collate(samples, rng, self._options.points)

    def add_gradients(self, batch: KeypointBatch) -> Statistics:
        self._update_average()
        self._net.eval()
        for layer in self._trained:
            layer.train()
        losses = keypoint_losses(self._net, batch.to(self._options.device), self._student)
        losses.total.backward()
        return {name: value.detach() for name, value in (losses.terms | losses.statistics).items()}

    @torch.no_grad()
    def _update_average(self) -> None:
        new = self._net.state_dict()
        pairs = [(value, new[name]) for name, value in self._average.state_dict().items() if value.is_floating_point()]
        torch._foreach_lerp_([old for old, _ in pairs], [value for _, value in pairs], 1.0 - AVERAGE)

    def clipped_parameters(self) -> Iterable[nn.Parameter]:
        return self._net.parameters()

    def time_share(self) -> float:
        """Return the share of the run's time that is over, 0 if it has no limit."""
        minutes = self._options.minutes
        return 0.0 if minutes is None else (time.monotonic() - self._started) / (60 * minutes)

    def learning_rate(self, done: int) -> float:
        over = max(done / self._options.iterations, self.time_share())
        return self._options.peak_rate * min(1.0, done / WARMUP, max((1.0 - over) / DECAY_SHARE, 0.01))

    def evaluate(self) -> dict[str, float]:
        return score(self._average, self._rooms, self._posed, self._options.device)

    def export(self) -> None:
        state = {key: value.half() for key, value in self._average.state_dict().items()
                 if not key.endswith("num_batches_tracked")}
        write_weights(self.result, state, kind=KIND, config=self._net.config)


def score(extract: Callable, rooms: list[ExactPair], posed: list[PosedPair], device: str) -> dict[str, float]:
    """Score an encoder on held-out rooms and held-out posed scenes."""
    scores = {f"rooms_{name}": value for name, value in exact_scores(extract, rooms, device).items()}
    if posed:
        scores |= {f"real_{name}": value for name, value in posed_scores(extract, posed, device).items()}
    return scores
