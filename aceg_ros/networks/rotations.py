# SPDX-License-Identifier: Apache-2.0
"""Rotation matrices from what networks put out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def rotation_from_two_rows(first: Tensor, second: Tensor) -> Tensor:
    """Return the rotations (B, 3, 3) whose first row is along `first` (B, 3), the second towards `second` (B, 3).

    Gram-Schmidt (Zhou et al., CVPR 2019).
    """
    x = functional.normalize(first, dim=1)
    y = functional.normalize(second - (x * second).sum(1, keepdim=True) * x, dim=1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], 1)


def nearest_rotation(matrices: Tensor) -> Tensor:
    """Return the rotations (B, 3, 3) nearest to matrices whose rows are normalised first.

    It has no derivative where singular values agree.
    """
    return project_to_rotations(functional.normalize(matrices, dim=2))


def project_to_rotations(matrices: Tensor) -> Tensor:
    """Return the rotations (..., 3, 3) nearest to matrices as they are; no derivative where singular values agree."""
    u, _, vh = torch.linalg.svd(matrices)
    sign = torch.ones_like(matrices[..., 0])
    sign[..., 2] = torch.det(u @ vh).sign()
    return (u * sign[..., None, :]) @ vh


def skew(vectors: Tensor) -> Tensor:
    """Return the matrices (..., 3, 3) of the cross product with vectors (..., 3)."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def rotation_from_vector(vectors: Tensor) -> Tensor:
    """Return the rotations (B, 3, 3) about vectors (B, 3) by their length in radians."""
    return torch.linalg.matrix_exp(skew(vectors))
