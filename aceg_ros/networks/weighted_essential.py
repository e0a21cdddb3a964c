# SPDX-License-Identifier: Apache-2.0
"""Relative poses of B pairs of images from T weighted matches each: eight-point algorithm, decomposition, refinement.

Matches are rays (B, T, 3) at unit depth. An essential matrix E fulfils first^T E second = 0, and is [t]x R of
first_from_second. All is computed in double precision; the eight-point algorithm has derivatives by the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aceg_ros.networks.rotations import rotation_from_vector, skew

MIN_GAP = 1e-9                      # added to the matrix of the eight-point algorithm, whose eigenvalues then differ
DAMPING = 1e-9
SMALL = 1e-12


def solve_essential(first: Tensor, second: Tensor, weights: Tensor, scales: Sequence[float]) -> Tensor:
    """Solve for the essential matrices (B, 3, 3), of norm 1, by the weighted eight-point algorithm (Hartley 1997), some
    times, since a few wrong matches of little weight spoil the first: then those far from their lines weigh less.

    Args:
        first, second: rays (B, T, 3) at unit depth.
        weights: (B, T), not negative.
        scales: of the robust weights in further rounds, as tangents.
    """
    first, second, weights = first.double(), second.double(), weights.double()
    essential = _solve_once(first, second, weights)
    for scale in scales:
        errors = sampson_errors(essential.detach(), first, second)
        essential = _solve_once(first, second, weights / (1.0 + (errors / scale).square()))
    return essential


def _solve_once(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    weights = weights / weights.sum(1, keepdim=True).clamp(min=SMALL)
    from_first, from_second = _normaliser(first, weights), _normaliser(second, weights)
    a, b = first @ from_first.mT, second @ from_second.mT
    rows = (a[..., :, None] * b[..., None, :]).flatten(2)
    matrix = rows.mT @ (rows * weights[..., None])
    matrix = matrix + MIN_GAP * torch.diag(torch.arange(9, dtype=torch.float64, device=matrix.device))
    normal = torch.linalg.eigh(matrix).eigenvectors[..., 0].unflatten(1, (3, 3))
    essential = from_first.mT @ normal @ from_second
    return essential / essential.flatten(1).norm(dim=1).clamp(min=SMALL)[:, None, None]


def _normaliser(rays: Tensor, weights: Tensor) -> Tensor:
    """Return matrices (B, 3, 3) that bring the weighted mean of rays to zero and their spread to the root of two."""
    with torch.no_grad():
        mean = (weights[..., None] * rays[..., :2]).sum(1)
        spread = (weights[..., None] * (rays[..., :2] - mean[:, None]).square()).sum((1, 2)).sqrt().clamp(min=1e-4)
        scale = 2.0**0.5 / spread
        matrix = torch.diag_embed(torch.stack([scale, scale, torch.ones_like(scale)], 1))
        matrix[:, :2, 2] = -scale[:, None] * mean
    return matrix


def sampson_errors(essential: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return the signed Sampson errors (B, T) of matches, as tangents of angles near the optical axis."""
    lines, back = second @ essential.mT, first @ essential
    product = (first * lines).sum(2)
    length = (lines[..., :2].square().sum(2) + back[..., :2].square().sum(2)).clamp(min=SMALL).sqrt()
    return product / length


def decompose(essential: Tensor, first: Tensor, second: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return rotations (B, 3, 3) and unit translations (B, 3) of first_from_second.

    Of the four poses that an essential matrix has, that in front of whose cameras most of the weight lies.
    """
    u, _, vh = torch.linalg.svd(essential.double())
    u, vh = (part * torch.det(part).sign()[:, None, None] for part in (u, vh))
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64, device=u.device)
    rotations = torch.stack([u @ turn @ vh, u @ turn.T @ vh], 1).repeat_interleave(2, 1)           # (B, 4, 3, 3)
    translations = torch.stack([u[..., 2], -u[..., 2]], 1).repeat(1, 2, 1)
    votes = _votes(rotations, translations, first.double(), second.double(), weights=weights.double())
    best, batch = votes.argmax(1), torch.arange(len(votes), device=u.device)
    return rotations[batch, best], translations[batch, best]


def _votes(rotations: Tensor, translations: Tensor, first: Tensor, second: Tensor, *, weights: Tensor) -> Tensor:
    """Return the weight (B, 4) of the matches that lie in front of both cameras, of four poses."""
    a, b = first[:, None], second[:, None] @ rotations.mT                                          # (B, 4, T, 3)
    t = translations[:, :, None]
    ab, at, bt = (a * b).sum(3), (a * t).sum(3), (b * t).sum(3)
    aa, bb = a.square().sum(3), b.square().sum(3)
    # Depths where both rays are nearest to each other, times a determinant that is positive.
    in_front = (at * bb - ab * bt > 0) & (ab * at - aa * bt > 0)
    return (weights[:, None] * in_front).sum(2)


@torch.no_grad()
def refine(pose: tuple[Tensor, Tensor], first: Tensor, second: Tensor, weights: Tensor, *, scales: Sequence[float]
           ) -> tuple[Tensor, Tensor]:
    """Refine rotations (B, 3, 3) and unit translations (B, 3) by Gauss-Newton on Sampson errors of weighted matches.

    scales: of the robust weights (Geman-McClure), as tangents, one for each step.
    """
    rotation, translation = (part.double() for part in pose)
    first, second, weights = first.double(), second.double(), weights.double()
    for scale in scales:
        essential = skew(translation) @ rotation
        turned, back, lines = second @ rotation.mT, first @ essential, second @ essential.mT
        length = (lines[..., :2].square().sum(2) + back[..., :2].square().sum(2)).clamp(min=SMALL).sqrt()
        error = (first * lines).sum(2) / length
        across = torch.linalg.svd(translation[:, None]).Vh[:, 1:]                                  # (B, 2, 3)
        jacobian = torch.cat([torch.linalg.cross(second, back), torch.linalg.cross(turned, first) @ across.mT], 2)
        jacobian = jacobian / length[..., None]
        robust = weights / (1.0 + (error / scale).square()).square()
        robust = robust / robust.sum(1, keepdim=True).clamp(min=SMALL)
        normal = jacobian.mT @ (jacobian * robust[..., None])
        normal = normal + DAMPING * torch.eye(5, dtype=torch.float64, device=normal.device)
        step = -torch.linalg.solve(normal, (jacobian * (robust * error)[..., None]).sum(1))
        step = step * (0.3 / step.norm(dim=1, keepdim=True).clamp(min=0.3))
        rotation = rotation @ rotation_from_vector(step[:, :3])
        translation = torch.nn.functional.normalize(translation + (step[:, 3:, None] * across).sum(1), dim=1)
    return rotation, translation
