# SPDX-License-Identifier: Apache-2.0
"""Trains the pose transformer (marepo, CVPR 2024, section 3.4) on scene coordinates of maps and on simulated ones."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aceg_ros.errors import UserError
from aceg_ros.mapping.pose_tuning import POSE_WEIGHT, PoseBatch, pose_losses, weighing_losses
from aceg_ros.networks.pose_regressor import Net, regress_pose, save_pose_regressor
from aceg_ros.networks.pose_transformer import PoseTransformer, PoseTransformerConfig
from aceg_ros.networks.weighing_transformer import WeighingConfig, WeighingTransformer
from aceg_ros.pretraining.common.distributed import join_process_group
from aceg_ros.pretraining.common.loop import (
    LoopOptions,
    Statistics,
    TrainingTask,
    batches_ahead,
    never,
    run_training,
    split_parameters,
    warmup_cosine,
)
from aceg_ros.pretraining.common.muon import MuonAdamW
from aceg_ros.pretraining.common.run import lock_options, write_arrays
from aceg_ros.pretraining.marepo.coordinates import CoordinateImage, load_coordinates
from aceg_ros.pretraining.marepo.samples import Geometry, PoseSampler, SampleOptions, cast_geometry
from aceg_ros.utils.atomic_file import write_text

HELD_OUT_ROOMS, EVALUATION_IMAGES, EVALUATION_BATCHES = 4, 200, 8
EVALUATION_SEED = 10**6
MUON_RATE_FACTOR = 10.0            # of the rate of AdamW
AVERAGE_KEPT = 0.999               # of the moving average of the weights, a step
SMALL, PUBLISHED = WeighingConfig(), PoseTransformerConfig(rotation="9D")


@dataclass(frozen=True, kw_only=True)
class PoseTraining:
    """Options of a run.

    data: folder of prepared scenes (`coordinates`). held_out: names of recordings in it to evaluate on; the first
    HELD_OUT_ROOMS rooms are held out, too. size: of the network: ours, or one as published. minutes: the run ends after
    this time, all its parts together, and the rate falls accordingly; None for as long as it takes. views: number of
    simulated geometries. near_share: see `weighing_losses`.
    """

    run: Path
    data: Path
    held_out: tuple[str, ...] = ()
    iterations: int = 40_000
    minutes: float | None = None
    peak_rate: float = 1e-3
    size: WeighingConfig | PoseTransformerConfig = SMALL
    samples: SampleOptions = field(default_factory=SampleOptions)
    views: int = 3000
    near_share: float = 0.4
    seed: int = 0
    device: str = "cpu"
    checkpoint_every: int = 1000

    def loop_options(self) -> LoopOptions:
        return LoopOptions(run=self.run, iterations=self.iterations, peak_rate=self.peak_rate, weight_decay=0.01,
                           checkpoint_every=self.checkpoint_every, device=self.device,
                           draw_ahead=0 if self.device == "cpu" else batches_ahead(self.device))


def train(options: PoseTraining, should_stop: Callable[[], bool] = never) -> Path:
    """Run or resume the training.

    Args:
        options: options of the run.
        should_stop: called before every step; if true, the run ends early and can be resumed.

    Returns:
        The file of the exported weights.

    Raises:
        UserError: there are no coordinates, the run was started with other options, or there are several processes.
    """
    if join_process_group(options.device).world_size > 1:
        raise UserError("The pose transformer is trained in one process: start it without torchrun.")
    # How long a run lasts, and on what it is evaluated, are no part of what it is.
    lock_options(options.run, replace(options, iterations=0, minutes=None, held_out=()))
    task = PoseTask(options, load_coordinates(options.data))
    run_training(task, options.loop_options(), should_stop=lambda: task.time_share() >= 1.0 or should_stop())
    return task.result


class _Averaged(nn.Module):
    """A network, and the moving average of its weights, which is what is evaluated and exported."""

    def __init__(self, net: Net):
        super().__init__()
        self.net, self.average = net, copy.deepcopy(net).requires_grad_(False)
        self.register_buffer("steps", torch.zeros(()))
        self.steps: Tensor

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights of the last step to the average; of the first steps it is the mean."""
        self.steps += 1
        share = max(1 - AVERAGE_KEPT, 1 / float(self.steps))
        for average, value in zip(self.average.parameters(), self.net.parameters(), strict=True):
            average.lerp_(value, share)


