# SPDX-License-Identifier: Apache-2.0
"""Solves for the pose that a weighted set of 2D-3D correspondences agrees with best; differentiable in the weights.

The error of a correspondence is how far its point is from its viewing ray, across the optical axis. Without the
position, which follows from the rotation, the sum of the squared errors is a quadratic function of the nine entries of
the rotation matrix (SQPnP, Terzakis and Lourakis, ECCV 2020): however many correspondences there are, only a 9x9 matrix
is left. Its smallest eigenvectors tell where the minima may be, so no starting pose is needed, and no sampling.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aceg_ros.networks.rotations import project_to_rotations, rotation_from_vector

STARTS, STEPS = 3, 5                # eigenvectors that are tried, in both directions; Gauss-Newton steps from each
DAMPING, RIDGE, MIN_CURVATURE = 1e-4, 1e-9, 1e-2
BEHIND = 1e3                        # factor of the error of a pose from which most of the points are behind the camera
# Q = sum of PRODUCTS[k] q_k with q = (1, u, v, u^2 + v^2) is the squared error of (x, y, z) at the ray (u, v, 1).
_PRODUCTS = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 0, 0]], [[0, 0, -1], [0, 0, 0], [-1, 0, 0]],
                          [[0, 0, 0], [0, 0, -1], [0, -1, 0]], [[0, 0, 0], [0, 0, 0], [0, 0, 1]]], dtype=torch.float64)
_TURNS = torch.tensor([[[0.0, 0, 0], [0, 0, -1], [0, 1, 0]], [[0, 0, 1], [0, 0, 0], [-1, 0, 0]],
                       [[0, -1, 0], [1, 0, 0], [0, 0, 0]]], dtype=torch.float64)


def solve_weighted_pose(points: Tensor, rays: Tensor, weights: Tensor, start: Tensor | None = None
                        ) -> tuple[Tensor, Tensor]:
    """Find the poses that minimise the sum of weighted squared errors.

    Gradients with respect to the weights (and points) are those of one Gauss-Newton step at the minimum.

    Args:
        points: (B, N, 3) in any frame.
        rays: (B, N, 2), x / z and y / z of the viewing rays.
        weights: (B, N), positive; the error of a point is not divided by its depth, so weights should be, squared.
        start: (B, 3, 3) rotations from the points to the camera, tried beside those that the eigenvectors give.

    Returns:
        Rotations (B, 3, 3) and translations (B, 3) from the points to the camera, in double precision.
    """
    points, rays, weights = points.double(), rays.double(), weights.double()
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-30)
    centre = (weights[..., None] * points).sum(1, keepdim=True)
    form, position = _quadratic_form(points - centre, rays, weights)
    with torch.no_grad():
        rotation = _best_rotation(form, position, start)
    gradient, hessian = _derivatives(form, rotation)
    step = torch.linalg.solve(_with_curvature(hessian.detach(), form.detach(), rotation), gradient)
    rotation = rotation_from_vector(-step) @ rotation
    translation = (position @ rotation.flatten(1)[..., None])[..., 0] - (rotation @ centre.transpose(1, 2))[..., 0]
    return rotation, translation


def _quadratic_form(points: Tensor, rays: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the matrix (B, 9, 9) of the error as a function of the rows of the rotation, and the matrix (B, 3, 9) that
    gives the translation for them."""
    ones = torch.ones_like(points[..., :1])
    homogeneous = torch.cat([points, ones], -1)
    factors = torch.cat([ones, rays, rays.square().sum(-1, keepdim=True)], -1) * weights[..., None]
    products = (homogeneous[..., :, None] * homogeneous[..., None, :]).flatten(2)
    moments = (factors.transpose(1, 2) @ products).unflatten(2, (4, 4))
    full = torch.einsum("kij,bkpq->bipjq", _PRODUCTS.to(points.device), moments)
    of_rotation = full[:, :, :3, :, :3].flatten(1, 2).flatten(2)
    mixed = full[:, :, 3, :, :3].flatten(2)
    of_translation = full[:, :, 3, :, 3]
    ridge = RIDGE * torch.eye(3, dtype=full.dtype, device=full.device)
    position = -torch.linalg.solve(of_translation + ridge, mixed)
    form = of_rotation + mixed.transpose(1, 2) @ position
    return (form + form.transpose(1, 2)) / 2, position


def _best_rotation(form: Tensor, position: Tensor, start: Tensor | None) -> Tensor:
    """Return the rotation (B, 3, 3) of the least error among the local minima that are found."""
    smallest = torch.linalg.eigh(form).eigenvectors[..., :STARTS].transpose(1, 2).unflatten(2, (3, 3))
    candidates = project_to_rotations(torch.cat([smallest, -smallest], 1))
    if start is not None:
        candidates = torch.cat([candidates, start.to(candidates)[:, None]], 1)
    count = candidates.shape[1]
    rotation, forms = candidates.flatten(0, 1), form.repeat_interleave(count, 0)
    for _ in range(STEPS):
        gradient, hessian = _derivatives(forms, rotation)
        rotation = rotation_from_vector(-torch.linalg.solve(hessian, gradient)) @ rotation
    entries = rotation.flatten(1)[..., None]
    error = (entries * (forms @ entries)).sum((1, 2)).clamp(min=0)
    depth = (position.repeat_interleave(count, 0) @ entries)[:, 2, 0]
    error = (error + 1e-12) * torch.where(depth > 0, 1.0, BEHIND)
    best = error.unflatten(0, (-1, count)).argmin(1)
    return rotation.unflatten(0, (-1, count))[torch.arange(len(best), device=best.device), best]


def _derivatives(form: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient (B, 3) and the damped Gauss-Newton Hessian (B, 3, 3) of half the error with respect to a turn
    of the camera."""
    jacobian = torch.einsum("kij,bjl->bkil", _TURNS.to(rotation.device), rotation).flatten(2)
    product = jacobian @ form
    hessian = product @ jacobian.transpose(1, 2)
    trace = hessian.diagonal(dim1=1, dim2=2).sum(1)
    damping = (DAMPING * trace + 1e-12)[:, None, None] * torch.eye(3, dtype=form.dtype, device=form.device)
    return (product @ rotation.flatten(1)[..., None])[..., 0], hessian + damping


def _with_curvature(hessian: Tensor, form: Tensor, rotation: Tensor) -> Tensor:
    """Return the whole Hessian (B, 3, 3) where it is positive, else that of Gauss-Newton, which is given."""
    errors = (form @ rotation.flatten(1)[..., None])[..., 0].unflatten(1, (3, 3))
    product = rotation @ errors.transpose(1, 2)
    curvature = (product + product.transpose(1, 2)) / 2
    trace = product.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    whole = hessian + curvature - trace * torch.eye(3, dtype=form.dtype, device=form.device)
    least = torch.linalg.eigvalsh(whole)[:, 0]
    positive = least > MIN_CURVATURE * hessian.diagonal(dim1=1, dim2=2).sum(1)
    return torch.where(positive[:, None, None], whole, hessian)
