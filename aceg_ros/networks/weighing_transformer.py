# SPDX-License-Identifier: Apache-2.0
"""Our small variant of the pose transformer of marepo: it says which scene coordinates to trust, and a closed-form
solver finds the pose that these agree on.

Tokens, encodings, layers and re-attention are those of the published network (`pose_transformer`). Instead of a pose it
regresses a weight for each token. The first pose comes from the geometry of all tokens; each pass weighs them in the
frame of the last pose's camera, with their errors there. So it has to learn neither geometry nor scales, and minutes of
training do where the published network takes days.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.networks.coordinate_frames import image_frame, masked_median
from aceg_ros.networks.pose_transformer import AttentionLayer, encode_points, encode_rays
from aceg_ros.networks.weighted_pose import solve_weighted_pose

ERROR_SCALES = (0.003, 0.01, 0.04, 0.16, 0.64)      # of the directions to points, beside their rays
ERRORS = 3 * len(ERROR_SCALES) + 2                   # entries that describe the errors of a token
START_FITS, START_SCALE = 3, 0.1
NEAREST = 0.1                                        # depth, as a share of the median distance, below which none counts
MAX_LOG_PRECISION = 4.0


@dataclass(frozen=True, kw_only=True)
class WeighingConfig:
    """Sizes and constants.

    width, heads, layers: of the transformer. group: number of layers after which the input of the group is added again,
    and weights are supervised. frequencies, extent: of the encoding of points; their median distance from the camera
    becomes a `1 / extent` of its period. ray_scale: factor for rays before their encoding. reattention, ray_encoding,
    errors, confidence: False leaves these out, for ablations. passes: largest number of times that tokens are weighed;
    there are no more once the pose has settled, that is moves by less than this, in radians and as a share of its
    distance from the points.
    """

    width: int = 64
    heads: int = 4
    layers: int = 4
    group: int = 2
    frequencies: int = 5
    extent: float = 5.0
    ray_scale: float = 400.0
    reattention: bool = True
    ray_encoding: bool = True
    errors: bool = True
    confidence: bool = True
    passes: int = 10
    settled: float = 1e-3

    def __post_init__(self) -> None:
        if self.width % (4 * self.heads) or self.layers % self.group:
            raise ValueError("width must be a multiple of 4 heads, and layers one of group")


class CameraPose(NamedTuple):
    """Poses from the points to the camera: rotation (B, 3, 3), translation (B, 3)."""

    rotation: Tensor
    translation: Tensor

    def apply(self, points: Tensor) -> Tensor:
        """Return points (B, N, 3) in the frame of the camera."""
        return points @ self.rotation.transpose(1, 2) + self.translation[:, None]

    def moved_from(self, last: CameraPose) -> Tensor:
        """Return how far these poses are from others (B,), in radians and as a share of the distance of the origin."""
        turned = (self.rotation - last.rotation).square().sum((1, 2)).div(2).sqrt()
        shifted = (self.translation - last.translation).norm(dim=1) / self.translation.norm(dim=1).clamp(min=1e-9)
        return torch.maximum(turned, shifted)


class TokenWeights(NamedTuple):
    """What the network says of tokens (B, N). trust: logit of the probability that they are right; log_precision: how
    precise they are beside the others."""

    trust: Tensor
    log_precision: Tensor

    @property
    def weights(self) -> Tensor:
        return self.trust.sigmoid() * self.log_precision.exp()


class WeighingTransformer(nn.Module):
    """Points and rays of an image's tokens, and a pose -> weights of the tokens, after each group of layers."""

    def __init__(self, config: WeighingConfig):
        super().__init__()
        width = config.width
        self.config = config
        self.points = nn.Linear(3 * (1 + 2 * config.frequencies), width)
        self.errors = nn.Linear(ERRORS, width)
        self.confidence = nn.Linear(2, width)
        self.layers = nn.ModuleList(AttentionLayer(width, config.heads) for _ in range(config.layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, in_camera: Tensor, rays: Tensor, confidence: Tensor, mask: Tensor | None = None
                ) -> list[TokenWeights]:
        """Weigh the tokens of each image of a batch.

        Args:
            in_camera: (B, N, 3) points in the frame of a camera that is about right, any unit.
            rays: (B, N, 2) viewing rays ((u - cx) / fx, (v - cy) / fy).
            confidence: (B, N) from -1 to 1, how much what predicted the points trusts them beside the others of the
                image (`ranked`), NaN where this is unknown.
            mask: (B, N) bool, the tokens that may be used; None: all.
        """
        x = self._encode(in_camera, rays, confidence, mask)
        found, start = [], x
        for number, layer in enumerate(self.layers, 1):
            x = layer(x, mask)
            if number % self.config.group == 0:
                x = start = x + start if self.config.reattention else x
                found.append(self._weigh(x))
        return found

    def _encode(self, in_camera: Tensor, rays: Tensor, confidence: Tensor, mask: Tensor | None) -> Tensor:
        config = self.config
        with torch.autocast(rays.device.type, enabled=False):           # points need more than the 8 bits of bf16
            kept = torch.ones_like(confidence) if mask is None else mask.to(rays.dtype)
            unit = masked_median(in_camera.norm(dim=-1), kept).clamp(min=1e-9)[:, None, None]
            points = in_camera / unit
            x = self.points(encode_points(points.clamp(-config.extent, config.extent) / config.extent,
                                          config.frequencies))
            if config.ray_encoding:
                x = x + encode_rays(config.ray_scale * rays, config.width)
            if config.errors:
                x = x + self.errors(_describe_errors(points, rays))
            if config.confidence:
                known = torch.isfinite(confidence)
                x = x + self.confidence(torch.stack([confidence.nan_to_num(0.0), known.to(x.dtype)], -1))
        return x

    def _weigh(self, x: Tensor) -> TokenWeights:
        trust, log_precision = self.head(x).float().unbind(-1)
        return TokenWeights(trust, MAX_LOG_PRECISION * (log_precision / MAX_LOG_PRECISION).tanh())


def _describe_errors(points: Tensor, rays: Tensor) -> Tensor:
    """Return what tells how far points (B, N, 3) in the camera are from their rays: the difference of the directions,
    in several resolutions, the logarithm of its length, and of the distance."""
    distance = points.norm(dim=-1, keepdim=True)
    error = points / distance.clamp(min=1e-6) - functional.normalize(functional.pad(rays, (0, 1), value=1.0), dim=-1)
    size = error.norm(dim=-1, keepdim=True)
    shown = [error / (size + scale) for scale in ERROR_SCALES]
    return torch.cat([*shown, 0.3 * (size + 1e-3).log() + 1.0, distance.clamp(min=1e-2, max=1e2).log()], -1)


def ranked(confidence: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the ranks of confidences (B, N) within their images, from -1 to 1; NaN where they are not known."""
    kept = torch.isfinite(confidence) if mask is None else torch.isfinite(confidence) & mask
    order = torch.where(kept, confidence, -torch.inf).argsort(1).argsort(1).float()
    missing = (~kept).sum(1, keepdim=True)
    count = kept.sum(1, keepdim=True).clamp(min=2)
    return torch.where(kept, 2 * (order - missing) / (count - 1) - 1, torch.nan)


def start_pose(points: Tensor, rays: Tensor, mask: Tensor | None = None) -> CameraPose:
    """Return the poses that the points (B, N, 3) of images, mask (B, N), suggest to who trusts them all alike.

    The axes of an affine fit, with the camera two median distances before the points; then fits to all points, weighted
    for an L1 loss.
    """
    frame = image_frame(points, rays, mask, extent=1.0)
    kept = torch.ones_like(rays[..., 0]) if mask is None else mask.to(rays.dtype)
    in_frame = frame.to_frame(points)
    middle = torch.stack([masked_median(rays[..., axis], kept) for axis in (0, 1)], -1)
    rotation = torch.eye(3, device=points.device).expand(len(points), 3, 3)
    pose = CameraPose(rotation, 2.0 * functional.pad(middle, (0, 1), value=1.0))
    for _ in range(START_FITS):
        in_camera = pose.apply(in_frame)
        error = in_camera[..., :2] / in_camera[..., 2:].clamp(min=NEAREST) - rays
        size = torch.where(in_camera[..., 2] > NEAREST, error.norm(dim=-1), 1.0)
        weights = kept / (size + START_SCALE * masked_median(size, kept)[:, None] + 1e-4)
        pose = weighted_pose(in_frame, rays, weights, last=pose, mask=mask)
    turned = pose.rotation @ frame.rotation.transpose(1, 2)
    return CameraPose(turned, frame.unit_m[:, None] * pose.translation - (turned @ frame.centre[..., None])[..., 0])


def weighted_pose(points: Tensor, rays: Tensor, weights: Tensor, *, last: CameraPose, mask: Tensor | None = None
                  ) -> CameraPose:
    """Return the pose of the least sum of squared reprojection errors, with depths (B, N) as in the last pose."""
    depth = last.apply(points)[..., 2].detach()
    kept = torch.ones_like(depth) if mask is None else mask.to(depth.dtype)
    least = NEAREST * masked_median(depth.abs(), kept)[:, None].clamp(min=1e-9)
    weights = kept * weights / torch.maximum(depth, least).square()
    rotation, translation = solve_weighted_pose(points, rays, weights, last.rotation)
    return CameraPose(rotation.to(points.dtype), translation.to(points.dtype))
