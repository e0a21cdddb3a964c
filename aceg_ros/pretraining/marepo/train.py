# SPDX-License-Identifier: Apache-2.0
"""Trains the pose transformer (marepo, CVPR 2024, section 3.4) on scene coordinates of maps and on simulated ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from aceg_ros.errors import UserError
from aceg_ros.mapping.pose_tuning import PoseBatch, pose_losses
from aceg_ros.networks.pose_regressor import regress_pose, save_pose_regressor
from aceg_ros.networks.pose_transformer import PoseTransformer, PoseTransformerConfig
from aceg_ros.pretraining.common.distributed import join_process_group
from aceg_ros.pretraining.common.loop import (
    LoopOptions,
    Statistics,
    TrainingTask,
    batches_ahead,
    never,
    run_training,
    warmup_cosine,
)
from aceg_ros.pretraining.common.muon import MuonAdamW
from aceg_ros.pretraining.common.run import lock_options, write_arrays
from aceg_ros.pretraining.marepo.coordinates import CoordinateImages, load_coordinates
from aceg_ros.pretraining.marepo.samples import (
    Geometry,
    PoseSampler,
    SampleOptions,
    cast_geometry,
)

HELD_OUT_EVERY, EVALUATION_IMAGES, EVALUATION_BATCHES = 8, 120, 8
EVALUATION_SEED = 10**6
MUON_RATE_FACTOR = 10.0            # of the rate of AdamW
# Two CPU cores regress a pose with it twice within the time of an encoder; published sizes are the config's defaults.
SMALL = PoseTransformerConfig(width=64, heads=4, layers=6, group=2, rotation="9D", at_corner=False, masked_pool=True,
                              frame="image", translation_unit_m=10.0, passes=2, max_cells=2400)
PUBLISHED = PoseTransformerConfig(rotation="9D")


@dataclass(frozen=True, kw_only=True)
class PoseTraining:
    """Options of a run.

    data: folder of prepared coordinates. size: of the network. views: number of simulated geometries. near_share: share
    of samples whose frame has nearly the axes of the camera, as in later passes; of networks with frames of images.
    """

    run: Path
    data: Path
    iterations: int = 20_000
    peak_rate: float = 1e-3
    size: PoseTransformerConfig = SMALL
    samples: SampleOptions = field(default_factory=SampleOptions)
    views: int = 3000
    near_share: float = 0.5
    seed: int = 0
    device: str = "cpu"
    checkpoint_every: int = 500

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
    lock_options(options.run, options)
    task = PoseTask(options, load_coordinates(options.data))
    run_training(task, options.loop_options(), should_stop=should_stop)
    return task.result


class PoseTask(TrainingTask[PoseBatch]):
    """Trains the pose transformer; about every eighth scene is held out."""

    model: PoseTransformer

    def __init__(self, options: PoseTraining, scenes: dict[str, CoordinateImages]):
        torch.manual_seed(options.seed)
        self.options = options
        self.model = PoseTransformer(options.size).to(options.device)
        self.result = options.run / "marepo.safetensors"
        held_out = held_out_scenes(list(scenes))
        geometry = _cached_geometry(options)
        self._sampler = PoseSampler([each for name, each in scenes.items() if name not in held_out], geometry,
                                    options.samples)
        self._held_out = {name: scenes[name] for name in held_out}
        self._simulated = PoseSampler([], geometry, options.samples)

    def make_optimizer(self, options: LoopOptions) -> torch.optim.Optimizer:
        return MuonAdamW(self.parameter_groups(), options.peak_rate, options.weight_decay)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the matrices of the layers, for Muon, and the other parameters, for AdamW."""
        matrices = [value for name, value in self.model.named_parameters()
                    if value.ndim == 2 and name.startswith(("transformer", "res_conv", "more_mlps"))]
        chosen = {id(value) for value in matrices}
        others = [value for value in self.model.parameters() if id(value) not in chosen]
        return [{"params": matrices, "orthogonal": True, "rate_factor": MUON_RATE_FACTOR},
                {"params": others, "orthogonal": False}]

    def draw(self, iteration: int) -> PoseBatch:
        return self._sampler.draw((self.options.seed, iteration))

    def add_gradients(self, batch: PoseBatch) -> Statistics:
        on_device = PoseBatch(*(each.to(self.options.device) for each in batch))
        losses = pose_losses(self.model, on_device, self.options.near_share)
        losses.sum().backward()
        return {"loss": losses.detach().sum(), "last": losses[-1].detach()}

    def learning_rate(self, done: int) -> float:
        return self.options.peak_rate * warmup_cosine(done / self.options.iterations)

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        self.model.eval()
        degrees, extents = [], []
        for index in range(EVALUATION_BATCHES):
            batch = PoseBatch(*(each.to(self.options.device) for each in
                                self._simulated.draw((EVALUATION_SEED, index))))
            pose = regress_pose(self.model, batch.points, batch.rays, centre=batch.points.new_zeros(3))
            degrees.append(rotation_error_deg(pose.rotation, batch.rotation))
            extents.append(_relative_error(pose.translation, batch.translation, batch.points))
        found = {"simulated_deg": float(torch.cat(degrees).median()),
                 "simulated_extents": float(torch.cat(extents).median())}
        found |= {f"held_out_{key}": value for key, value in self._evaluate_held_out().items()}
        self.model.train()
        return found

    def _evaluate_held_out(self) -> dict[str, float]:
        """Compute median errors on images of the held-out scenes that their maps were not made from."""
        pool = [(scene, int(index)) for scene in self._held_out.values() for index in np.flatnonzero(~scene.mapped)]
        if not pool:
            return {}
        order = np.random.default_rng(0).permutation(len(pool))[:EVALUATION_IMAGES]
        degrees, extents = [], []
        for scene, index in (pool[number] for number in order):
            pose = regress_image(self.model, scene, index, self.options.device)
            truth = torch.from_numpy(scene.map_from_camera[index]).float()
            degrees.append(rotation_error_deg(pose[None, :3, :3], truth[None, :3, :3]))
            extents.append(_relative_error(pose[None, :3, 3], truth[None, :3, 3],
                                           torch.from_numpy(scene.points[index])[None]))
        deg, ext = torch.cat(degrees), torch.cat(extents)
        return {"deg": float(deg.median()), "extents": float(ext.median()),
                "within_5_deg": float((deg < 5).float().mean())}

    def export(self) -> None:
        save_pose_regressor(self.model, self.result)


