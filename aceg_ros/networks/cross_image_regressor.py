# SPDX-License-Identifier: Apache-2.0
"""Our SACReg (Revaud et al., CVPRW 2024): regresses where keypoints of an image are in the map, from a handful of
keyframes with their landmarks, without any training for the scene.

Tokens are the most reliable keypoints of an encoder instead of a ViT's grid, and the network is small. So that it can
be trained on a CPU, it starts as a matcher: cross-attention compares descriptors, and what it passes on is the encoding
of the attended landmarks' coordinates. Training adds what the neighbours of a keypoint tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.networks.coordinate_encoding import AXES, ENCODING_DIM, FREQUENCIES, PAIR, encode_coordinates
from aceg_ros.networks.image_attention import MASKED, ImageAttention, ImageGeometry, ResidualMlp
from aceg_ros.networks.keyframe_mixer import KeyframeMixer

MIN_MASS = 0.01                     # of attention, which bounds gradients of keypoints that match nothing
MAX_LOG_CONFIDENCE = 6.0
AXIS_DIM, HEAD_DIM = FREQUENCIES * PAIR, 32
FIRST_AGREEMENT = 4.0               # logit of a landmark where all neighbours point, before training
FIRST_SHARE = 0.01                  # of a mean of neighbours in the coordinates of a keypoint, before training


@dataclass(frozen=True, kw_only=True)
class CrossImageConfig:
    """Sizes and constants.

    dim_in: size of descriptors. width: of tokens; heads: of the attention within an image; mixer_blocks and
    decoder_blocks: their numbers; mlp_ratio. similarity_scale, no_match_similarity: factor of the cosine similarity in
    the logits, and the similarity from which a landmark counts more than no match, both before training. tokens:
    largest number of a keyframe. query_tokens: of an image. early, late: number of keyframes that are fused early and
    late. confident_share: share of the keypoints of an image that the solver takes, the most confident ones.
    canonical_depth: coordinates are scaled so that the median depth of landmarks is this, in units of the encoding's
    periods, since maps have any unit. position_px: pixels that are one unit of positions.
    """

    dim_in: int = 128
    width: int = 128
    heads: int = 2
    mixer_blocks: int = 2
    decoder_blocks: int = 2
    mlp_ratio: int = 2
    similarity_scale: float = 60.0
    no_match_similarity: float = 0.85
    tokens: int = 512
    query_tokens: int = 400
    early: int = 8
    late: int = 20
    confident_share: float = 0.5
    canonical_depth: float = 4.0
    position_px: float = 480.0


class KeyframeTokens(NamedTuple):
    """Mixed tokens of B groups of K keyframes: tokens (B, K, T, width), points (B, K, T, 3) in the canonical scale,
    valid (B, K, T) bool."""

    tokens: Tensor
    points: Tensor
    valid: Tensor


class RegressedCoordinates(NamedTuple):
    """Encodings (B, N, 3, 6, 2) of N keypoints' coordinates, and their confidence (B, N), for B groups of keyframes."""

    encoding: Tensor
    confidence: Tensor


