# SPDX-License-Identifier: Apache-2.0
"""The pose transformer of marepo (Chen et al., CVPR 2024): the scene coordinates of an image -> the pose of its camera.

It is trained once for all scenes. Cells of the image are tokens: each has its map point and its viewing ray. No
RANSAC, and no geometry but what it has learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.networks.ace_head import RELEASE_BUFFERS, check_scales, dehomogenize
from aceg_ros.networks.rotations import nearest_rotation, rotation_from_two_rows

ATTENTION_EPS = 1e-6
ROTATIONS = {"6D": 6, "9D": 9}          # outputs of the head, by representation


@dataclass(frozen=True, kw_only=True)
class PoseTransformerConfig:
    """Sizes and constants; the defaults are the published ones.

    width, heads, layers: of the transformer. group: number of layers after which the input of the group is added
    again, and a pose is supervised. head_blocks: residual blocks of the head. rotation: "6D" or "9D". frequencies,
    max_m: of the encoding of points, which are clipped to +-max_m. ray_scale: factor for rays before their encoding.
    at_corner: whether the ray of a cell is that of its first pixel, not of its centre. reattention, ray_encoding:
    False leaves out the sum after each group, and the encoding of rays; for ablations.
    """

    width: int = 256
    heads: int = 8
    layers: int = 12
    group: int = 4
    head_blocks: int = 1
    rotation: str = "6D"
    frequencies: int = 5
    max_m: float = 50.0
    ray_scale: float = 400.0
    at_corner: bool = True
    reattention: bool = True
    ray_encoding: bool = True

    def __post_init__(self) -> None:
        if self.rotation not in ROTATIONS:
            raise ValueError(f"unknown rotation '{self.rotation}'")
        if self.width % (4 * self.heads) or self.layers % self.group:
            raise ValueError("width must be a multiple of 4 heads, and layers one of group")


class RegressedPose(NamedTuple):
    """Poses from the camera to the frame of the points: rotation (B, 3, 3), translation (B, 3)."""

    rotation: Tensor
    translation: Tensor


class AttentionLayer(nn.Module):
    """Linear self-attention (Katharopoulos et al., ICML 2020) as in LoFTR: no softmax, so its cost is linear in N."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.merge = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(2 * width, 2 * width, bias=False), nn.ReLU(),
                                 nn.Linear(2 * width, width, bias=False))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        message = self.merge(_linear_attention(q, k, v, mask).flatten(2))
        message = self.mlp(torch.cat([x, self.norm1(message)], -1))
        return x + self.norm2(message)


def _linear_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend from q to k and v, each (B, N, heads, d); mask (B, N): tokens to be used."""
    q, k = functional.elu(q) + 1, functional.elu(k) + 1
    if mask is not None:
        kept = mask[:, :, None, None].to(q.dtype)
        q, k, v = q * kept, k * kept, v * kept
    count = v.shape[1]                      # values are divided by it, so that the sums stay small in half precision
    context = torch.einsum("nshd,nshv->nhdv", k, v / count)
    norm = torch.einsum("nlhd,nhd->nlh", q, k.sum(1)) + ATTENTION_EPS
    return torch.einsum("nlhd,nhdv->nlhv", q, context) / norm[..., None] * count


class _PointEncoding(nn.Module):
    def __init__(self, config: PoseTransformerConfig):
        super().__init__()
        self._config = config
        self.pre_pe_dim_manipulator = nn.Linear(3 * (1 + 2 * config.frequencies), config.width)

    def forward(self, points: Tensor) -> Tensor:
        config = self._config
        return self.pre_pe_dim_manipulator(encode_points(points.clamp(-config.max_m, config.max_m) / config.max_m,
                                                         config.frequencies))


class _Transformer(nn.Module):
    def __init__(self, config: PoseTransformerConfig):
        super().__init__()
        self._config = config
        self.layers = nn.ModuleList(AttentionLayer(config.width, config.heads) for _ in range(config.layers))

    def forward(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Return the tokens after each group of layers."""
        found, start = [], x
        for number, layer in enumerate(self.layers, 1):
            x = layer(x, mask)
            if number % self._config.group == 0:
                x = x + start if self._config.reattention else x
                start = x
                found.append(x)
        return found


class _ResidualBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.res_conv1, self.res_conv2, self.res_conv3 = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in (self.res_conv1, self.res_conv2, self.res_conv3):
            y = functional.relu(layer(y))
        return x + y


