# SPDX-License-Identifier: Apache-2.0
"""Trains pose transformers: the losses of a batch, and fine-tuning on the mapping images of a scene (marepo, CVPR 2024,
section 3.5)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.losses import pose_loss
from aceg_ros.networks.coordinate_frames import CoordinateFrame
from aceg_ros.networks.pose_regressor import frame_of
from aceg_ros.networks.pose_transformer import PoseTransformer
from aceg_ros.utils.device import training_precision

NEAR_RAD = (0.005, 0.5)            # errors of the axes of later passes


class PoseBatch(NamedTuple):
    """Tokens of B images: points (B, N, 3) in the map, rays (B, N, 2); rotation (B, 3, 3) and translation (B, 3) of the
    camera in the map."""

    points: Tensor
    rays: Tensor
    rotation: Tensor
    translation: Tensor


@dataclass(frozen=True, kw_only=True)
class TuningOptions:
    """Options of fine-tuning.

    epochs: passes over the images. repeats: augmented versions of an image in each. batch, tokens: images of a step,
    and cells of each. rate: peak learning rate of AdamW. near_share: see `pose_losses`. roll_rad: largest roll.
    outliers: largest share of cells whose points are exchanged, since maps know their mapping images better than
    others.
    """

    epochs: int = 2
    repeats: int = 8
    batch: int = 8
    tokens: int = 256
    rate: float = 2e-4
    near_share: float = 0.5
    roll_rad: float = math.radians(15)
    outliers: float = 0.5
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TokenImage:
    """The trusted cells of a mapping image: points (N, 3) in the map, rays (N, 2); map_from_camera (4, 4)."""

    points: np.ndarray
    rays: np.ndarray
    map_from_camera: np.ndarray


def tune_pose_regressor(net: PoseTransformer, images: Sequence[TokenImage], options: TuningOptions,
                        budget: MappingBudget) -> tuple[PoseTransformer, int]:
    """Train a copy of a network on the images of a scene, within the budget.

    Returns:
        The trained copy, and the number of steps.
    """
    tuned = copy.deepcopy(net).train().requires_grad_(True)
    device = str(next(tuned.parameters()).device)
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=options.rate)
    rng, generator = np.random.default_rng(options.seed), torch.Generator().manual_seed(options.seed)
    centre = torch.from_numpy(np.mean([each.map_from_camera[:3, 3] for each in images], 0)).float().to(device)
    order = np.concatenate([rng.permutation(np.repeat(np.arange(len(images)), options.repeats))
                            for _ in range(options.epochs)])
    steps = -(-len(order) // options.batch)
    for step in range(steps):
        if budget.should_stop() or budget.remaining_s() <= 0:
            return tuned.eval().requires_grad_(False), step
        chosen = [images[index] for index in order[step * options.batch:(step + 1) * options.batch]]
        batch = _tuning_batch(chosen, options, rng, generator)
        for group in optimizer.param_groups:
            group["lr"] = options.rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        losses = pose_losses(tuned, PoseBatch(*(each.to(device) for each in batch)), options.near_share, centre)
        optimizer.zero_grad()
        losses.sum().backward()
        torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
        optimizer.step()
        budget.report((step + 1) / steps)
    return tuned.eval().requires_grad_(False), steps


def _tuning_batch(images: Sequence[TokenImage], options: TuningOptions, rng: np.random.Generator,
                  generator: torch.Generator) -> PoseBatch:
    """Draw the cells of images, some of them with the points of others, and roll the images."""
    columns = []
    for image in images:
        kept = rng.choice(len(image.points), options.tokens, replace=len(image.points) < options.tokens)
        wrong = rng.random(options.tokens) < rng.uniform(0, options.outliers)
        points = np.where(wrong[:, None], image.points[rng.permutation(kept)], image.points[kept])
        rotation, translation = image.map_from_camera[:3, :3], image.map_from_camera[:3, 3]
        columns.append((points, image.rays[kept], rotation, translation))
    batch = PoseBatch(*(torch.from_numpy(np.stack(column)).float() for column in zip(*columns, strict=True)))
    turn = random_rolls(len(images), options.roll_rad, generator)            # of the camera; the map stays as it is
    return PoseBatch(batch.points, batch.rays @ turn[:, :2, :2], batch.rotation @ turn, batch.translation)


def pose_losses(net: PoseTransformer, batch: PoseBatch, near_share: float, centre: Tensor | None = None) -> Tensor:
    """Compute the losses of a batch after each group of layers.

    Args:
        net: the network.
        batch: on the device of the network.
        near_share: share of samples whose frame has nearly the axes of the camera, as in later passes; of networks with
            frames of images.
        centre: (3,) mean camera centre of the map; None: the origin.
    """
    config = net.config
    centre = torch.zeros(3, device=batch.points.device) if centre is None else centre
    frame = frame_of(config, batch.points, batch.rays, None, centre=centre)
    if config.frame == "image":
        frame = _with_near_axes(frame, batch.rotation, near_share)
    in_frame, target = frame.to_frame(batch.points), frame.pose_to_frame(batch.rotation, batch.translation)
    with training_precision(batch.points.device.type):
        poses = net(in_frame, batch.rays)
    return torch.stack([pose_loss(pose, *target, unit_m=config.translation_unit_m) for pose in poses])


def _with_near_axes(frame: CoordinateFrame, rotation: Tensor, share: float) -> CoordinateFrame:
    """Give this share of the frames axes near those of the camera, as a first pass finds them."""
    count = len(rotation)
    generator = torch.Generator().manual_seed(int(rotation.flatten()[0].abs() * 1e6))
    low, high = NEAR_RAD
    size = low * (high / low) ** torch.rand((count, 1, 1), generator=generator)
    turn = random_rotations(count, 1.0, generator)
    skew = (turn - turn.transpose(1, 2)) / 2
    skew = skew / skew.norm(dim=(1, 2), keepdim=True).clamp(min=1e-9) * 2**0.5
    near = rotation @ torch.linalg.matrix_exp(size * skew).to(rotation.device)
    chosen = (torch.rand(count, generator=generator) < share).to(rotation.device)
    return CoordinateFrame(rotation=torch.where(chosen[:, None, None], near, frame.rotation), centre=frame.centre,
                           unit_m=frame.unit_m)


def random_rolls(count: int, limit_rad: float, generator: torch.Generator) -> Tensor:
    """Draw rotations (count, 3, 3) about the optical axis, by up to limit_rad: from the turned camera to the camera."""
    angle = limit_rad * (2 * torch.rand(count, generator=generator) - 1)
    zero = torch.zeros_like(angle)
    return torch.linalg.matrix_exp(torch.stack([zero, -angle, zero, angle, zero, zero, zero, zero, zero], 1)
                                   .unflatten(1, (3, 3)))


def random_rotations(count: int, limit_rad: float, generator: torch.Generator) -> Tensor:
    """Draw rotations (count, 3, 3) about random axes, by up to limit_rad."""
    axis = functional.normalize(torch.randn((count, 3), generator=generator), dim=1)
    vector = axis * limit_rad * torch.rand((count, 1), generator=generator)
    x, y, z = vector.T
    zero = torch.zeros_like(x)
    return torch.linalg.matrix_exp(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).unflatten(1, (3, 3)))