class CrossImageRegressor(nn.Module):
    """Descriptors and positions of an image's keypoints, and groups of keyframes -> coordinates for each group."""

    def __init__(self, config: CrossImageConfig):
        super().__init__()
        self.config = config
        self.embed = _identity(config.dim_in, config.width)
        self.mixer = KeyframeMixer(width=config.width, heads=config.heads, blocks=config.mixer_blocks,
                                   mlp_ratio=config.mlp_ratio)
        self.blocks = nn.ModuleList(_DecoderBlock(config, first=index == 0)
                                    for index in range(config.decoder_blocks))
        self.head = _Head(config)

    def mix(self, descriptors: Tensor, positions: Tensor, points: Tensor, valid: Tensor) -> Tensor:
        """Make the tokens (F, T, width) of keyframes, of unit length, from descriptors (F, T, C) of unit length, pixels
        (F, T, 2) in units of `position_px`, points (F, T, 3) in the canonical scale; valid (F, T): which exist."""
        mixed = self.mixer(self._embedded(descriptors), positions, points, valid)
        return functional.normalize(mixed.float(), dim=-1)

    def forward(self, descriptors: Tensor, positions: Tensor, keyframes: KeyframeTokens) -> RegressedCoordinates:
        """Regress the coordinates of keypoints: descriptors (N, C), of unit length; positions (N, 2) as for `mix`."""
        encoded = encode_coordinates(keyframes.points).flatten(-3)
        heads = self.config.heads
        geometry = ImageGeometry.of(positions[None], heads=heads, dim=self.config.width // heads)
        x, found = self._embedded(descriptors)[None], None
        for block in self.blocks:
            x, found = block(x, found, geometry, keyframes=keyframes, encoded=encoded)
        assert found is not None
        regressed: RegressedCoordinates = self.head(x, found, geometry)
        return regressed

    def _embedded(self, descriptors: Tensor) -> Tensor:
        """Project to the width of tokens, with entries of about one."""
        projected: Tensor = self.embed(descriptors * descriptors.shape[-1] ** 0.5)
        return projected


class _Found(NamedTuple):
    """What cross-attention found for each keypoint: coordinates (B, N, 36), the mean encoding of the landmarks, shorter
    the less they agree; mass (B, N, 1), the share of attention that found a landmark, over all keyframes."""

    coordinates: Tensor
    mass: Tensor


def _identity(dim_in: int, dim_out: int, factor: float = 1.0) -> nn.Linear:
    """Return a projection that starts as the identity, times a factor."""
    linear = nn.Linear(dim_in, dim_out, bias=False)
    nn.init.eye_(linear.weight)
    linear.weight.data *= factor
    return linear


def _zeros(dim_in: int, dim_out: int) -> nn.Linear:
    linear = nn.Linear(dim_in, dim_out)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _lengths(coordinates: Tensor) -> Tensor:
    """Return the length (..., 6) of encodings (..., 36) at each frequency, over the axes: how well landmarks agree."""
    return coordinates.unflatten(-1, (AXES, FREQUENCIES, PAIR)).square().sum((-1, -3)).add(1e-8).div(AXES).sqrt()


def _statistics(found: _Found, context: Tensor | None, heads: int) -> Tensor:
    """Return what can be told about coordinates wherever the origin is (B, N, 7 + 12 H): how well the landmarks of a
    keypoint agree, how much was found, how well its neighbours agree (context: (B, N, H, 36)) and agree with it."""
    own = [_lengths(found.coordinates), (found.mass + 1e-3).log()]
    if context is None:
        return torch.cat([*own, found.mass.new_zeros((*found.mass.shape[:2], 2 * FREQUENCIES * heads))], -1)
    agreement = (context * found.coordinates[:, :, None]).unflatten(-1, (AXES, FREQUENCIES, PAIR)).sum((-1, -3)) / AXES
    return torch.cat([*own, _lengths(context).flatten(-2), agreement.flatten(-2)], -1)


class _DecoderBlock(nn.Module):
    """Self-attention among the keypoints, attention to each keyframe in parallel, averaged; MLP."""

    def __init__(self, config: CrossImageConfig, *, first: bool):
        super().__init__()
        width, self._heads = config.width, config.heads
        self.itself = ImageAttention(width, config.heads)
        self.query, self.key = _identity(width, width), _identity(width, width)
        self.value, self.out = nn.Linear(width, width), _zeros(width, width)
        self.statistics = _zeros(FREQUENCIES + 1 + 2 * FREQUENCIES * config.heads, width)
        self.mlp = ResidualMlp(width, config.mlp_ratio)
        self.log_scale = nn.Parameter(torch.tensor(config.similarity_scale).log())
        self.no_match = nn.Parameter(torch.tensor(config.no_match_similarity * config.similarity_scale))
        share = FIRST_AGREEMENT / (AXES * FREQUENCIES * config.heads)
        # In the first block, the neighbours of a keypoint have no coordinates yet.
        self.agreement = None if first else nn.Parameter(torch.full((config.heads, 1, FREQUENCIES, 1), share))

    def forward(self, x: Tensor, found: _Found | None, geometry: ImageGeometry, *, keyframes: KeyframeTokens,
                encoded: Tensor) -> tuple[Tensor, _Found]:
        averaged = None if found is None else found.coordinates
        x, context = self.itself(x, x, geometry, averaged)
        q = functional.normalize(self.query(x).float(), dim=-1) * self.log_scale.exp()
        expected = None
        if context is not None and self.agreement is not None:
            weighted = context.unflatten(-1, (AXES, FREQUENCIES, PAIR)) * self.agreement
            expected = weighted.sum(2).flatten(-3)
        attended, found = self._attend(q, expected, keyframes, encoded)
        x = x + self.out(attended) + self.statistics(_statistics(found, context, self._heads))
        updated: Tensor = self.mlp(x)
        return updated, found

    def _attend(self, q: Tensor, expected: Tensor | None, keyframes: KeyframeTokens, encoded: Tensor
                ) -> tuple[Tensor, _Found]:
        """Attend from queries (1 or B, N, C) to each of the keyframes (B, K, T, ...), and average what was found.

        expected: (B, N, 36), where the neighbours of each keypoint point; landmarks there are preferred.
        """
        keys = functional.normalize(self.key(keyframes.tokens).float(), dim=-1)
        penalty = torch.where(keyframes.valid, 0.0, MASKED)[..., None]
        keys = torch.cat([keys, encoded, penalty], -1)
        if expected is None:
            expected = q.new_zeros((*q.shape[:2], ENCODING_DIM))
        queries = torch.cat([q, expected.float(), q.new_ones((*q.shape[:2], 1))], -1)
        values = torch.cat([self.value(keyframes.tokens), encoded, torch.ones_like(penalty)], -1)
        # One more key stands for no match. Its value is zero.
        no_match = functional.pad(self.no_match.reshape(1, 1, 1, 1).expand(*keys.shape[:2], 1, 1),
                                  (keys.shape[-1] - 1, 0))
        keys, values = torch.cat([keys, no_match], 2), functional.pad(values, (0, 0, 0, 1))
        queries = queries[:, None].expand(len(keys), keys.shape[1], -1, -1)
        attended = functional.scaled_dot_product_attention(queries, keys, values, scale=1.0)
        summed = attended.float().sum(1)
        mean = summed / (summed[..., -1:] + MIN_MASS)
        split = self.value.out_features
        return mean[..., :split], _Found(mean[..., split:-1], summed[..., -1:])


class _Head(nn.Module):
    """Coordinates and confidence from what each keypoint and its neighbours found.

    Where a keypoint has no landmark of its own, its neighbours have: their mean is a point between theirs. A correction
    of each axis, by the same weights for all three, is added.
    """

    def __init__(self, config: CrossImageConfig):
        super().__init__()
        width, self._heads = config.width, config.heads
        self.itself = ImageAttention(width, config.heads)
        self.norm = nn.LayerNorm(width)
        self.statistics = nn.Linear(FREQUENCIES + 1 + 2 * FREQUENCIES * config.heads, width)
        self.share = _zeros(width, (1 + config.heads) * FREQUENCIES)
        self.to_axis = nn.Linear(width, HEAD_DIM)
        self.axis = nn.Sequential(nn.Linear(AXIS_DIM + HEAD_DIM, 2 * HEAD_DIM), nn.GELU(),
                                  _zeros(2 * HEAD_DIM, AXIS_DIM))
        self.confidence = nn.Sequential(nn.Linear(width, width), nn.GELU(), _zeros(width, 1))

    def forward(self, x: Tensor, found: _Found, geometry: ImageGeometry) -> RegressedCoordinates:
        x, context = self.itself(x, x, geometry, found.coordinates)
        context = context.float()
        x = self.norm(x.float()) + self.statistics(_statistics(found, context, self._heads))
        with torch.autocast(x.device.type, enabled=False):
            x = functional.gelu(x.float())
            own = torch.ones_like(context[:, :, :1, :1]).expand(-1, -1, 1, FREQUENCIES)
            others = torch.full_like(own, FIRST_SHARE).expand(-1, -1, self._heads, FREQUENCIES)
            shares = torch.cat([own, others], 2) + self.share(x).unflatten(-1, (1 + self._heads, FREQUENCIES))
            parts = torch.cat([found.coordinates[:, :, None], context], 2)
            parts = parts.unflatten(-1, (AXES, FREQUENCIES, PAIR))
            encoding = (parts * shares[:, :, :, None, :, None]).sum(2)
            of_axis = self.to_axis(x)[:, :, None].expand(-1, -1, AXES, -1)
            correction = self.axis(torch.cat([encoding.flatten(-2), of_axis], -1))
            encoding = encoding + correction.unflatten(-1, (FREQUENCIES, PAIR))
            log_confidence = self.confidence(x)[..., 0] + 1.0
        return RegressedCoordinates(encoding, log_confidence.clamp(-MAX_LOG_CONFIDENCE, MAX_LOG_CONFIDENCE).exp())
