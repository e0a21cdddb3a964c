# SPDX-License-Identifier: Apache-2.0
"""ACE-G's query pre-training as published (Bruns et al., ICCV 2025, section 3.3): map codes are optimized from noise.

A pool of scenes is mapped at the same time, each from scratch under a random similarity transform. Mapping steps fit a
scene's code and the regressor to landmarks of the mapping session; query steps fit the regressor, with frozen code, to
patches of query images of a later session.

Differences from the publication: mapping fits triangulated landmarks, as a real mapping run does, not exact points of
rendered images; features have unit length; a code's learning rate follows this package's `one_cycle`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from aceg_ros.encoders.base import load_encoder
from aceg_ros.errors import UserError
from aceg_ros.networks.map_code_transformer import TransformerHead
from aceg_ros.networks.regressor import save_regressor
from aceg_ros.pretraining.ace_g.code_pool import CodePool
from aceg_ros.pretraining.ace_g.code_steps import CodeFit, MapCodeTraining, fit_code, training_step
from aceg_ros.pretraining.ace_g.scenes import SceneSplit, TrainingScene, prepare_scenes
from aceg_ros.pretraining.common.distributed import ProcessGroup, join_process_group
from aceg_ros.pretraining.common.loop import Statistics, TrainingTask, never, run_training, warmup_cosine
from aceg_ros.pretraining.common.run import lock_options
from aceg_ros.pretraining.common.scores import is_localized


def train(options: MapCodeTraining, *, scenes: SceneSplit | None = None,
          should_stop: Callable[[], bool] = never) -> Path:
    """Run or resume the training. With torchrun, every process has its own pool, and gradients are averaged.

    Args:
        options: options of the run.
        scenes: scenes to train on instead of those in options.data.
        should_stop: called before every step; if true, the run ends early and can be resumed.

    Returns:
        The file of the exported weights.

    Raises:
        UserError: scenes cannot be read, sizes do not fit, or the run was started with other options.
    """
    task = prepare(options, scenes)
    run_training(task, task.options.loop_options(), task.group, should_stop)
    return task.result


def prepare(options: MapCodeTraining, scenes: SceneSplit | None = None) -> MapCodeTask:
    """Check the options, join the other processes and make this one's task. Arguments and errors as in `train`."""
    if options.size.dim_emb % options.size.num_attention_heads:
        raise UserError(f"A width of {options.size.dim_emb} cannot be split among {options.size.num_attention_heads}"
                        " heads: give a multiple.")
    if options.checkpoint_every % options.step_every:
        raise UserError(f"Checkpoints every {options.checkpoint_every} iterations fall between two steps, of"
                        f" {options.step_every} iterations each: give a multiple.")
    group = join_process_group(options.device)
    if group.is_main:
        lock_options(options.run, options)
    options = replace(options, device=group.device(options.device),
                      data=replace(options.data, device=group.device(options.data.device)))
    return MapCodeTask(options, scenes or _prepare_scenes(options, group), group)


def _prepare_scenes(options: MapCodeTraining, group: ProcessGroup) -> SceneSplit:
    """Load the scenes. The main process prepares missing ones while the others wait."""
    if not group.is_main:
        group.barrier()
    scenes = prepare_scenes(options.data, options.run / "scenes")
    if group.is_main:
        group.barrier()
    return scenes


@dataclass(frozen=True, kw_only=True)
class CodeStep:
    """The data of one iteration: the code to fit, and the random numbers of its step."""

    fit: CodeFit
    rng: np.random.Generator
    dropout_seed: int


class MapCodeTask(TrainingTask[CodeStep]):
    """Trains the regressor together with the codes of a pool of scenes."""

    model: TransformerHead

    def __init__(self, options: MapCodeTraining, scenes: SceneSplit, group: ProcessGroup | None = None):
        torch.manual_seed(options.seed)
        self.model = TransformerHead(options.size).to(options.device)
        self.result = options.run / "ace_g.safetensors"
        self.options, self.group, self._held_out = options, group or ProcessGroup(), scenes.held_out
        self._pool = CodePool(scenes.training, options, self.group)

    def draw(self, iteration: int) -> CodeStep:
        rng = np.random.default_rng((self.options.seed, self.group.rank, iteration))
        return CodeStep(dropout_seed=int(rng.integers(2**62)), rng=rng, fit=self._pool.select(iteration))

    def add_gradients(self, batch: CodeStep) -> Statistics:
        torch.manual_seed(batch.dropout_seed)
        return training_step(self.model, batch.fit, batch.rng, self.options)

    def learning_rate(self, done: int) -> float:
        return self.options.peak_rate * warmup_cosine(done / self.options.iterations)

    def evaluate(self) -> dict[str, float]:
        return evaluate(self.model, self._held_out, self.options)

    def export(self) -> None:
        save_regressor(self.model, load_encoder(self.options.data.encoder).identity, self.result,
                       codes=self.options.codes)

    def save_state(self, done: int) -> None:
        self._pool.save(done)

    def load_state(self, done: int) -> None:
        self._pool.load(done)


def evaluate(net: TransformerHead, scenes: list[TrainingScene], options: MapCodeTraining) -> dict[str, float]:
    """Map held-out scenes with the regressor frozen, and compute the median error in metres and the share of query
    patches within 10 cm, and the share of query images within 10 cm and 5 degrees, by all and by confident patches."""
    rows = []
    for number, scene in enumerate(scenes):
        code = fit_code(net, scene, options, number)
        for index in map(scene.patches_of, range(scene.images)):
            view, truth = scene.view(index), scene.truth(index)
            with torch.inference_mode():
                predicted = net(scene.features[index].float(), code)
            error, confident = (predicted.coordinates - truth).norm(dim=1), net.select_confident(predicted.sigma)
            rows.append({"median_m": float(error.median()), "patches_10cm": float((error < 0.1).float().mean()),
                         "recall": is_localized(predicted.coordinates, view),
                         "confident_recall": is_localized(predicted.coordinates, view, confident)})
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}
