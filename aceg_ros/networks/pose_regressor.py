# SPDX-License-Identifier: Apache-2.0
"""Reads and writes pose transformers, and regresses poses in the map with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from aceg_ros.errors import UserError
from aceg_ros.networks.coordinate_frames import CoordinateFrame, image_frame, map_frame
from aceg_ros.networks.pose_transformer import PoseTransformer, PoseTransformerConfig, RegressedPose
from aceg_ros.networks.weights_file import find_weights, identity_of, read_weights, write_weights
from aceg_ros.utils.device import half_precision

KIND = "marepo"


@dataclass(frozen=True, kw_only=True)
class PoseRegressor:
    """A pose transformer. identity: kind and content hash. source: the argument of `load_pose_regressor` that loads it
    again."""

    net: PoseTransformer
    identity: str
    source: str


def frame_of(config: PoseTransformerConfig, points: Tensor, rays: Tensor, mask: Tensor | None, *, centre: Tensor
             ) -> CoordinateFrame:
    """Return the frame in which a network takes points (B, N, 3). centre: (3,), mean camera centre of the map."""
    if config.frame == "map":
        return map_frame(centre, len(points))
    return image_frame(points, rays, mask, extent=config.extent_m)


def regress_pose(net: PoseTransformer, points: Tensor, rays: Tensor, mask: Tensor | None = None, *, centre: Tensor
                 ) -> RegressedPose:
    """Regress the poses of images in the map.

    Args:
        net: the network.
        points: (B, N, 3) map points of the cells.
        rays: (B, N, 2) their viewing rays.
        mask: (B, N) bool, the cells that may be used; None: all.
        centre: (3,) mean camera centre of the mapping images.
    """
    frame = frame_of(net.config, points, rays, mask, centre=centre)
    for _ in range(net.config.passes):
        in_frame = frame.to_frame(points)
        with half_precision(points.device.type):            # frames need full precision
            found = net(in_frame, rays, mask)[-1]
        pose = RegressedPose(*frame.pose_to_map(found.rotation, found.translation))
        frame = replace(frame, rotation=pose.rotation)
    return pose


def save_pose_regressor(net: PoseTransformer, path: Path, half: bool = True) -> None:
    """Write the weights, in fp16 if `half`, and the configuration."""
    state = {key: value.half() if half else value for key, value in net.state_dict().items()}
    write_weights(path, state, kind=KIND, config=net.config)


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
    if weights.kind != KIND:
        raise UserError(f"{path} is a file of kind '{weights.kind}', not a pose regressor.")
    try:
        net = PoseTransformer(weights.config_as(PoseTransformerConfig))
        net.load_state_dict({key: value.float() for key, value in weights.tensors.items()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a readable pose regressor ({error!r}).") from None
    identity = identity_of(KIND, weights.tensors, net.config)
    return PoseRegressor(net=net.eval().requires_grad_(False).to(torch.device(device)), identity=identity,
                         source=source)


def with_weights(regressor: PoseRegressor, weights: Mapping[str, Tensor]) -> PoseRegressor:
    """Return the regressor with other weights of the same sizes, as fine-tuning makes them.

    Raises UserError if they do not fit.
    """
    net = PoseTransformer(regressor.net.config)
    try:
        net.load_state_dict({key: value.float() for key, value in weights.items()})
    except RuntimeError as error:
        raise UserError(f"The fine-tuned weights do not fit pose regressor '{regressor.source}' ({error}): map the"
                        " scene again.") from None
    device = next(regressor.net.parameters()).device
    return replace(regressor, net=net.eval().requires_grad_(False).to(device))
