# SPDX-License-Identifier: Apache-2.0
"""SACReg's encoding of coordinates by periodic functions (Revaud et al., CVPRW 2024): encoding, loss and decoding.

A coordinate t is encoded as [cos f_i t, sin f_i t] for six frequencies, so that a network can regress it with the same
precision wherever the origin of the map is. The longest period bounds the range, the shortest one the precision.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

FREQUENCIES, FIRST_FREQUENCY, FREQUENCY_RATIO = 6, 0.017903170262351338, 3.7079736887249526     # of the paper
AXES, PAIR = 3, 2
ENCODING_DIM = AXES * FREQUENCIES * PAIR
MIN_LENGTH = 1e-6                   # of a pair that is normalised
CANDIDATES, BISECTIONS = 3, 10      # minima that are refined, and how often their bracket is halved


def frequencies(device: torch.device | str = "cpu") -> Tensor:
    """Return the frequencies (6,) in radians per unit, as float64."""
    exponents = torch.arange(FREQUENCIES, dtype=torch.float64, device=device)
    return FIRST_FREQUENCY * FREQUENCY_RATIO**exponents


def encode_coordinates(points: Tensor) -> Tensor:
    """Encode points (..., 3): returns (..., 3, 6, 2), [cos f_i t, sin f_i t] for each axis and frequency, float32."""
    phase = points.double()[..., None] * frequencies(points.device)
    return torch.stack([phase.cos(), phase.sin()], -1).float()


def normalise_pairs(encoding: Tensor) -> Tensor:
    """Scale each pair of an encoding (..., 6, 2) to unit length; pairs of length zero stay zero."""
    return functional.normalize(encoding, dim=-1, eps=MIN_LENGTH)


def coordinate_loss(encoding: Tensor, confidence: Tensor, points: Tensor) -> Tensor:
    """Compute SACReg's loss (...,): confidence * L1 - log confidence.

    Args:
        encoding: (..., 3, 6, 2) of a network; its pairs are normalised first.
        confidence: (...,), positive.
        points: (..., 3), the true ones, which must be finite. L1 is the mean over the 36 numbers of an encoding.
    """
    difference = (normalise_pairs(encoding) - encode_coordinates(points)).abs().flatten(-3).mean(-1)
    return confidence * difference - confidence.log()


def decode_coordinates(encoding: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Decode encodings by probing: the coordinate of each axis whose own encoding is the nearest.

    S(t) = |psi(t) - y|^2 is probed at every pi / (2 f_6) of the range. Where its derivative changes its sign from minus
    to plus there is a minimum; the deepest ones are refined by bisection.

    Args:
        encoding: (N, 3, 6, 2); its pairs are normalised first.
        low: (3,), lower ends of the ranges of the three axes.
        high: (3,), upper ends.

    Returns:
        Points (N, 3) in [low, high], float32.
    """
    target = normalise_pairs(encoding.float())
    axes = [_decode_axis(target[:, axis], float(low[axis]), float(high[axis])) for axis in range(AXES)]
    return torch.stack(axes, 1)


def _decode_axis(target: Tensor, low: float, high: float) -> Tensor:
    """Decode encodings (N, 6, 2) of one axis in a range: (N,)."""
    known = frequencies(target.device)
    step = math.pi / (2.0 * float(known[-1]))
    count = max(2, math.ceil((high - low) / step) + 1)
    probes = torch.linspace(low, high, count, dtype=torch.float64, device=target.device)
    phase = probes[:, None] * known
    cos, sin = phase.cos().float(), phase.sin().float()
    # S is a constant minus twice the agreement; its derivative minus twice the slope.
    agreement = target[..., 0] @ cos.T + target[..., 1] @ sin.T
    f = known.float()
    slope = (target[..., 1] * f) @ cos.T - (target[..., 0] * f) @ sin.T
    is_minimum = (slope[:, :-1] > 0) & (slope[:, 1:] <= 0)
    rough = torch.maximum(agreement[:, :-1], agreement[:, 1:]).masked_fill(~is_minimum, -torch.inf)
    score, bracket = rough.topk(min(CANDIDATES, count - 1), 1)
    left, right = probes[bracket], probes[bracket + 1]
    for _ in range(BISECTIONS):
        middle = 0.5 * (left + right)
        rises = _slope(target, middle, known) > 0
        left, right = torch.where(rises, middle, left), torch.where(rises, right, middle)
    refined = 0.5 * (left + right)
    depth = _agreement(target, refined, known).masked_fill(score.isinf(), -torch.inf)
    # Without a minimum inside, one end of the range is the best.
    ends = probes[agreement.argmax(1)]
    values = torch.cat([depth, agreement.amax(1, keepdim=True).double()], 1)
    choices = torch.cat([refined, ends[:, None]], 1)
    return choices.gather(1, values.argmax(1, keepdim=True))[:, 0].float()


def _agreement(target: Tensor, coordinate: Tensor, known: Tensor) -> Tensor:
    """Return the dot products (N, c) of encodings (N, 6, 2) with those of coordinates (N, c)."""
    phase = coordinate[..., None] * known
    return (target[:, None, :, 0] * phase.cos() + target[:, None, :, 1] * phase.sin()).sum(-1)


def _slope(target: Tensor, coordinate: Tensor, known: Tensor) -> Tensor:
    """Return the derivatives (N, c) of `_agreement` by the coordinate."""
    phase = coordinate[..., None] * known
    return ((target[:, None, :, 1] * phase.cos() - target[:, None, :, 0] * phase.sin()) * known).sum(-1)
