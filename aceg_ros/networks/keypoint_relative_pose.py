# SPDX-License-Identifier: Apache-2.0
"""A small relative pose network on the keypoints of an encoder, symmetric as Reloc3r's, for known intrinsics.

A token is a keypoint: its descriptor and its ray, so that lenses may differ. Two decoders of shared weights attend to
each other; where descriptors are similar they attend more (a learned scale), since without any pre-training a network
like this does not find out by itself what matching is. With `matched_rays` a token also has the ray of what it matches
in the other image, and all products of the two, which an essential matrix is linear in (Rockwell et al., The 8-Point
Algorithm as an Inductive Bias for Relative Pose Prediction by ViTs, 3DV 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.networks.rotations import rotation_from_two_rows

SIMILARITY_SCALE = 10.0              # of the matching bias at the start
MATCH_SCALE = 20.0                   # of the similarities that tell which keypoints match
PAIR_ENTRIES = 9 + 2 + 2 + 2         # products of two rays, the matched ray, the motion to it, two confidences
MAX_LOG_SIGMA = 1.5


@dataclass(frozen=True, kw_only=True)
class KeypointPoseConfig:
    """Sizes. dim_in: of descriptors. keypoints: tokens of an image. frequencies: of the encoding of rays. matched_rays:
    whether tokens have the ray that they match in the other image. tokens: with matched_rays, the keypoints of each
    image that go on, those that match best; 0: all."""

    dim_in: int = 128
    keypoints: int = 256
    width: int = 128
    blocks: int = 4
    heads: int = 4
    mlp_ratio: int = 3
    frequencies: int = 4
    matched_rays: bool = False
    tokens: int = 0


class KeypointTokens(NamedTuple):
    """Keypoints of B images, the most reliable first: descriptors (B, N, C) of unit length, rays (B, N, 2), x and y at
    unit depth."""

    descriptors: Tensor
    rays: Tensor


class PredictedPose(NamedTuple):
    """first_from_second: rotation (B, 3, 3), direction (B, 3) of unit length from the first to the second camera, and
    log_sigma (B,) of the angles of both, radians."""

    rotation: Tensor
    direction: Tensor
    log_sigma: Tensor


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, other: Tensor, bias: Tensor | None) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for part in (self.q(x), *self.kv(other).chunk(2, -1)))
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
        return self.out(y.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    def __init__(self, config: KeypointPoseConfig):
        super().__init__()
        width, heads = config.width, config.heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.self_attention, self.cross_attention = _Attention(width, heads), _Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, config.mlp_ratio * width), nn.GELU(),
                                 nn.Linear(config.mlp_ratio * width, width))
        self.similarity_scale = nn.Parameter(torch.full((heads,), SIMILARITY_SCALE))

    def forward(self, x: Tensor, other: Tensor, similarity: Tensor) -> Tensor:
        """x, other (B, N, width); similarity (B, N, M) of the descriptors."""
        y = self.norms[0](x)
        x = x + self.self_attention(y, y, None)
        bias = self.similarity_scale[:, None, None] * similarity[:, None]
        x = x + self.cross_attention(self.norms[1](x), self.norms[2](other), bias)
        return x + self.mlp(self.norms[3](x))


class KeypointPoseNet(nn.Module):
    """Keypoints of two images -> their relative pose."""

    def __init__(self, config: KeypointPoseConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.dim_in, config.width)
        self.embed_rays = nn.Linear(2 + 4 * config.frequencies, config.width)
        if config.matched_rays:
            self.embed_matched = nn.Linear(PAIR_ENTRIES, config.width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.pool = nn.Linear(config.width, config.heads)
        size = 2 * config.heads * config.width
        self.head = nn.Sequential(nn.Linear(size, 2 * config.width), nn.GELU(), nn.Linear(2 * config.width, 10))
        last = self.head[2]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():                                # small motions at first
            last.weight.mul_(0.1)
            last.bias.zero_()
            last.bias[:6] = torch.eye(3)[:2].flatten()

    def forward(self, first: KeypointTokens, second: KeypointTokens) -> PredictedPose:
        similarity = first.descriptors @ second.descriptors.mT
        if self.config.matched_rays:
            weights = (MATCH_SCALE * (similarity - 1.0)).exp()
            shares = weights * (weights / weights.sum(2, keepdim=True) / weights.sum(1, keepdim=True))
            pairs = _matched(first.rays, second.rays, shares), _matched(second.rays, first.rays, shares.mT)
            chosen = [self._best(shares.amax(axis)) for axis in (2, 1)]
            similarity = similarity.gather(1, chosen[0][..., None].expand(-1, -1, similarity.shape[2])).gather(
                2, chosen[1][:, None].expand(-1, chosen[0].shape[1], -1))
            a, b = (self._embed(KeypointTokens(*(_rows(part, rows) for part in image)))
                    + self.embed_matched(_rows(pair, rows))
                    for image, pair, rows in zip((first, second), pairs, chosen, strict=True))
        else:
            a, b = self._embed(first), self._embed(second)
        for block in self.blocks:
            a, b = block(a, b, similarity), block(b, a, similarity.mT)
        x = self.head(torch.cat([self._pooled(a), self._pooled(b)], 1)).float()
        # Not by an SVD, which has no derivative where singular values agree, as at the start.
        return PredictedPose(rotation_from_two_rows(x[:, :3], x[:, 3:6]), functional.normalize(x[:, 6:9], dim=1),
                             x[:, 9].clamp(-5.0, MAX_LOG_SIGMA))

    def _best(self, confidence: Tensor) -> Tensor:
        """Return which keypoints (B, K) go on, by how sure their match is (B, N)."""
        count = min(self.config.tokens or confidence.shape[1], confidence.shape[1])
        return confidence.topk(count, dim=1).indices

    def _embed(self, tokens: KeypointTokens) -> Tensor:
        rays = tokens.rays
        turns = torch.cat([rays * (2.0**k * torch.pi) for k in range(self.config.frequencies)], -1)
        encoded = torch.cat([rays, turns.sin(), turns.cos()], -1)
        return self.embed(tokens.descriptors * self.config.dim_in**0.5) + self.embed_rays(encoded)

    def _pooled(self, x: Tensor) -> Tensor:
        """Pool tokens (B, N, width) to (B, heads * width) by learned attention."""
        x = self.norm(x)
        return (self.pool(x).softmax(1).mT @ x).flatten(1)


def _matched(rays: Tensor, other: Tensor, shares: Tensor) -> Tensor:
    """Return what each keypoint (B, N) matches, (B, N, PAIR_ENTRIES), of shares (B, N, M) of rays (B, M, 2)."""
    total = shares.sum(2, keepdim=True)
    matched = shares @ other / total.clamp(min=1e-6)
    ones = torch.ones_like(rays[..., :1])
    products = torch.cat([rays, ones], 2)[..., :, None] * torch.cat([matched, ones], 2)[..., None, :]
    return torch.cat([products.flatten(2), matched, matched - rays, total, shares.amax(2, keepdim=True)], 2)


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    """Return some rows (B, K) of values (B, N, C)."""
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[2]))