class PoseTransformer(nn.Module):
    """Points and rays of an image's cells -> a pose after each group of layers.

    State-dict keys are the release's, with linear layers instead of 1x1 convolutions (`transformer_from_release`
    converts).
    """

    def __init__(self, config: PoseTransformerConfig):
        super().__init__()
        width = config.width
        self.config = config
        self.pos_encoding = _PointEncoding(config)
        self.transformer = _Transformer(config)
        self.res_conv = nn.ModuleList(_ResidualBlock(width) for _ in range(config.head_blocks))
        self.more_mlps = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.fc_t = nn.Linear(width, 4)
        self.fc_rot = nn.Linear(width, ROTATIONS[config.rotation])

    def forward(self, points: Tensor, rays: Tensor, mask: Tensor | None = None) -> list[RegressedPose]:
        """Regress the pose of each image of a batch.

        Args:
            points: (B, N, 3) map points of the cells in metres, in a frame centred at the map's mean camera centre.
            rays: (B, N, 2) viewing rays ((u - cx) / fx, (v - cy) / fy) of the cells.
            mask: (B, N) bool, the cells that may be used; None: all.

        Returns:
            The poses after each group of layers; the last are the best, the others are for supervision.
        """
        with torch.autocast(points.device.type, enabled=False):         # points need more than the 8 bits of bf16
            x = self.pos_encoding(points)
            if self.config.ray_encoding:
                x = x + encode_rays(self.config.ray_scale * rays, self.config.width)
        return [self._regress_pose(tokens) for tokens in self.transformer(x, mask)]

    def _regress_pose(self, x: Tensor) -> RegressedPose:
        for block in self.res_conv:
            x = block(x)
        x = self.more_mlps(x.mean(1))
        with torch.autocast(x.device.type, enabled=False):          # poses need more than the 8 bits of bf16
            rows = self.fc_rot(x.float()).unflatten(1, (-1, 3))
            rotation = rotation_from_two_rows(rows[:, 0], rows[:, 1]) if self.config.rotation == "6D" else \
                nearest_rotation(rows)
            return RegressedPose(rotation, dehomogenize(self.fc_t(x.float())))


def encode_points(points: Tensor, frequencies: int) -> Tensor:
    """Encode points (..., 3) from -1 to 1 as waves of so many frequencies, beside themselves."""
    x = math.pi * points
    return torch.cat([x, *(wave(2**k * x) for k in range(frequencies) for wave in (torch.sin, torch.cos))], -1)


def encode_rays(x: Tensor, width: int) -> Tensor:
    """Encode 2D positions (..., 2) in `width` channels, as LoFTR does: four channels for each frequency."""
    frequency = torch.exp(torch.arange(width // 4, device=x.device, dtype=torch.float32)
                          * (-2.0 * math.log(10000.0) / (width // 2)))
    angle = x[..., None, :] * frequency[:, None]
    return torch.stack([angle[..., 0].sin(), angle[..., 0].cos(), angle[..., 1].sin(), angle[..., 1].cos()],
                       -1).flatten(-2)


def transformer_from_release(state: dict[str, Tensor], heads: int = 8, group: int = 4) -> PoseTransformer:
    """Build the network from a state dict of the release; sizes come from the shapes, but for `heads` and `group`.

    Raises KeyError or RuntimeError if it is not a state dict of such a network, ValueError if its sizes or scales are
    not supported.
    """
    check_scales(state)
    others = (*RELEASE_BUFFERS, "transformer_pose_mean")
    weights = {key: value.float().flatten(1) if value.ndim == 4 else value.float() for key, value in state.items()
               if key not in others}
    width, encoded = weights["pos_encoding.pre_pe_dim_manipulator.weight"].shape
    outputs = {count: name for name, count in ROTATIONS.items()}
    rotation = outputs.get(len(weights["fc_rot.bias"]), "")
    config = PoseTransformerConfig(
        width=width, heads=heads, group=group, rotation=rotation, frequencies=(encoded // 3 - 1) // 2,
        layers=sum(key.endswith("q_proj.weight") for key in weights),
        head_blocks=sum(key.endswith("res_conv1.weight") for key in weights))
    net = PoseTransformer(config)
    net.load_state_dict(weights)
    return net
