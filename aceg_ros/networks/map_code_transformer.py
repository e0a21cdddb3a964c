# SPDX-License-Identifier: Apache-2.0
"""The published regressor of ACE-G (Bruns et al., ICCV 2025): one frozen transformer for all scenes, which attends to
the code of a scene by cross-attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.networks.ace_head import RELEASE_BUFFERS, check_scales, dehomogenize


class PredictedPoints(NamedTuple):
    """coordinates (B, 3) in the map; sigma (B,): standard deviation of their distance from the truth, map units."""

    coordinates: Tensor
    sigma: Tensor


@dataclass(frozen=True, kw_only=True)
class TransformerHeadConfig:
    """Sizes and constants, with the names of the released class and its defaults.

    unit_features: whether features are normalised to unit length first; true for networks trained by this package,
    false for the released one. confident_ratio: a patch is confident if its sigma is below this factor times the 10 %
    quantile of the image's sigmas (the paper's rule).
    """

    dim_in: int = 1024
    num_blocks: int = 6
    num_attention_heads: int = 8
    dim_emb: int = 512
    mlp_ratio: float = 4.0
    final_mlp_ratio: float = 1.0
    unit_features: bool = False
    confident_ratio: float = 2.0


class MapCode(nn.Module):
    """The code of a scene for `TransformerHead`: embeddings (n, d), and the mean camera centre (3,)."""

    mean: Tensor

    def __init__(self, embeddings: Tensor, mean: Tensor):
        super().__init__()
        self.embeddings = nn.Parameter(embeddings)
        self.register_buffer("mean", mean.float().reshape(3))

    @classmethod
    def noise(cls, count: int, width: int, mean: Tensor, generator: torch.Generator) -> MapCode:
        """Make the initial code of a mapping run: embeddings drawn from N(0, 0.01^2)."""
        return cls(0.01 * torch.randn(count, width, generator=generator), mean)


class _Mlp(nn.Module):
    """Linear, GELU, LayerNorm if `norm`, Linear."""

    def __init__(self, dim_in: int, hidden: int, dim_out: int, norm: bool):
        super().__init__()
        self.fcs = nn.ModuleList([nn.Linear(dim_in, hidden), nn.Linear(hidden, dim_out)])
        self.norms = nn.ModuleList([nn.LayerNorm(hidden)] if norm else [])

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.fcs[0](x))
        return self.fcs[1](self.norms[0](x) if len(self.norms) else x)


class _CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend from query (B, d) to keys and values (n, d), which are projected once for all patches."""
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(0, 1)[None]
                   for layer, x in ((self.q_proj, query), (self.k_proj, keys), (self.v_proj, values)))
        return self.proj(functional.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1))


class _Block(nn.Module):
    def __init__(self, config: TransformerHeadConfig):
        super().__init__()
        width = config.dim_emb
        self.q_norm, self.k_norm, self.v_norm = (nn.LayerNorm(width) for _ in range(3))
        self.attn = _CrossAttention(width, config.num_attention_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _Mlp(width, int(width * config.mlp_ratio), width, norm=False)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        x = x + self.attn(self.q_norm(x), self.k_norm(codes), self.v_norm(codes))
        return x + self.mlp(self.norm2(x))


class TransformerHead(nn.Module):
    """Features (B, dim_in) and a map code -> coordinates and sigma. State-dict keys are the release's."""

    def __init__(self, config: TransformerHeadConfig):
        super().__init__()
        width = config.dim_emb
        self.config = config
        self.in_mlp = _Mlp(config.dim_in, int(config.dim_in * config.mlp_ratio), width, norm=True)
        self.transformer_blocks = nn.ModuleList(_Block(config) for _ in range(config.num_blocks))
        self.out_mlp = _Mlp(width, int(width * config.final_mlp_ratio), 5, norm=True)

    def forward(self, features: Tensor, code: MapCode) -> PredictedPoints:
        x = self.in_mlp(functional.normalize(features, dim=1) if self.config.unit_features else features)
        for block in self.transformer_blocks:
            x = block(x, code.embeddings)
        with torch.autocast(x.device.type, enabled=False):             # coordinates need more than the 8 bits of bf16
            x = self.out_mlp(x.float())
        return PredictedPoints(dehomogenize(x[:, :4]) + code.mean, x[:, 4].exp())

    def select_confident(self, sigma: Tensor) -> Tensor:
        """Return the mask (B,) of an image's patches with confident points, by their sigma (B,)."""
        return sigma < self.config.confident_ratio * sigma.quantile(0.1)


def head_from_release(state: dict[str, Tensor], heads: int) -> TransformerHead:
    """Build the regressor from a state dict of the release; all sizes but the number of heads come from the shapes.

    Raises KeyError or RuntimeError if it is not a state dict of such a network, ValueError if its sizes or scales are
    not supported.
    """
    check_scales(state)
    others = (*RELEASE_BUFFERS, "mean", "_extra_state")
    weights = {key: value.float() for key, value in state.items() if key not in others}
    hidden, dim_in = weights["in_mlp.fcs.0.weight"].shape
    width = weights["in_mlp.fcs.1.weight"].shape[0]
    blocks = sum(key.endswith("attn.q_proj.weight") for key in weights)
    if heads < 1 or width % heads:
        raise ValueError(f"{heads} heads do not divide its width of {width}")
    if hidden * width != dim_in * weights["transformer_blocks.0.mlp.fcs.0.weight"].shape[0]:
        raise ValueError("its two MLPs have different ratios")
    head = TransformerHead(TransformerHeadConfig(
        dim_in=dim_in, num_blocks=blocks, num_attention_heads=heads, dim_emb=width, mlp_ratio=hidden / dim_in,
        final_mlp_ratio=weights["out_mlp.fcs.0.weight"].shape[0] / width))
    head.load_state_dict(weights)
    return head
