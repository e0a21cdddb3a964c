# SPDX-License-Identifier: Apache-2.0
"""Reads and writes networks that predict the relative pose of two images: the published one, after import, and those on
keypoints, which this package trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aceg_ros.errors import UserError
from aceg_ros.networks.keypoint_relative_pose import KeypointPoseConfig, KeypointPoseNet
from aceg_ros.networks.relative_pose import RelativePoseConfig, RelativePoseNet
from aceg_ros.networks.weights_file import find_weights, identity_of, read_weights, write_weights

PUBLISHED, ON_KEYPOINTS = "relative-pose", "relative-pose-keypoints"


@dataclass(frozen=True, kw_only=True)
class RelativePoseNetwork:
    """A frozen network.

    identity: kind and content hash. source: the argument of `load_relative_pose` that loads it again. encoder: identity
    of the encoder whose keypoints it takes; "" for the published network, which takes images.
    """

    net: RelativePoseNet | KeypointPoseNet
    identity: str
    source: str
    encoder: str = ""


def save_keypoint_network(net: KeypointPoseNet, encoder: str, path: Path) -> None:
    """Write a network on keypoints, in fp16. encoder: identity of the encoder that they come from."""
    write_weights(path, {key: value.half() for key, value in net.state_dict().items()}, kind=ON_KEYPOINTS,
                  config=net.config, encoder=encoder)


def load_relative_pose(source: str, device: str = "cpu") -> RelativePoseNetwork:
    """Load a network by the path of its file; the published one in fp16 on a GPU, else in fp32.

    Raises UserError if there is no such file, or it is not one of ours.
    """
    found = find_weights(source)
    if found is None:
        raise UserError(f"No relative pose network '{source}': give a file made by 'aceg import' or 'aceg pretrain'.")
    path, source = found
    weights = read_weights(path, "relative pose network")
    if weights.kind not in (PUBLISHED, ON_KEYPOINTS):
        raise UserError(f"{path} is not a relative pose network, but of kind '{weights.kind}'.")
    try:
        net: RelativePoseNet | KeypointPoseNet
        if weights.kind == PUBLISHED:
            net = network_from_state(weights.config_as(RelativePoseConfig), weights.tensors, device)
        else:
            net = KeypointPoseNet(weights.config_as(KeypointPoseConfig))
            net.load_state_dict({key: value.float() for key, value in weights.tensors.items()})
            net = net.eval().requires_grad_(False).to(device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a readable relative pose network ({error!r}).") from None
    return RelativePoseNetwork(net=net, source=source, identity=identity_of(weights.kind, weights.tensors, net.config),
                               encoder=weights.metadata.get("encoder", ""))


def network_from_state(config: RelativePoseConfig, state: Mapping[str, Tensor], device: str) -> RelativePoseNet:
    """Build a network whose memory is that of its weights alone: it has 1.7 GB of them in fp32.

    Raises RuntimeError if they do not fit the configuration.
    """
    kind = torch.float16 if device.startswith("cuda") else torch.float32
    with torch.device("meta"):
        net = RelativePoseNet(config)
    net.load_state_dict({key: value.to(device, kind) for key, value in state.items()}, assign=True)
    return net.eval().requires_grad_(False)
