# SPDX-License-Identifier: Apache-2.0
"""Trains our regressor to predict the scene coordinates of query patches from the landmarks of a map.

This is ACE-G's query pre-training (Bruns et al., ICCV 2025, section 3.3) with landmarks as codes: every step draws
other landmarks of a scene as its map. ACE-G's random similarity transforms are not needed, because the network is
invariant to position, scale and orientation of the map by construction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aceg_ros.encoders.base import load_encoder
from aceg_ros.errors import UserError
from aceg_ros.mapping.losses import MAX_ERROR_PX, MIN_DEPTH_M, View, reproject
from aceg_ros.networks.landmark_regressor import LandmarkCode, LandmarkConfig, LandmarkRegressor, Mixture
from aceg_ros.networks.regressor import save_regressor
from aceg_ros.pretraining.ace_g.scenes import SceneSplit, TrainingScene, TrainingSceneData, prepare_scenes
from aceg_ros.pretraining.common.distributed import join_process_group
from aceg_ros.pretraining.common.loop import (
    LoopOptions,
    Statistics,
    TrainingTask,
    never,
    run_training,
    warmup_cosine,
)
from aceg_ros.pretraining.common.run import lock_options
from aceg_ros.pretraining.common.scores import is_localized
from aceg_ros.utils.device import training_precision

LANDMARKS_PER_STEP = (600, 10_000)                  # minimum and maximum number that a step draws of a scene
NO_MATCH_SPACINGS, NO_MATCH_PX = 30.0, 200.0        # extent of the no-match component, in spacings and in pixels
EVALUATION_LANDMARKS = 3000


@dataclass(frozen=True, kw_only=True)
class LandmarkTraining:
    """Options of a run.

    query_share: share of steps with patches of query images; the others take patches of mapping images, and leave
    out the landmarks of these images. feature_dropout: share of each feature that is set to zero.
    """

    run: Path
    data: TrainingSceneData
    iterations: int = 6000
    batch: int = 1024
    peak_rate: float = 1e-3
    query_share: float = 1.0
    feature_dropout: float = 0.0
    size: LandmarkConfig = field(default_factory=LandmarkConfig)
    seed: int = 0
    device: str = "cpu"
    checkpoint_every: int = 500

    def loop_options(self) -> LoopOptions:
        return LoopOptions(run=self.run, iterations=self.iterations, peak_rate=self.peak_rate, evaluate_first=True,
                           checkpoint_every=self.checkpoint_every, device=self.device)


def train(options: LandmarkTraining, *, scenes: SceneSplit | None = None,
          should_stop: Callable[[], bool] = never) -> Path:
    """Run or resume the training.

    Args:
        options: options of the run.
        scenes: scenes to train on instead of those in options.data.
        should_stop: called before every step; if true, the run ends early and can be resumed.

    Returns:
        The file of the exported weights.

    Raises:
        UserError: scenes cannot be read, the run was started with other options, or there are several processes.
    """
    if join_process_group(options.device).world_size > 1:
        raise UserError("Training on landmarks uses one process: start it without torchrun, or use --codes-from noise.")
    lock_options(options.run, options)
    task = LandmarkTask(options, scenes or prepare_scenes(options.data, options.run / "scenes"))
    run_training(task, options.loop_options(), should_stop=should_stop)
    return task.result


@dataclass(frozen=True, kw_only=True)
class PatchBatch:
    """Patches of one image, and the map that they are localized in.

    features (B, C) of unit length. truth (B, 3): their map points, NaN if unknown. view: their pixels and cameras, None
    if all points are known.
    """

    code: LandmarkCode
    features: Tensor
    truth: Tensor
    view: View | None


class LandmarkTask(TrainingTask[PatchBatch]):
    """Trains the regressor; a batch is from one scene."""

    model: LandmarkRegressor

    def __init__(self, options: LandmarkTraining, scenes: SceneSplit):
        torch.manual_seed(options.seed)
        self.model = LandmarkRegressor(options.size).to(options.device)
        self.result = options.run / "ace_g.safetensors"
        self._options, self._scenes = options, scenes

    def draw(self, iteration: int) -> PatchBatch:
        rng = np.random.default_rng((self._options.seed, iteration))
        scene = self._scenes.training[int(rng.integers(len(self._scenes.training)))]
        return draw_patches(scene, rng, self._options)

    def add_gradients(self, batch: PatchBatch) -> Statistics:
        loss = patch_loss(self.model, batch)
        loss.backward()
        return {"loss": loss.detach()}

    def learning_rate(self, done: int) -> float:
        return self._options.peak_rate * warmup_cosine((done - 1) / self._options.iterations)

    def evaluate(self) -> dict[str, float]:
        return evaluate(self.model, self._scenes.held_out)

    def export(self) -> None:
        save_regressor(self.model, load_encoder(self._options.data.encoder).identity, self.result)


def draw_patches(scene: TrainingScene, rng: np.random.Generator, options: LandmarkTraining) -> PatchBatch:
    """Draw landmarks of a scene, and patches of a query image, or of a mapping image whose landmarks are left out."""
    count = int(np.exp(rng.uniform(*np.log(LANDMARKS_PER_STEP))))
    order = torch.from_numpy(rng.permutation(len(scene.points))).to(scene.points.device)
    view: View | None = None
    if rng.random() < options.query_share:
        code = _landmark_code(scene, order[:count], options.size)
        patches = scene.patches_of(int(rng.integers(scene.images)))
        index = patches[torch.from_numpy(rng.permutation(len(patches))[:options.batch]).to(patches.device)]
        features, view, truth = scene.features[index].float(), scene.view(index), scene.truth(index)
    else:
        of_image = scene.source == scene.source[int(rng.integers(len(scene.source)))]
        code = _landmark_code(scene, order[~of_image[order]][:count], options.size)
        index = order[of_image[order]][:options.batch]
        features, truth = scene.keys[index].float(), scene.points[index]
    if options.feature_dropout:
        torch.manual_seed(int(rng.integers(2**62)))
        features = functional.normalize(functional.dropout(features, options.feature_dropout), dim=1)
    return PatchBatch(code=code, features=features, truth=truth, view=view)


def _landmark_code(scene: TrainingScene, index: Tensor, config: LandmarkConfig) -> LandmarkCode:
    return LandmarkCode(scene.keys[index], scene.points[index], config)


def patch_loss(net: LandmarkRegressor, batch: PatchBatch) -> Tensor:
    """Compute the mean loss of a batch, by map points if they are known, else by reprojection."""
    with training_precision(batch.features.device.type):
        predicted = net.mixture(batch.features, batch.code)
    known = torch.isfinite(batch.truth).all(1)
    truth = torch.where(known[:, None], batch.truth, 0.0)          # NaN must not reach a gradient
    distance, spacing = (predicted.points - truth[:, None]).norm(dim=2), batch.code.spacing
    loss = predicted.loss(distance / spacing, predicted.sigma / spacing, NO_MATCH_SPACINGS)
    if batch.view is not None and not bool(known.all()):
        distance_px, sigma_px = _in_pixels(predicted, batch.view)
        loss = torch.where(known, loss, predicted.loss(distance_px, sigma_px, NO_MATCH_PX))
    return loss.mean()


def _in_pixels(predicted: Mixture, view: View) -> tuple[Tensor, Tensor]:
    """Return the reprojection errors (B, k) of the candidates, and their sigmas, in pixels."""
    count = predicted.points.shape[1]
    repeated = View(camera_from_map=view.camera_from_map.repeat_interleave(count, 0),
                    intrinsics=view.intrinsics.repeat_interleave(count, 0),
                    pixels=view.pixels.repeat_interleave(count, 0))
    projected = reproject(predicted.points.flatten(0, 1), repeated)
    depth = projected.in_camera[:, 2].clamp(min=MIN_DEPTH_M).unflatten(0, (-1, count))
    error = torch.where(projected.valid, projected.error_px, MAX_ERROR_PX).unflatten(0, (-1, count))
    return error, (predicted.sigma * view.intrinsics[:, :1] / depth).clamp(min=1.0)


@torch.inference_mode()
def evaluate(net: LandmarkRegressor, scenes: list[TrainingScene],
             landmarks: int = EVALUATION_LANDMARKS) -> dict[str, float]:
    """Compute the median error in metres, the share of patches within 10 cm and of images within 10 cm and 5 degrees,
    for all and for confident patches; and the same shares with the nearest landmark as prediction."""
    rows = []
    for scene in scenes:
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(scene.points))).to(scene.points.device)
        code = _landmark_code(scene, order[:landmarks], net.config)
        for index in map(scene.patches_of, range(scene.images)):
            features, view, truth = scene.features[index].float(), scene.view(index), scene.truth(index)
            predicted = net(features, code)
            nearest = code.points[(features @ code.keys.T).argmax(1)]
            confident = net.select_confident(predicted.sigma)
            error, nearest_error = ((points - truth).norm(dim=1) for points in (predicted.coordinates, nearest))
            rows.append({"median_m": float(error.median()),
                         "patches_10cm": float((error < 0.1).float().mean()),
                         "confident_patches_10cm": float((error[confident] < 0.1).float().mean()),
                         "nearest_patches_10cm": float((nearest_error < 0.1).float().mean()),
                         "recall": is_localized(predicted.coordinates, view),
                         "confident_recall": is_localized(predicted.coordinates, view, confident),
                         "nearest_recall": is_localized(nearest, view)})
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}
