"""Our regressor in the place of ACE-G's, for maps in seconds on a CPU: codes are landmarks, not noise to be optimised,
and a patch attends to its nearest codes alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.networks.map_code_transformer import Regressed
from aceg_ros.utils.device import computes_in_bf16

VOTE_RADII, VOTERS = (0.1, 0.3), 200   # in shares of the scene's extent; patches that vote
SURE_SHARE = 0.6
ROUGH_DIM, CANDIDATES = 80, 2          # 0.9993 of the four nearest and more are found so on real scenes
SHARP = 100.0          # an untrained regressor is the nearest landmark, nearly


class LandmarkCode(nn.Module):
    """What a place is to `LandmarkRegressor`: keys (n, C) of unit length, points (n, 3) in the map.

    spacing: median distance from a point to its nearest neighbour; what the network says of distances is in its units,
    so that maps of any scale, place and direction are alike to it. radii (R,): of neighbourhoods in which the patches
    of a picture vote; crowd (n, R): what share of all codes is around each.
    """

    search: Search
    points: Tensor
    spacing: Tensor
    radii: Tensor
    crowd: Tensor

    def __init__(self, keys: Tensor, points: Tensor):
        super().__init__()
        self.search = Search(functional.normalize(keys.float(), dim=1))
        self.register_buffer("points", points.float())
        self.register_buffer("spacing", _spacing(self.points))
        extent = (self.points - self.points.mean(0)).norm(dim=1).median().clamp(min=1e-6)
        self.register_buffer("radii", extent * torch.tensor(VOTE_RADII, device=extent.device))
        self.register_buffer("crowd", _near(self.points, self.points, self.radii))

    @property
    def keys(self) -> Tensor:
        return self.search.keys


def _near(points: Tensor, others: Tensor, radii: Tensor) -> Tensor:
    """Share (n, R) of the others (m, 3) that are around each of the points (n, 3), softly counted; VOTERS of the others
    speak for all."""
    some = others[::max(1, len(others) // VOTERS)]
    middle = some.mean(0)
    a, b = (points - middle) / radii[-1], (some - middle) / radii[-1]
    minus_squared = torch.addmm(-(b * b).sum(1), a, b.T, alpha=2).sub_((a * a).sum(1, keepdim=True))
    wide = minus_squared.clamp_(max=0).exp_()
    narrow = (wide * wide).mul_(wide)
    narrow = (narrow * narrow).mul_(narrow)                                     # VOTE_RADII are 1 : 3
    return torch.stack([narrow.mean(1), wide.mean(1)], 1)


def _spacing(points: Tensor) -> Tensor:
    probe = points[::max(1, len(points) // 256)]
    nearest = torch.cdist(probe, points).topk(min(2, len(points)), largest=False).values[:, -1]
    return nearest.median().clamp(min=1e-6)


@dataclass(frozen=True)
class LandmarkSize:
    dim_in: int = 128
    width: int = 48
    heads: int = 4
    blocks: int = 1
    nearest: int = 4


def nearest(similarity: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest (B, count) of each row of (B, N), or all of fewer, and where they are.

    The largest of all lie in the groups with the largest maxima, so that only those are sorted.
    """
    total = similarity.shape[1]
    group = 32
    if total < 4 * group * count:
        return similarity.topk(min(count, total), 1)
    if total % group:
        similarity = functional.pad(similarity, (0, -total % group), value=-2.0)
    grouped = similarity.unflatten(1, (-1, group))
    groups = grouped.amax(2).topk(count, 1).indices
    among = grouped.gather(1, groups[..., None].expand(-1, -1, group)).flatten(1)
    values, where = among.topk(count, 1)
    return values, groups.gather(1, where // group) * group + where % group


class Search(nn.Module):
    """Which of the keys (N, C) are most similar to a feature.

    Where the processor computes in bf16, candidates are chosen by the ROUGH_DIM principal axes of the keys and in bf16,
    CANDIDATES times as many as are asked for, and these compared exactly.
    """

    keys: Tensor
    axes: Tensor | None
    rough_keys: Tensor | None

    def __init__(self, keys: Tensor, rough: bool | None = None):
        super().__init__()
        rough = computes_in_bf16() if rough is None else rough
        # Which key is the most similar does not depend on what is added to all of them.
        centred = keys - keys.mean(0)
        axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -ROUGH_DIM:] if rough else None
        self.register_buffer("keys", keys)
        self.register_buffer("axes", axes)
        self.register_buffer("rough_keys", None if axes is None else (centred @ axes).bfloat16())

    def forward(self, features: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Similarity (B, count) of each feature (B, C) to its most similar keys, and which these are (B, count)."""
        if self.axes is None or self.rough_keys is None:
            return nearest(features @ self.keys.T, count)
        similarity = (features @ self.axes).bfloat16() @ self.rough_keys.T
        _, rough = nearest(similarity.float(), CANDIDATES * count)
        exact = (functional.embedding(rough, self.keys) * features[:, None]).sum(2)
        values, where = exact.topk(min(count, exact.shape[1]), 1)
        return values, rough.gather(1, where)


class _NeighbourBlock(nn.Module):
    """Self-attention among the codes near a patch, biased by how far apart their points are; then an MLP."""

    def __init__(self, size: LandmarkSize):
        super().__init__()
        width = size.width
        self.heads = size.heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Linear(_DISTANCE_DIM, size.heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, apart: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.bias(apart).permute(0, 3, 1, 2)
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        x = x + self.proj(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


_DISTANCE_DIM = 6


def _distance_features(apart: Tensor) -> Tensor:
    """(..., 6) of distances (...) in code spacings: from within a spacing to across the room."""
    scales = torch.tensor([1.0, 2.0, 4.0, 10.0, 30.0], device=apart.device)
    return torch.cat([torch.exp(-(apart[..., None] / scales) ** 2), torch.log1p(apart)[..., None] / 4], -1)


class Mixture(NamedTuple):
    """Where a patch may be: at one of k codes' points (B, k, 3) with log_weight (B, k), off by sigma (B, k) map units,
    or, log_nowhere (B,), at none of them."""

    points: Tensor
    log_weight: Tensor
    sigma: Tensor
    log_nowhere: Tensor

    def loss(self, distance: Tensor, sigma: Tensor, nowhere: float) -> Tensor:
        """Negative log likelihood (B,) of distances (B, k) of the k points from the truth, of a Laplace distribution
        with sigma (B, k) in the same unit (ACE-G, section 3.3, over more than one place); `nowhere`: the distance that
        the absence of the truth is as good as."""
        at_codes = self.log_weight - sigma.log() - math.sqrt(2.0) * distance / sigma
        return -torch.cat([at_codes, self.log_nowhere[:, None] - math.log(nowhere)], 1).logsumexp(1)


class LandmarkRegressor(nn.Module):
    """Features (B, dim_in) and landmarks -> coordinates and sigma.

    Each patch finds its nearest codes by their keys; a small transformer over these weighs them by how well they match,
    by whether their points support each other, and by how many other patches of the picture point there; the answer is
    the likeliest point, averaged with those around it.
    """

    def __init__(self, size: LandmarkSize):
        super().__init__()
        self.size = size
        self.of_query, self.of_key = nn.Linear(size.dim_in, size.width), nn.Linear(size.dim_in, size.width)
        self.of_match = nn.Linear(3 + len(VOTE_RADII), size.width)
        self.blocks = nn.ModuleList(_NeighbourBlock(size) for _ in range(size.blocks))
        self.norm = nn.LayerNorm(size.width)
        self.weigh = nn.Linear(size.width, 2)                      # weight, log sigma
        self.nowhere = nn.Linear(size.width + 1, 1)
        self.sharpness = nn.Parameter(torch.tensor(1.0))
        nn.init.zeros_(self.weigh.weight)

    def mixture(self, features: Tensor, code: LandmarkCode) -> Mixture:
        """features (B, dim_in), of unit length, of patches of one picture: they vote for each other's candidates."""
        similarity, index = code.search(features, self.size.nearest)
        similarity = similarity.float()
        points = code.points[index]
        rank = torch.linspace(0, 1, similarity.shape[1], device=similarity.device).expand_as(similarity)
        # How many more patches of the picture point to a candidate's neighbourhood than chance would send there.
        votes = _near(points.flatten(0, 1), points[:, 0], code.radii).unflatten(0, similarity.shape)
        lift = ((votes + 1e-3) / (code.crowd[index] + 1e-3)).log()
        match = torch.stack([similarity, SHARP / 25 * (similarity - similarity[:, :1]), rank, *lift.unbind(-1)], -1)
        x = functional.gelu(self.of_query(features)[:, None] + self.of_key(code.keys[index]) + self.of_match(match))
        apart = _distance_features(torch.cdist(points, points) / code.spacing)
        for block in self.blocks:
            x = block(x, apart)
        x = self.norm(x)
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            raw = self.weigh(x)
            pooled = torch.cat([x.mean(1), similarity[:, :1]], 1)
            logits = torch.cat([raw[..., 0] + SHARP * self.sharpness * (similarity - similarity[:, :1]),
                                self.nowhere(pooled)], 1).log_softmax(1)
            sigma = code.spacing * torch.exp(raw[..., 1].clamp(-4.0, 8.0))
        return Mixture(points, logits[:, :-1], sigma, logits[:, -1])

    def forward(self, features: Tensor, code: LandmarkCode) -> Regressed:
        found = self.mixture(functional.normalize(features, dim=1), code)
        # How likely each code's point is to be the place, by all of them.
        apart = torch.cdist(found.points, found.points)
        support = (found.log_weight - found.sigma.log())[:, None] - math.sqrt(2.0) * apart / found.sigma[:, None]
        density, best = support.logsumexp(2).max(1)
        row = torch.arange(len(best), device=best.device)
        near = (support[row, best] - density[:, None]).exp()
        coordinates = (near[..., None] * found.points).sum(1)
        return Regressed(coordinates, (-density).exp())


def surest(sigma: Tensor) -> Tensor:
    """The patches (B,) of a picture whose points the solver should see: the better SURE_SHARE of them."""
    return sigma <= sigma.quantile(SURE_SHARE)