class PoseTask(TrainingTask[PoseBatch]):
    """Trains a network of either kind."""

    model: _Averaged

    def __init__(self, options: PoseTraining, scenes: dict[str, list[CoordinateImage]]):
        torch.manual_seed(options.seed)
        self.options, self._started, self._earlier_s = options, time.monotonic(), 0.0
        size = options.size
        net: Net = WeighingTransformer(size) if isinstance(size, WeighingConfig) else PoseTransformer(size)
        self.model = _Averaged(net).to(options.device)
        self.result = options.run / "marepo.safetensors"
        geometry = _cached_geometry(options)
        held_out = {name for name in scenes if is_held_out(name, options.held_out)}
        self._sampler = PoseSampler([each for name, each in scenes.items() if name not in held_out], geometry,
                                    options.samples)
        self._held_out = {name: scenes[name] for name in sorted(held_out)}
        self._simulated = PoseSampler([], geometry, options.samples)

    def time_share(self) -> float:
        """Return the share of the run's time that is over, 0 if it has no limit."""
        minutes = self.options.minutes
        return 0.0 if minutes is None else self._elapsed_s() / (60 * minutes)

    def _elapsed_s(self) -> float:
        return self._earlier_s + time.monotonic() - self._started

    def save_state(self, done: int) -> None:
        write_text(self.options.run / "elapsed.json", json.dumps(self._elapsed_s()))

    def load_state(self, done: int) -> None:
        path = self.options.run / "elapsed.json"
        self._earlier_s = float(json.loads(path.read_text())) if done and path.exists() else 0.0

    def make_optimizer(self, options: LoopOptions) -> torch.optim.Optimizer:
        return MuonAdamW(self.parameter_groups(), options.peak_rate, options.weight_decay)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the matrices of the layers, for Muon, and the other parameters, for AdamW."""
        net = self.model.net
        matrices, others = split_parameters(net, lambda name, value: value.ndim == 2 and name.startswith(
            ("layers", "transformer", "res_conv", "more_mlps")))
        return [{"params": matrices, "orthogonal": True, "rate_factor": MUON_RATE_FACTOR},
                {"params": others, "orthogonal": False}]

    def draw(self, iteration: int) -> PoseBatch:
        return self._sampler.draw((self.options.seed, iteration))

    def add_gradients(self, batch: PoseBatch) -> Statistics:
        on_device, net = PoseBatch(*(each.to(self.options.device) for each in batch)), self.model.net
        self.model.update()
        if not isinstance(net, WeighingTransformer):
            losses = pose_losses(net, on_device)
            losses.sum().backward()
            return {"loss": losses.detach().sum(), "last": losses[-1].detach()}
        found = weighing_losses(net, on_device, self.options.near_share)
        (found["trust"] + POSE_WEIGHT * found["pose"]).backward()
        return {name: value.detach() for name, value in found.items()}

    def learning_rate(self, done: int) -> float:
        return self.options.peak_rate * warmup_cosine(min(max(done / self.options.iterations, self.time_share()), 1.0))

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        net = self.model.average
        net.eval()
        scores = []
        for index in range(EVALUATION_BATCHES):
            batch = PoseBatch(*(each.to(self.options.device) for each in
                                self._simulated.draw((EVALUATION_SEED, index))))
            scores.append(_errors(net, batch))
        found = {f"simulated_{key}": value for key, value in _summary(torch.cat(scores, 1)).items()}
        for kind in ("room", "scene"):
            images = [image for name, scene in self._held_out.items() if name.startswith(kind) for image in scene]
            for outliers in (0.0, 0.6) if images else ():
                errors = self._errors_on(images, outliers)
                found |= {f"{kind}_{outliers:.0%}_{key}": value for key, value in _summary(errors).items()}
        return found

    def _errors_on(self, images: Sequence[CoordinateImage], outliers: float) -> Tensor:
        """Return the errors (2, n) on held-out images, with this share of the points exchanged."""
        rng, found = np.random.default_rng(0), []
        for index in rng.permutation(len(images))[:EVALUATION_IMAGES]:
            image = images[index]
            wrong = rng.random(len(image.points)) < outliers
            points = np.where(wrong[:, None], image.points[rng.permutation(len(wrong))], image.points)
            pose, confidence = image.map_from_camera, image.confidence
            arrays = (points, image.rays, pose[:3, :3], pose[:3, 3], confidence, np.full_like(confidence, np.nan))
            batch = PoseBatch(*(torch.from_numpy(each).float()[None].to(self.options.device) for each in arrays))
            found.append(_errors(self.model.average, batch))
        return torch.cat(found, 1)

    def export(self) -> None:
        save_pose_regressor(self.model.average, self.result)


def is_held_out(name: str, recordings: Sequence[str]) -> bool:
    """Return whether a scene is one to evaluate on: one of these recordings, or one of the first rooms."""
    kind, name = name.split("_", 1)
    return name in recordings if kind == "scene" else int(name) < HELD_OUT_ROOMS


def _errors(net: Net, batch: PoseBatch) -> Tensor:
    """Return the errors (2, B) of the poses of a batch: degrees, and of positions as shares of the distance of the
    points."""
    pose = regress_pose(net, batch.points, batch.rays, centre=batch.translation.mean(0), confidence=batch.confidence)
    distance = (batch.points - batch.translation[:, None]).norm(dim=-1).median(1).values
    return torch.stack([rotation_error_deg(pose.rotation, batch.rotation),
                        (pose.translation - batch.translation).norm(dim=1) / distance.clamp(min=1e-9)])


def _summary(errors: Tensor) -> dict[str, float]:
    degrees, shares = errors
    return {"deg": float(degrees.median()), "depths": float(shares.median()),
            "within": float(((degrees < 5) & (shares < 0.1)).float().mean())}


def rotation_error_deg(found: Tensor, truth: Tensor) -> Tensor:
    """Compute the angles (B,) between rotations (B, 3, 3) in degrees."""
    cosine = ((found * truth).sum((1, 2)) - 1) / 2
    return torch.rad2deg(cosine.clamp(-1, 1).acos())


def _cached_geometry(options: PoseTraining) -> Geometry:
    """Return the simulated geometry of a run, cast once and kept beside the data."""
    path = options.data / "geometry" / f"{options.views}.npz"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        cast = cast_geometry(options.views, 0)
        write_arrays(path, {"depth": cast.depth.astype(np.float16), "focal": cast.focal})
    with np.load(path) as arrays:
        return Geometry(depth=arrays["depth"].astype(np.float32), focal=arrays["focal"])
