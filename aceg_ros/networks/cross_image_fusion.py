# SPDX-License-Identifier: Apache-2.0
"""Points of an image's keypoints from groups of keyframes, and the weights file of the network that regresses them.

Early fusion: one group of several keyframes. Late fusion: each keyframe is a group of its own, and each keypoint keeps
the most confident answer, which is slower (Revaud et al., CVPRW 2024, find it more accurate).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aceg_ros.errors import UserError
from aceg_ros.networks.coordinate_encoding import decode_coordinates
from aceg_ros.networks.cross_image_regressor import CrossImageConfig, CrossImageRegressor, KeyframeTokens
from aceg_ros.networks.weights_file import find_weights, identity_of, read_weights, write_weights
from aceg_ros.utils.device import half_precision

KIND = "cross-image"


@dataclass(frozen=True, kw_only=True)
class RegressedPoints:
    """Points (N, 3) of N keypoints, in the scale of the tokens, and their confidence (N,)."""

    points: Tensor
    confidence: Tensor

    def most_confident(self, share: float) -> Tensor:
        """Return the mask (N,) of this share of the keypoints, those with the highest confidence."""
        return self.confidence >= self.confidence.quantile(1.0 - share)


@torch.inference_mode()
def regress_points(net: CrossImageRegressor, descriptors: Tensor, positions: Tensor, groups: KeyframeTokens
                   ) -> RegressedPoints:
    """Regress the points of keypoints from B groups of keyframes; each keypoint keeps its most confident answer.

    Coordinates are decoded within the range of the points of all keyframes.

    Args:
        net: the network.
        descriptors: (N, C), of unit length.
        positions: (N, 2), pixels in units of `position_px`.
        groups: tokens of the keyframes, at least one of which is valid.
    """
    with half_precision(descriptors.device.type):
        found = net(descriptors, positions, groups)
    confidence, group = found.confidence.max(0)
    encoding = found.encoding[group, torch.arange(len(group), device=group.device)]
    known = groups.points[groups.valid]
    return RegressedPoints(points=decode_coordinates(encoding, known.amin(0), known.amax(0)), confidence=confidence)


@dataclass(frozen=True, kw_only=True)
class CrossImageWeights:
    """A frozen network. identity: kind and content hash. encoder: identity of the encoder that it was trained with.
    source: the argument of `load_cross_image` that loads it again."""

    net: CrossImageRegressor
    identity: str
    encoder: str
    source: str


def save_cross_image(net: CrossImageRegressor, encoder: str, path: Path) -> None:
    """Write the weights in fp16, with their configuration and the identity of their encoder, atomically."""
    write_weights(path, {key: value.half() for key, value in net.state_dict().items()}, kind=KIND, config=net.config,
                  encoder=encoder)


def load_cross_image(source: str, device: str = "cpu") -> CrossImageWeights:
    """Load a network by the name of a shipped one or the path of a file.

    Raises UserError if there is none, or the file is not one of ours.
    """
    found = find_weights(source)
    if found is None:
        raise UserError(f"No weights '{source}' of a cross-image regressor: this release ships none of that name. Train"
                        " some with 'aceg pretrain sacreg' and give their file.")
    path, source = found
    weights = read_weights(path, "cross-image regressor")
    try:
        if weights.kind != KIND:
            raise ValueError(f"it holds a '{weights.kind}'")
        net = CrossImageRegressor(weights.config_as(CrossImageConfig))
        net.load_state_dict({key: value.float() for key, value in weights.tensors.items()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a readable file of a cross-image regressor ({error}).") from None
    return CrossImageWeights(net=net.eval().requires_grad_(False).to(device), source=source,
                             identity=identity_of(weights.kind, weights.tensors, net.config),
                             encoder=weights.metadata.get("encoder", ""))
