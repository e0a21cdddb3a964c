# SPDX-License-Identifier: Apache-2.0
"""Attention among tokens at pixels of images, which knows where they are: rotary positions and a bias by distance."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

ROTARY_BASE = 100.0
MASKED = -1e4                       # logit of keys that do not exist
RADII = (0.05, 0.25)                # of the heads, in turn, in units of positions


class ImageGeometry(NamedTuple):
    """Where the N tokens of B images are, as attention of H heads with vectors of D entries needs it.

    bias (B, H, N, N): logits of keys by their distance from the query. cos, sin (B, 1, N, 2, D / 4): of the rotation of
    vectors (RoPE, Su et al. 2021; axial in two dimensions, the first half by x, the second by y).
    """

    bias: Tensor
    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, positions: Tensor, valid: Tensor | None = None, *, heads: int, dim: int) -> ImageGeometry:
        """Compute the geometry of positions (B, N, 2); valid (B, N): tokens that exist; None: all. dim: of a head."""
        squared = torch.cdist(positions.float(), positions.float()).square()[:, None]
        radii = torch.tensor([RADII[head % len(RADII)] for head in range(heads)], device=positions.device)
        bias = (squared * (-0.5 / radii.square())[:, None, None]).clamp_(min=MASKED)
        if valid is not None:
            bias = bias.masked_fill(~valid[:, None, None], MASKED)
        rates = ROTARY_BASE ** torch.linspace(0, 1, dim // 4, device=positions.device)
        angle = positions.float()[:, None, :, :, None] * rates
        return cls(bias, angle.cos(), angle.sin())

    def rotate(self, x: Tensor) -> Tensor:
        """Turn vectors (B, H, N, D) by the positions of their tokens."""
        a, b = x.unflatten(-1, (2, 2, -1)).unbind(-2)
        return torch.stack([a * self.cos - b * self.sin, a * self.sin + b * self.cos], -2).flatten(-3).to(x.dtype)


class ImageAttention(nn.Module):
    """Multi-head attention from tokens at pixels to tokens at the same pixels.

    Each head has a radius: keys far from the query count less. Beside what transformers pass on, a head can average
    other vectors with the same weights. The output projection starts at zero, so that a new network does not change
    its tokens.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_query, self.norm_key = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, others: Tensor, geometry: ImageGeometry, averaged: Tensor | None = None
                ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            x: (B, N, C) tokens that attend.
            others: (B, N, C) tokens at the same pixels that are attended to.
            geometry: of the pixels; of one image for all if they share it.
            averaged: (B, N, E) vectors to average with the same weights.

        Returns:
            The updated tokens (B, N, C), and the averages (B, N, H, E) of each head, None without `averaged`.
        """
        q = self.query(self.norm_query(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.key_value(self.norm_key(others)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dim = q.shape[-1]
        q, k = geometry.rotate(q), geometry.rotate(k)
        if averaged is not None:
            # The fused kernel wants queries, keys and values of one size.
            extra = averaged[:, None].to(v.dtype).expand(-1, self.heads, -1, -1)
            v = torch.cat([v, extra], -1)
            q, k = (functional.pad(part, (0, extra.shape[-1])) for part in (q, k))
        bias = geometry.bias.to(q.dtype).expand(len(q), -1, -1, -1)
        result = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=dim ** -0.5)
        updated = x + self.out(result[..., :dim].transpose(1, 2).flatten(2))
        return updated, None if averaged is None else result[..., dim:].transpose(1, 2)


class ResidualMlp(nn.Module):
    """x + MLP(LayerNorm(x)), which starts as the identity."""

    def __init__(self, width: int, ratio: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.gelu(self.first(self.norm(x))))