def held_out_scenes(names: list[str]) -> set[str]:
    """Return the scenes to evaluate on, about every eighth, by a hash of the name: it does not depend on what other
    scenes there are. All maps of a scene are in or out together."""
    return {name for name in names if crc32(name.rsplit("_", 1)[0].encode()) % HELD_OUT_EVERY == 0}


@torch.inference_mode()
def regress_image(net: PoseTransformer, images: CoordinateImages, index: int, device: str = "cpu") -> Tensor:
    """Regress map_from_camera (4, 4) of one image from its trusted cells."""
    kept = images.trusted(index)
    points, rays = (torch.from_numpy(each[index][kept]).float()[None].to(device)
                    for each in (images.points, images.rays))
    centre = torch.from_numpy(images.map_from_camera[images.mapped][:, :3, 3].mean(0)).float().to(device)
    found = regress_pose(net, points, rays, centre=centre)
    pose = torch.eye(4)
    pose[:3, :3], pose[:3, 3] = found.rotation[0].cpu(), found.translation[0].cpu()
    return pose


def rotation_error_deg(found: Tensor, truth: Tensor) -> Tensor:
    """Compute the angles (B,) between rotations (B, 3, 3) in degrees."""
    cosine = ((found * truth).sum((1, 2)) - 1) / 2
    return torch.rad2deg(cosine.clamp(-1, 1).acos())


def _relative_error(found: Tensor, truth: Tensor, points: Tensor) -> Tensor:
    """Compute the distances (B,) of positions, as shares of the median extent of the points (B, N, 3)."""
    spread = (points - points.median(1, keepdim=True).values).norm(dim=-1).median(1).values
    return (found - truth).norm(dim=1) / spread.clamp(min=1e-6)


def _cached_geometry(options: PoseTraining) -> Geometry:
    """Return the simulated geometry of a run, cast once and kept beside the data."""
    path = options.data / "geometry" / f"{options.views}.npz"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        cast = cast_geometry(options.views, 0)
        write_arrays(path, {"depth": cast.depth.astype(np.float16), "focal": cast.focal})
    with np.load(path) as arrays:
        return Geometry(depth=arrays["depth"].astype(np.float32), focal=arrays["focal"])
