# SPDX-License-Identifier: Apache-2.0
"""Our regressor for method ace_g, with which mapping takes seconds on a CPU.

Unlike ACE-G's, the code of a scene is a set of landmarks instead of learned embeddings, and a patch attends only to the
landmarks with the most similar keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.networks.map_code_transformer import PredictedPoints
from aceg_ros.utils.device import computes_in_bf16

NEIGHBOURHOODS = 2                  # number of radii for which density is computed


@dataclass(frozen=True, kw_only=True)
class LandmarkConfig:
    """Sizes and constants.

    dim_in: size of features. width, heads, blocks: sizes of the transformer. nearest: number of landmarks that a patch
    attends to. vote_radius: radius of the wider neighbourhood in which the patches of an image vote, as a share of the
    scene's extent; that of the narrower one is a third of it. voters: number of patches that vote. similarity_scale:
    factor of the cosine similarity in the logits; it is so large that an untrained regressor returns almost the point
    of the nearest landmark. confident_share: share of an image's patches that are confident, those of smallest sigma.
    search_dim, search_candidates: see `KeySearch`; they find at least 0.9993 of the four nearest keys on real scenes.
    """

    dim_in: int = 128
    width: int = 48
    heads: int = 4
    blocks: int = 1
    nearest: int = 4
    vote_radius: float = 0.3
    voters: int = 200
    similarity_scale: float = 100.0
    confident_share: float = 0.6
    search_dim: int = 80
    search_candidates: int = 2


class LandmarkCode(nn.Module):
    """The code of a scene for `LandmarkRegressor`: keys (n, C) of unit length, points (n, 3) in the map.

    spacing: median distance between neighbouring points, the unit of distances in the network, which makes it
    independent of the scale, position and orientation of the map. radius: of the wider neighbourhood in which the
    patches of an image vote, in map units. density (n, NEIGHBOURHOODS): share of all landmarks around each.
    """

    search: KeySearch
    points: Tensor
    spacing: Tensor
    radius: Tensor
    density: Tensor

    def __init__(self, keys: Tensor, points: Tensor, config: LandmarkConfig):
        super().__init__()
        self.search = KeySearch(functional.normalize(keys.float(), dim=1), config)
        self.register_buffer("points", points.float())
        self.register_buffer("spacing", _spacing(self.points))
        extent = (self.points - self.points.mean(0)).norm(dim=1).median().clamp(min=1e-6)
        self.register_buffer("radius", extent * config.vote_radius)
        self.register_buffer("density", _density(self.points, self.points, self.radius, config.voters))

    @property
    def keys(self) -> Tensor:
        return self.search.keys


def _density(points: Tensor, others: Tensor, radius: Tensor, voters: int) -> Tensor:
    """Return the density of others (m, 3) around points (n, 3): (n, NEIGHBOURHOODS).

    It is the mean Gaussian weight, of width radius / 3 and radius, of a subsample of `voters` of the others.
    """
    some = others[::max(1, len(others) // voters)]
    middle = some.mean(0)
    a, b = (points - middle) / radius, (some - middle) / radius
    minus_squared = torch.addmm(-(b * b).sum(1), a, b.T, alpha=2).sub_((a * a).sum(1, keepdim=True))
    wide = minus_squared.clamp_(max=0).exp_()
    narrow = (wide * wide).mul_(wide)
    narrow = (narrow * narrow).mul_(narrow)                         # to the 9th: a third of the radius
    return torch.stack([narrow.mean(1), wide.mean(1)], 1)


def _spacing(points: Tensor) -> Tensor:
    probe = points[::max(1, len(points) // 256)]
    nearest = torch.cdist(probe, points).topk(min(2, len(points)), largest=False).values[:, -1]
    return nearest.median().clamp(min=1e-6)


def grouped_topk(similarity: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest values of each row of (B, N) and their columns, (B, count) each; N if N < count.

    Faster than `topk`: the largest values are in the groups of columns with the largest maxima, so only these groups
    are searched.
    """
    total = similarity.shape[1]
    group = 32
    if total < 4 * group * count:
        return similarity.topk(min(count, total), 1)
    if total % group:
        similarity = functional.pad(similarity, (0, -total % group), value=-2.0)
    grouped = similarity.unflatten(1, (-1, group))
    groups = grouped.amax(2).topk(count, 1).indices
    candidates = grouped.gather(1, groups[..., None].expand(-1, -1, group)).flatten(1)
    values, index = candidates.topk(count, 1)
    return values, groups.gather(1, index // group) * group + index % group


class KeySearch(nn.Module):
    """Nearest-neighbour search among keys (N, C) by cosine similarity.

    On processors with bf16, `search_candidates` times as many keys as needed are found with approximate similarities
    (in bf16, along the `search_dim` principal axes of the keys), and the best are chosen of these by exact ones.
    """

    keys: Tensor
    axes: Tensor | None
    rough_keys: Tensor | None

    def __init__(self, keys: Tensor, config: LandmarkConfig, rough: bool | None = None):
        super().__init__()
        self.candidates = config.search_candidates
        rough = computes_in_bf16() if rough is None else rough
        # Subtracting the mean from all keys does not change which one is the most similar.
        centred = keys - keys.mean(0)
        axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -config.search_dim:] if rough else None
        self.register_buffer("keys", keys)
        self.register_buffer("axes", axes)
        self.register_buffer("rough_keys", None if axes is None else (centred @ axes).bfloat16())

    def forward(self, features: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Find the most similar keys of each feature (B, C): similarities (B, count) and indices (B, count)."""
        if self.axes is None or self.rough_keys is None:
            return grouped_topk(features @ self.keys.T, count)
        similarity = (features @ self.axes).bfloat16() @ self.rough_keys.T
        _, rough = grouped_topk(similarity.float(), self.candidates * count)
        exact = (functional.embedding(rough, self.keys) * features[:, None]).sum(2)
        values, index = exact.topk(min(count, exact.shape[1]), 1)
        return values, rough.gather(1, index)


class _NeighbourBlock(nn.Module):
    """Self-attention among the candidate landmarks of a patch, biased by the distances of their points; then an MLP."""

    def __init__(self, config: LandmarkConfig):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Linear(_DISTANCE_DIM, config.heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, distance_features: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.bias(distance_features).permute(0, 3, 1, 2)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


_DISTANCE_DIM = 6


def _distance_features(distance: Tensor) -> Tensor:
    """Encode distances (...) in landmark spacings as features (..., 6) at scales from one spacing to a whole room."""
    scales = torch.tensor([1.0, 2.0, 4.0, 10.0, 30.0], device=distance.device)
    return torch.cat([torch.exp(-(distance[..., None] / scales) ** 2), torch.log1p(distance)[..., None] / 4], -1)


class Mixture(NamedTuple):
    """Predicted distributions of the map points of B patches: mixtures with k components each.

    points (B, k, 3): of the candidate landmarks. log_weight (B, k), sigma (B, k): of the components, sigma in map
    units. log_no_match (B,): log probability that none of the landmarks is the right one.
    """

    points: Tensor
    log_weight: Tensor
    sigma: Tensor
    log_no_match: Tensor

    def loss(self, distance: Tensor, sigma: Tensor, no_match_distance: float) -> Tensor:
        """Return the negative log likelihood (B,) of the true points under a mixture of Laplace distributions.

        It is the loss of ACE-G, section 3.3, with more than one component. distance (B, k): of the k points from the
        true one. sigma (B, k): in the same unit. no_match_distance: extent of the uniform no-match component, in the
        same unit.
        """
        matched = self.log_weight - sigma.log() - math.sqrt(2.0) * distance / sigma
        return -torch.cat([matched, self.log_no_match[:, None] - math.log(no_match_distance)], 1).logsumexp(1)


# Names of layers in files of the first release.
_FORMER_NAMES = {"of_query.": "query_projection.", "of_key.": "key_projection.", "of_match.": "match_projection.",
                 "nowhere.": "no_match."}


class LandmarkRegressor(nn.Module):
    """Features (B, dim_in) and landmarks -> coordinates and sigma.

    For each patch, the landmarks with the most similar keys are its candidates. A small transformer weights them by
    their similarity, by the agreement of their points with each other, and by the number of other patches of the image
    that match nearby. The result is the candidate point of highest probability density, averaged with those around it.
    """

    def __init__(self, config: LandmarkConfig):
        super().__init__()
        self.config = config
        self.query_projection = nn.Linear(config.dim_in, config.width)
        self.key_projection = nn.Linear(config.dim_in, config.width)
        self.match_projection = nn.Linear(3 + NEIGHBOURHOODS, config.width)
        self.blocks = nn.ModuleList(_NeighbourBlock(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.weigh = nn.Linear(config.width, 2)                      # weight, log sigma
        self.no_match = nn.Linear(config.width + 1, 1)
        self.sharpness = nn.Parameter(torch.tensor(1.0))
        nn.init.zeros_(self.weigh.weight)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a state dict of this release or of the first."""
        return super().load_state_dict({_present_name(key): value for key, value in state_dict.items()}, *args,
                                       **kwargs)

    def mixture(self, features: Tensor, code: LandmarkCode) -> Mixture:
        """Predict distributions for features (B, dim_in), of unit length, of patches of one image.

        All patches must be of one image, since they vote for each other's candidates.
        """
        similarity, index = code.search(features, self.config.nearest)
        similarity = similarity.float()
        points = code.points[index]
        relative = similarity - similarity[:, :1]
        rank = torch.linspace(0, 1, similarity.shape[1], device=similarity.device).expand_as(similarity)
        # Patches of the image that match in a candidate's neighbourhood, compared with random matches.
        votes = _density(points.flatten(0, 1), points[:, 0], code.radius, self.config.voters)
        lift = ((votes.unflatten(0, similarity.shape) + 1e-3) / (code.density[index] + 1e-3)).log()
        scale = self.config.similarity_scale
        match = torch.stack([similarity, scale / 25 * relative, rank, *lift.unbind(-1)], -1)
        x = functional.gelu(self.query_projection(features)[:, None] + self.key_projection(code.keys[index])
                            + self.match_projection(match))
        distances = _distance_features(torch.cdist(points, points) / code.spacing)
        for block in self.blocks:
            x = block(x, distances)
        x = self.norm(x)
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            raw = self.weigh(x)
            pooled = torch.cat([x.mean(1), similarity[:, :1]], 1)
            logits = torch.cat([raw[..., 0] + scale * self.sharpness * relative, self.no_match(pooled)],
                               1).log_softmax(1)
            sigma = code.spacing * torch.exp(raw[..., 1].clamp(-4.0, 8.0))
        return Mixture(points, logits[:, :-1], sigma, logits[:, -1])

    def forward(self, features: Tensor, code: LandmarkCode) -> PredictedPoints:
        found = self.mixture(functional.normalize(features, dim=1), code)
        # Probability density of the mixture at each candidate's point.
        distance = torch.cdist(found.points, found.points)
        support = (found.log_weight - found.sigma.log())[:, None] - math.sqrt(2.0) * distance / found.sigma[:, None]
        density, best = support.logsumexp(2).max(1)
        row = torch.arange(len(best), device=best.device)
        weight = (support[row, best] - density[:, None]).exp()
        coordinates = (weight[..., None] * found.points).sum(1)
        return PredictedPoints(coordinates, (-density).exp())

    def select_confident(self, sigma: Tensor) -> Tensor:
        """Return the mask (B,) of an image's patches with confident points, by their sigma (B,)."""
        return sigma <= sigma.quantile(self.config.confident_share)


def _present_name(key: str) -> str:
    for former, present in _FORMER_NAMES.items():
        if key.startswith(former):
            return present + key.removeprefix(former)
    return key
