"""Trains the keypoint encoder `compact2` on prepared chunks of real images and on rendered rooms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from aceg_ros.encoders.compact import DIM
from aceg_ros.encoders.compact2 import Compact2Net, start_from_compact
from aceg_ros.errors import UserError
from aceg_ros.networks.weights_file import find_weights, read_weights, write_weights
from aceg_ros.pretraining.common.loop import (
    LoopOptions,
    Statistics,
    TrainingTask,
    batches_ahead,
    never,
    run_training,
)
from aceg_ros.pretraining.common.run import lock_options
from aceg_ros.pretraining.encoder.keypoint_data import CHUNKS, ROOMS
from aceg_ros.pretraining.encoder.keypoint_losses import keypoint_losses
from aceg_ros.pretraining.encoder.keypoint_samples import (
    ChunkFiles,
    CropSize,
    KeypointSample,
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

KIND = "compact2"
TEACHER_DIM = 128
HELD_OUT_ROOMS, PAIRS_PER_ROOM = 12, 2
PAIRS_PER_SCENE, SCENE_GAP = 6, 4
DRAWS_PER_SAMPLE = 20
REFRESH_EVERY = 50                       # iterations between looks for new chunks
AVERAGE = 0.998                          # of the weights, over iterations
NEW_LAYERS_FACTOR = 3.0                  # of the learning rate
WARMUP, DECAY_SHARE = 150, 0.6           # iterations; share of all at the end in which the rate falls


@dataclass(frozen=True, kw_only=True)
class KeypointTraining:
    """Options of a run.

    data: folder of prepared data (`keypoint_data`); the first 12 rooms are held out. held_out: posed scenes to evaluate
    on, none of which is in the data. iterations: may be changed when a run is resumed; the learning rate falls over
    the last 60 %. pairs: per batch. points: matches per pair. width, height: of
    the crops, pixels. start: weights to begin with, of `compact` or of this network; None for random ones.
    """

    run: Path
    data: Path
    held_out: tuple[Path, ...] = ()
    iterations: int = 4000
    pairs: int = 8
    points: int = 256
    width: int = 320
    height: int = 256
    peak_rate: float = 8e-4
    seed: int = 0
    device: str = "cpu"
    start: str | None = "compact"
    checkpoint_every: int = 200

    def loop_options(self) -> LoopOptions:
        return LoopOptions(run=self.run, iterations=self.iterations, peak_rate=self.peak_rate, weight_decay=1e-3,
                           checkpoint_every=self.checkpoint_every, log_every=25, log_mean=25, evaluate_first=True,
                           draw_ahead=0 if self.device == "cpu" else batches_ahead(self.device), device=self.device)


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
    torch.manual_seed(options.seed)
    net = Compact2Net()
    if options.start is not None:
        load_start(net, options.start)
    # How long a run lasts, and on how many images it is evaluated, are no part of what it is.
    lock_options(options.run, replace(options, iterations=0, held_out=()))
    task = KeypointTask(to_device(net, options.device), options)
    run_training(task, options.loop_options(), should_stop=should_stop)
    return task.result


def load_start(net: Compact2Net, source: str) -> None:
    """Load weights to begin with: a name or path of weights of `compact` or of this network.

    Raises:
        UserError: there are no such weights.
    """
    found = find_weights(source)
    if found is None:
        raise UserError(f"There are no weights '{source}'.")
    weights = read_weights(found[0], "encoder")
    state = {key: value.float() for key, value in weights.tensors.items()}
    try:
        if weights.kind == KIND:
            counters = {key: value for key, value in net.state_dict().items() if key.endswith("num_batches_tracked")}
            net.load_state_dict(state | counters)
        else:
            start_from_compact(net, state)
    except RuntimeError as error:
        raise UserError(f"{source} does not hold weights to begin with ({error}).") from None


class KeypointTask(TrainingTask[list[KeypointSample]]):
    """Trains the network, and a linear map from its descriptors to the teacher's. The moving average of its weights is
    what is evaluated and exported."""

    def __init__(self, net: Compact2Net, options: KeypointTraining) -> None:
        self.result = options.run / f"{KIND}.safetensors"
        self._net, self._options = net, options
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

    def draw(self, iteration: int) -> list[KeypointSample]:
        if iteration % REFRESH_EVERY == 0:
            self._files.refresh()
        rng = np.random.default_rng((self._options.seed, iteration))
        batch = []
        for slot in range(self._options.pairs):
            for _ in range(DRAWS_PER_SAMPLE):
                sample = self._sources[slot % len(self._sources)].draw(rng, self._size)
                if sample is not None:
                    batch.append(sample)
                    break
        if not batch:
            raise UserError("No training pair with enough common points was found: prepare more images.")
        return batch

    def add_gradients(self, batch: list[KeypointSample]) -> Statistics:
        self._update_average()
        self._net.train()
        rng = np.random.default_rng(int(batch[0].images[0, 0].astype(int).sum()))
        losses = keypoint_losses(self._net, batch, rng, device=self._options.device, student=self._student,
                                 points=self._options.points)
        losses.total.backward()
        return {name: value.detach() for name, value in (losses.terms | losses.statistics).items()}

    @torch.no_grad()
    def _update_average(self) -> None:
        new = self._net.state_dict()
        for name, value in self._average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(new[name], 1.0 - AVERAGE)

    def clipped_parameters(self) -> Iterable[nn.Parameter]:
        return self._net.parameters()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The layers that `compact` does not have begin at random, and learn faster."""
        new = [*self._net.fine.parameters(), *self._net.refine_fine.parameters(), *self._net.peaks.parameters()]
        known = {id(parameter) for parameter in new}
        old = [parameter for parameter in self.model.parameters()
               if parameter.requires_grad and id(parameter) not in known]
        return [{"params": old}, {"params": new, "rate_factor": NEW_LAYERS_FACTOR}]

    def learning_rate(self, done: int) -> float:
        left = (self._options.iterations - done) / (DECAY_SHARE * self._options.iterations)
        return self._options.peak_rate * min(1.0, done / WARMUP, max(left, 0.01))

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
