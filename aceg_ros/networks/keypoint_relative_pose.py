# SPDX-License-Identifier: Apache-2.0
"""Our small relative pose network: rates the matches of two images' keypoints, and solves for the pose with weights.

It is symmetric, as Reloc3r, and for known intrinsics. Each match has a token in either image, which knows both rays;
tokens attend to others nearby in their image, and the two of a match exchange what they found. Weights are those of the
match's share of similarity (dual softmax) at first, so that a new network is as good as soft matches and a weighted
eight-point algorithm, and a short training on a CPU begins there. A first pose tells the second half of the network how
well each match agrees with it (as OANet, Zhang et al., ICCV 2019; the pose by weights is that of Yi et al., CVPR 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.networks import weighted_essential
from aceg_ros.networks.image_attention import ImageAttention, ImageGeometry, ResidualMlp
from aceg_ros.utils.maxima import row_maxima

MATCH_SCALE = 20.0                  # of similarities in the dual softmax
MAX_LOG_ODDS = 6.0
MAX_LOG_SIGMA = 1.5
RESIDUAL_UNIT = 0.003               # of Sampson errors that the second half is told
STATISTICS = 3                      # similarity and both shares of it
STATISTICS_SCALES = (4.0, 1.0, 1.0)
RESIDUALS = 2


@dataclass(frozen=True, kw_only=True)
class KeypointPoseConfig:
    """Sizes. dim_in: of descriptors. keypoints: of an image, at most. matches: of a pair, at most. width: of tokens;
    heads, mlp_ratio. blocks: of each half. frequencies: of the encoding of rays. round_scales, refinement_scales: of
    robust weights in the rounds of the eight-point algorithm and in the refinement, as tangents."""

    dim_in: int = 128
    keypoints: int = 1000
    matches: int = 384
    width: int = 64
    heads: int = 4
    mlp_ratio: int = 2
    blocks: int = 3
    frequencies: int = 4
    round_scales: tuple[float, ...] = (0.05, 0.02, 0.01, 0.005)
    refinement_scales: tuple[float, ...] = (0.02, 0.01, 0.005, 0.003, 0.002, 0.002)


class MatchTokens(NamedTuple):
    """T matches of B pairs of images, the most similar first.

    first_rays, second_rays (B, T, 2): x and y at unit depth. descriptors (B, T, 2, C): of both keypoints, of unit
    length. statistics (B, T, 3): similarity, and log shares of it among the keypoints of either image. valid (B, T).
    """

    first_rays: Tensor
    second_rays: Tensor
    descriptors: Tensor
    statistics: Tensor
    valid: Tensor


class RatedMatches(NamedTuple):
    """logits: of each half of the network (B, T), whether a match is right. essential: (B, 3, 3) of each half, double.
    log_sigma (B,): of the angles of rotation and direction, radians."""

    logits: tuple[Tensor, Tensor]
    essential: tuple[Tensor, Tensor]
    log_sigma: Tensor


class PredictedPose(NamedTuple):
    """first_from_second: rotation (B, 3, 3), direction (B, 3) of unit length from the first to the second camera,
    double; log_sigma (B,) of the angles of both, radians; weights (B, T) of the matches, 0 to 1."""

    rotation: Tensor
    direction: Tensor
    log_sigma: Tensor
    weights: Tensor


class MatchedRows(NamedTuple):
    """M matches of two images, the most similar first: rows and columns (M,) of their keypoints, statistics (M, 3)."""

    rows: Tensor
    columns: Tensor
    statistics: Tensor


def match_keypoints(first: Tensor, second: Tensor, count: int) -> MatchedRows:
    """Match descriptors (N, C) and (M, C) of unit length: mutual nearest neighbours, at most `count`, those first whose
    share of the similarity is largest."""
    if len(first) == 0 or len(second) == 0:
        none = torch.zeros(0, dtype=torch.int64, device=first.device)
        return MatchedRows(none, none, torch.zeros(0, STATISTICS, device=first.device))
    similarity = (first @ second.T).float()
    best, column = row_maxima(similarity)
    rows = (row_maxima(similarity.T.contiguous())[1][column] == torch.arange(len(first), device=first.device)
            ).nonzero()[:, 0]
    columns, best = column[rows], best[rows]
    own = (MATCH_SCALE * (similarity[rows] - best[:, None])).exp().sum(1).log().neg()
    others = (MATCH_SCALE * (similarity[:, columns] - best)).exp().sum(0).log().neg()
    order = (own + others).argsort(descending=True, stable=True)[:count]
    return MatchedRows(rows[order], columns[order], torch.stack([best, own, others], 1)[order])


def stack_matches(pairs: list[tuple[Tensor, Tensor, Tensor, Tensor]], count: int) -> MatchTokens:
    """Stack matches of B pairs - rays (M, 2), (M, 2), descriptors (M, 2, C), statistics (M, 3) - to T = count each."""
    parts = [torch.stack([functional.pad(part, (0, 0) * (part.ndim - 1) + (0, count - len(part))) for part in each])
             for each in zip(*pairs, strict=True)]
    lengths = torch.tensor([len(pair[0]) for pair in pairs], device=parts[0].device)
    valid = torch.arange(count, device=lengths.device) < lengths[:, None]
    first, second, descriptors, statistics = parts
    return MatchTokens(first_rays=first, second_rays=second, descriptors=descriptors, statistics=statistics,
                       valid=valid)


class _Block(nn.Module):
    """Attention among the tokens of each image; exchange between the two of each match, and with all; MLP."""

    def __init__(self, config: KeypointPoseConfig):
        super().__init__()
        self.itself = ImageAttention(config.width, config.heads)
        self.exchange = nn.Linear(2 * config.width, config.width)
        nn.init.zeros_(self.exchange.weight)
        nn.init.zeros_(self.exchange.bias)
        self.norm = nn.LayerNorm(config.width)
        self.mlp = ResidualMlp(config.width, config.mlp_ratio)

    def forward(self, x: Tensor, geometry: ImageGeometry, weights: Tensor) -> Tensor:
        """x (2B, T, width): of the first images, then of the second. weights (2B, T): of matches, for what all share.
        """
        x, _ = self.itself(x, x, geometry)
        y = self.norm(x)
        share = weights / weights.sum(1, keepdim=True).clamp(min=1e-3)
        common = (share[..., None].to(y.dtype) * y).sum(1, keepdim=True).expand(-1, y.shape[1], -1)
        x = x + self.exchange(torch.cat([y.roll(len(y) // 2, 0), common], 2))
        updated: Tensor = self.mlp(x)
        return updated


class KeypointPoseNet(nn.Module):
    """Matches of two images -> how right each is, and the relative pose."""

    def __init__(self, config: KeypointPoseConfig):
        super().__init__()
        self.config, width = config, config.width
        self.embed_rays = nn.Linear(3 * 2 * (1 + 2 * config.frequencies) + 9, width)
        self.embed_statistics = nn.Sequential(nn.Linear(STATISTICS, width), nn.GELU(), nn.Linear(width, width))
        self.embed_descriptors = nn.Linear(2 * config.dim_in, width)
        self.embed_residuals = nn.Sequential(nn.Linear(RESIDUALS, width), nn.GELU(), nn.Linear(width, width))
        self.halves = nn.ModuleList(nn.ModuleList(_Block(config) for _ in range(config.blocks)) for _ in range(2))
        self.heads = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(),
                                                 nn.Linear(width, 1)) for _ in range(2))
        self.confidence = nn.Sequential(nn.Linear(width + 3, width), nn.GELU(), nn.Linear(width, 1))
        for part in (*self.heads, self.confidence):
            for value in list(part.children())[-1].parameters():
                nn.init.zeros_(value)

    def forward(self, matches: MatchTokens) -> PredictedPose:
        """Predict the relative poses, refined on the weighted matches."""
        rated = self.rate(matches)
        weights = rated.logits[1].sigmoid() * matches.valid
        rotation, direction = self.pose_of(rated.essential[1], matches, weights)
        return PredictedPose(rotation, direction, rated.log_sigma, weights)

    def weights(self, matches: MatchTokens) -> Tensor:
        """Return how right matches are (B, T), 0 to 1."""
        return self.rate(matches).logits[1].sigmoid() * matches.valid

    def rate(self, matches: MatchTokens) -> RatedMatches:
        """Rate the matches in two halves, with the essential matrix of each half's weights."""
        first, second = matches.first_rays, matches.second_rays
        both = torch.cat([first, second])
        other, valid = both.roll(len(first), 0), matches.valid.repeat(2, 1)
        geometry = ImageGeometry.of(both, valid, heads=self.config.heads, dim=self.config.width // self.config.heads)
        a, b = matches.descriptors.unbind(2)
        alike = self.embed_descriptors(torch.cat([a * b * self.config.dim_in, (a + b) * self.config.dim_in**0.5], 2))
        # The share among the keypoints of its own image comes first.
        statistics = matches.statistics * both.new_tensor(STATISTICS_SCALES)
        statistics = torch.cat([statistics, statistics[..., [0, 2, 1]]])
        x = self.embed_rays(self._encoded(both, other)) + alike.repeat(2, 1, 1) + self.embed_statistics(statistics)
        logits, found, matrices = _first_logits(matches), list[Tensor](), list[Tensor]()
        for number, (blocks, head) in enumerate(zip(self.halves, self.heads, strict=True)):
            assert isinstance(blocks, nn.ModuleList)
            weights = (logits.float().sigmoid() * matches.valid).repeat(2, 1)
            if number == 1:
                x = x + self.embed_residuals(self._residuals(matrices[0], matches)).repeat(2, 1, 1)
            for block in blocks:
                x = block(x, geometry, weights)
            logits = logits + head(x).float().unflatten(0, (2, -1)).mean(0)[..., 0]
            found.append(logits)
            matrices.append(weighted_essential.solve_essential(homogeneous(first), homogeneous(second),
                                                               logits.sigmoid() * matches.valid,
                                                               self.config.round_scales))
        return RatedMatches((found[0], found[1]), (matrices[0], matrices[1]), self._log_sigma(x, logits, matches))

    @torch.no_grad()
    def pose_of(self, essential: Tensor, matches: MatchTokens, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return rotation (B, 3, 3) and direction (B, 3) of essential matrices (B, 3, 3), refined on the matches."""
        first, second = homogeneous(matches.first_rays).double(), homogeneous(matches.second_rays).double()
        pose = weighted_essential.decompose(essential, first, second, weights)
        return weighted_essential.refine(pose, first, second, weights, scales=self.config.refinement_scales)

    def _encoded(self, own: Tensor, other: Tensor) -> Tensor:
        """Encode both rays, the motion, and all products, which an essential matrix is linear in."""
        base = torch.cat([own, other, other - own], 2)
        turns = torch.cat([base * (2.0**k * torch.pi) for k in range(self.config.frequencies)], -1)
        products = (homogeneous(own)[..., :, None] * homogeneous(other)[..., None, :]).flatten(2)
        return torch.cat([base, turns.sin(), turns.cos(), products], 2)

    def _residuals(self, essential: Tensor, matches: MatchTokens) -> Tensor:
        """Return how well the matches agree with the first pose (B, T, 2)."""
        errors = weighted_essential.sampson_errors(essential.detach(), homogeneous(matches.first_rays).double(),
                                                   homogeneous(matches.second_rays).double()).abs() / RESIDUAL_UNIT
        return torch.stack([errors.log1p() / 2.0, 1.0 / (1.0 + errors.square())], 2).float()

    def _log_sigma(self, x: Tensor, logits: Tensor, matches: MatchTokens) -> Tensor:
        weights = logits.detach().sigmoid() * matches.valid
        total = weights.sum(1, keepdim=True)
        tokens = (x.float().unflatten(0, (2, -1)).mean(0) * weights[..., None]).sum(1) / total.clamp(min=1e-3)
        count = matches.valid.sum(1, keepdim=True)
        numbers = torch.cat([total.clamp(min=0.1).log(), count.clamp(min=1).log(), total / count.clamp(min=1)], 1)
        result: Tensor = self.confidence(torch.cat([tokens, numbers], 1).to(x.dtype)).float()[:, 0] - 1.0
        return result.clamp(-6.0, MAX_LOG_SIGMA)


def homogeneous(rays: Tensor) -> Tensor:
    """Return rays (..., 3) at unit depth of their x and y (..., 2)."""
    return functional.pad(rays, (0, 1), value=1.0)


def _first_logits(matches: MatchTokens) -> Tensor:
    """Return the log odds (B, T) of the dual softmax."""
    log_share = matches.statistics[..., 1:].sum(2).clamp(max=-1e-3)
    odds: Tensor = log_share - torch.log1p(-log_share.exp())
    return odds.clamp(-MAX_LOG_ODDS, MAX_LOG_ODDS)
