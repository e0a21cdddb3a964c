# SPDX-License-Identifier: Apache-2.0
"""SACReg's 3D mixer (Revaud et al., CVPRW 2024): tells the tokens of a keyframe where their points are.

Image-level blocks (self-attention, attention to point tokens, MLP) alternate with point-level blocks (attention to
image tokens, MLP). It needs no query, so that it runs once per map.
"""

from __future__ import annotations

from itertools import zip_longest

import torch
from torch import Tensor, nn

from aceg_ros.networks.coordinate_encoding import ENCODING_DIM, encode_coordinates
from aceg_ros.networks.image_attention import ImageAttention, ImageGeometry, ResidualMlp


class KeyframeMixer(nn.Module):
    """Tokens of keyframes (F, T, width), their positions and points -> mixed tokens (F, T, width).

    Here a keyframe has a token where it sees a landmark, and only there, so image tokens and point tokens are tied one
    to one; the paper has tokens in a grid. The mixer starts as the identity.
    """

    def __init__(self, *, width: int, heads: int, blocks: int, mlp_ratio: int):
        super().__init__()
        self._heads, self._dim = heads, width // heads
        self.point = nn.Sequential(nn.Linear(ENCODING_DIM, width), nn.GELU(), nn.Linear(width, width))
        self.image_blocks = nn.ModuleList(_ImageBlock(width, heads, mlp_ratio) for _ in range(blocks))
        self.point_blocks = nn.ModuleList(_PointBlock(width, heads, mlp_ratio) for _ in range(blocks - 1))

    def forward(self, tokens: Tensor, positions: Tensor, points: Tensor, valid: Tensor) -> Tensor:
        """Mix. positions (F, T, 2); points (F, T, 3); valid (F, T) bool, which tokens exist."""
        of_points = self.point(encode_coordinates(points).flatten(-3))
        geometry = ImageGeometry.of(positions, valid, heads=self._heads, dim=self._dim)
        for image_block, point_block in zip_longest(self.image_blocks, self.point_blocks):
            tokens = image_block(tokens, of_points, geometry)
            if point_block is not None:
                of_points = point_block(of_points, tokens, geometry)
        return tokens


class _ImageBlock(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: int):
        super().__init__()
        self.itself, self.points = ImageAttention(width, heads), ImageAttention(width, heads)
        self.mlp = ResidualMlp(width, mlp_ratio)

    def forward(self, tokens: Tensor, of_points: Tensor, geometry: ImageGeometry) -> Tensor:
        tokens, _ = self.itself(tokens, tokens, geometry)
        tokens, _ = self.points(tokens, of_points, geometry)
        mixed: Tensor = self.mlp(tokens)
        return mixed


class _PointBlock(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: int):
        super().__init__()
        self.image, self.mlp = ImageAttention(width, heads), ResidualMlp(width, mlp_ratio)

    def forward(self, of_points: Tensor, tokens: Tensor, geometry: ImageGeometry) -> Tensor:
        of_points, _ = self.image(of_points, tokens, geometry)
        mixed: Tensor = self.mlp(of_points)
        return mixed


def padded(parts: list[Tensor], length: int) -> Tensor:
    """Stack tensors (n_i, ...) of different lengths as (F, length, ...), filled with zeros."""
    result = parts[0].new_zeros((len(parts), length, *parts[0].shape[1:]))
    for row, part in zip(result, parts, strict=True):
        row[:len(part)] = part
    return result


def existing(parts: list[Tensor], length: int) -> Tensor:
    """Return which rows (F, length) of `padded` are of its parts."""
    sizes = torch.tensor([len(part) for part in parts], device=parts[0].device)
    return torch.arange(length, device=sizes.device) < sizes[:, None]
