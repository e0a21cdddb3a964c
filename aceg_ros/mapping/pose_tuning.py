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
from aceg_ros.networks.pose_regressor import Net
from aceg_ros.networks.pose_transformer import PoseTransformer
from aceg_ros.networks.rotations import rotation_from_vector
from aceg_ros.networks.weighing_transformer import (
    CameraPose,
    WeighingTransformer,
    ranked,
    start_pose,
    weighted_pose,
)
from aceg_ros.utils.device import training_precision

NEAR_RAD = (0.003, 0.5)            # errors of the poses that later passes start from
RIGHT, WRONG = 10 / 525, 20 / 525  # errors of the direction of a token that is right, or wrong
POSE_WEIGHT = 0.1                  # of the loss of the pose, beside that of the weights
MIN_RIGHT_SHARE = 0.05             # of tokens, for a pose to be asked for


class PoseBatch(NamedTuple):
    """Tokens of B images: points (B, N, 3) in the map, rays (B, N, 2); rotation (B, 3, 3) and translation (B, 3) of the
    camera in the map; confidence (B, N) of the tokens, NaN if unknown, and whether they are right (B, N), NaN if
    neither can be said."""

    points: Tensor
    rays: Tensor
    rotation: Tensor
    translation: Tensor
    confidence: Tensor
    right: Tensor


@dataclass(frozen=True, kw_only=True)
class TuningOptions:
    """Options of fine-tuning.

    epochs: passes over the images. repeats: augmented versions of an image in each. batch, tokens: images of a step,
    and cells of each. rate: peak learning rate of AdamW. near_share: see `weighing_losses`. roll_rad: largest roll.
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
    """The trusted cells of a mapping image: points (N, 3) in the map, rays (N, 2), confidence (N,), NaN if unknown;
    map_from_camera (4, 4)."""

    points: np.ndarray
    rays: np.ndarray
    confidence: np.ndarray
    map_from_camera: np.ndarray


def tune_pose_regressor(net: Net, images: Sequence[TokenImage], options: TuningOptions, budget: MappingBudget
                        ) -> tuple[Net, int]:
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
        batch = PoseBatch(*(each.to(device) for each in batch))
        loss = pose_losses(tuned, batch, centre).sum() if isinstance(tuned, PoseTransformer) else \
            weighing_loss(tuned, batch, options.near_share)
        optimizer.zero_grad()
        loss.backward()
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
        confidence = image.confidence[kept]
        columns.append((points, image.rays[kept], rotation, translation, confidence, np.full_like(confidence, np.nan)))
    batch = PoseBatch(*(torch.from_numpy(np.stack(column)).float() for column in zip(*columns, strict=True)))
    right = label_right((batch.points - batch.translation[:, None]) @ batch.rotation, batch.rays)
    turn = random_rolls(len(images), options.roll_rad, generator)            # of the camera; the map stays as it is
    return batch._replace(rays=batch.rays @ turn[:, :2, :2], rotation=batch.rotation @ turn, right=right)


def weighing_loss(net: WeighingTransformer, batch: PoseBatch, near_share: float) -> Tensor:
    """Compute the loss of a batch; see `weighing_losses`."""
    found = weighing_losses(net, batch, near_share)
    return found["trust"] + POSE_WEIGHT * found["pose"]


def weighing_losses(net: WeighingTransformer, batch: PoseBatch, near_share: float) -> dict[str, Tensor]:
    """Compute the losses of one pass over a batch.

    Args:
        net: the network.
        batch: on the device of the network.
        near_share: share of samples that start from a pose near the right one, as in later passes.

    Returns:
        trust: cross entropy of which tokens are right, averaged over the groups of layers; pose: logarithm of the mean
        displacement of right points, as a share of their depths in hundredths, by the pose that the weights give.
    """
    middle = batch.points.median(1, keepdim=True).values
    points, position = batch.points - middle, batch.translation - middle[:, 0]
    truth = CameraPose(batch.rotation.transpose(1, 2), -(batch.rotation.transpose(1, 2) @ position[..., None])[..., 0])
    with torch.no_grad():
        start = _start(points, batch.rays, truth, near_share)
        confidence, in_camera = ranked(batch.confidence), start.apply(points)
    with training_precision(points.device.type):
        groups = net(in_camera, batch.rays, confidence)
    known = torch.isfinite(batch.right)
    right = batch.right.nan_to_num(0.0)
    trust = torch.stack([functional.binary_cross_entropy_with_logits(each.trust[known], right[known])
                         for each in groups]).mean()
    pose = weighted_pose(points, batch.rays, groups[-1].weights, last=start)
    wanted = truth.apply(points)
    moved = (pose.apply(points) - wanted).norm(dim=-1) / wanted[..., 2].clamp(min=1e-3)
    share = right.mean(1)
    mean = (right * moved).sum(1) / right.sum(1).clamp(min=1)
    solvable = share > MIN_RIGHT_SHARE
    return {"trust": trust, "pose": (100 * mean[solvable]).log1p().mean() if solvable.any() else mean.sum() * 0}


def pose_losses(net: PoseTransformer, batch: PoseBatch, centre: Tensor | None = None) -> Tensor:
    """Compute the published losses of a batch after each group of layers, of a published network.

    Args:
        net: the network.
        batch: on the device of the network.
        centre: (3,) mean camera centre of the map; None: the origin.
    """
    centre = torch.zeros(3, device=batch.points.device) if centre is None else centre
    with training_precision(batch.points.device.type):
        poses = net(batch.points - centre, batch.rays)
    return torch.stack([pose_loss(pose, batch.rotation, batch.translation - centre) for pose in poses])


def label_right(points: Tensor, rays: Tensor) -> Tensor:
    """Return whether points (..., N, 3) in the camera frame are near their rays (..., N, 2): 1, 0, or NaN between."""
    error = (points[..., :2] / points[..., 2:].clamp(min=1e-6) - rays).norm(dim=-1)
    between = torch.where(error > WRONG, 0.0, torch.nan)
    return torch.where(points[..., 2] <= 0, 0.0, torch.where(error < RIGHT, 1.0, between))


def _start(points: Tensor, rays: Tensor, truth: CameraPose, near_share: float) -> CameraPose:
    """Return poses near the truth for this share of the samples, as later passes have them: turned about the middle of
    the points, which is the origin, and moved, by errors of any size. For the others, those of `start_pose`."""
    count = len(points)
    generator = torch.Generator().manual_seed(int(truth.rotation.flatten()[0].abs() * 1e6))
    low, high = NEAR_RAD
    size = low * (high / low) ** torch.rand((count, 1), generator=generator)
    axis, move = (functional.normalize(torch.randn((count, 3), generator=generator), dim=1) for _ in range(2))
    size, axis, move = (each.to(points.device) for each in (size, axis, move))
    rotation = rotation_from_vector(size * axis) @ truth.rotation
    translation = truth.translation + size * move * truth.translation.norm(dim=1, keepdim=True)
    others = torch.arange(round(near_share * count), count, device=points.device)
    found = start_pose(points[others], rays[others])
    return CameraPose(rotation.index_copy(0, others, found.rotation), translation.index_copy(0, others,
                                                                                          found.translation))


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
