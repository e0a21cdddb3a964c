# SPDX-License-Identifier: Apache-2.0
"""Reads and writes pose transformers, and regresses poses in the map with them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from aceg_ros.errors import UserError
from aceg_ros.networks.coordinate_frames import masked_median
from aceg_ros.networks.pose_transformer import PoseTransformer, PoseTransformerConfig, RegressedPose
from aceg_ros.networks.weighing_transformer import (
    WeighingConfig,
    WeighingTransformer,
    ranked,
    start_pose,
    weighted_pose,
)
from aceg_ros.networks.weights_file import WeightsFile, find_weights, identity_of, read_weights, write_weights
from aceg_ros.utils.device import half_precision

KIND, WEIGHING_KIND = "marepo", "marepo-weights"
_NETWORKS: dict[str, tuple[type, type]] = {KIND: (PoseTransformer, PoseTransformerConfig),
                                           WEIGHING_KIND: (WeighingTransformer, WeighingConfig)}
Net = PoseTransformer | WeighingTransformer


@dataclass(frozen=True, kw_only=True)
class PoseRegressor:
    """A pose transformer, as published or ours. identity: kind and content hash. source: the argument of
    `load_pose_regressor` that loads it again."""

    net: Net
    identity: str
    source: str


def regress_pose(net: Net, points: Tensor, rays: Tensor, mask: Tensor | None = None, *, centre: Tensor,
                 confidence: Tensor | None = None) -> RegressedPose:
    """Regress the poses of images in the map.

    Args:
        net: the network.
        points: (B, N, 3) map points of the tokens.
        rays: (B, N, 2) their viewing rays.
        mask: (B, N) bool, the tokens that may be used; None: all.
        centre: (3,) mean camera centre of the mapping images, which the published network takes.
        confidence: (B, N) of the tokens, any unit, which ours takes; None or NaN if unknown.
    """
    if isinstance(net, WeighingTransformer):
        return _weigh_and_solve(net, points, rays, mask=mask, confidence=confidence)
    with half_precision(points.device.type):
        found = net(points - centre, rays, mask)[-1]
    return RegressedPose(found.rotation, found.translation + centre)


def _weigh_and_solve(net: WeighingTransformer, points: Tensor, rays: Tensor, *, mask: Tensor | None,
                     confidence: Tensor | None) -> RegressedPose:
    """Weigh the tokens and solve for the pose, in each pass from the pose of the last one, until it settles."""
    kept = torch.ones_like(rays[..., 0]) if mask is None else mask.to(rays.dtype)
    middle = torch.stack([masked_median(points[..., axis], kept) for axis in range(3)], -1)
    points = torch.where(kept[..., None] > 0, points - middle[:, None], 0.0)
    known = torch.full_like(rays[..., 0], torch.nan) if confidence is None else confidence
    ranks = ranked(known, mask)
    pose = start_pose(points, rays, mask)
    for _ in range(net.config.passes):
        with half_precision(points.device.type):
            found = net(pose.apply(points), rays, ranks, mask)[-1]
        last, pose = pose, weighted_pose(points, rays, found.weights, last=pose, mask=mask)
        if bool((pose.moved_from(last) < net.config.settled).all()):
            break
    rotation = pose.rotation.transpose(1, 2)
    return RegressedPose(rotation, middle - (rotation @ pose.translation[..., None])[..., 0])


def save_pose_regressor(net: Net, path: Path, half: bool = True) -> None:
    """Write the weights, in fp16 if `half`, and the configuration."""
    state = {key: value.half() if half else value for key, value in net.state_dict().items()}
    write_weights(path, state, kind=_kind_of(net), config=net.config)


def load_pose_regressor(source: str, device: str = "cpu") -> PoseRegressor:
    """Load a pose regressor by the name of a shipped one or the path of a file.

    Raises UserError if there is no such regressor, or the file is not one of ours.
    """
    found = find_weights(source)
    if found is None:
        raise UserError(f"No pose regressor '{source}': give a file made by 'aceg import {KIND}' or 'aceg pretrain"
                        f" {KIND}'.")
    path, source = found
    weights = read_weights(path, "pose regressor")
    if weights.kind not in _NETWORKS:
        raise UserError(f"{path} is a file of kind '{weights.kind}', not a pose regressor.")
    try:
        net = _make(weights)
        net.load_state_dict({key: value.float() for key, value in weights.tensors.items()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a readable pose regressor ({error!r}).") from None
    identity = identity_of(weights.kind, weights.tensors, net.config)
    return PoseRegressor(net=net.eval().requires_grad_(False).to(torch.device(device)), identity=identity,
                         source=source)


def _make(weights: WeightsFile) -> Net:
    network, config = _NETWORKS[weights.kind]
    return network(weights.config_as(config))


def _kind_of(net: Net) -> str:
    return next(kind for kind, (network, _) in _NETWORKS.items() if isinstance(net, network))


def with_weights(regressor: PoseRegressor, weights: Mapping[str, Tensor]) -> PoseRegressor:
    """Return the regressor with other weights of the same sizes, as fine-tuning makes them.

    Raises UserError if they do not fit.
    """
    net = copy.deepcopy(regressor.net)
    try:
        net.load_state_dict({key: value.float() for key, value in weights.items()})
    except RuntimeError as error:
        raise UserError(f"The fine-tuned weights do not fit pose regressor '{regressor.source}' ({error}): map the"
                        " scene again.") from None
    device = next(regressor.net.parameters()).device
    return replace(regressor, net=net.eval().requires_grad_(False).to(device))
