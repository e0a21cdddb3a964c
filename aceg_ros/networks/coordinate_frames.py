# SPDX-License-Identifier: Apache-2.0
"""Normalises the scene coordinates of an image: a frame of its own, about that of the camera, and a unit of length.

So the fits to them work for scenes of any extent, wherever their origin is and however their axes lie, and only have to
correct the frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FIT_STEPS = 4
MIN_WEIGHT_SCALE = 0.05           # of the median residual: a perfect fit must not leave a single point with weight
MIN_EXTENT = 1e-6


@dataclass(frozen=True, kw_only=True)
class CoordinateFrame:
    """Frames of the coordinates of images: p in the map is at R^T (p - centre) / unit_m in the frame.

    rotation R (B, 3, 3), centre (B, 3) in the map, unit_m (B,): metres of the map a unit of the frame.
    """

    rotation: Tensor
    centre: Tensor
    unit_m: Tensor

    def to_frame(self, points: Tensor) -> Tensor:
        """Convert map points (B, N, 3) to the frame."""
        return (points - self.centre[:, None]) @ self.rotation / self.unit_m[:, None, None]


def image_frame(points: Tensor, rays: Tensor, mask: Tensor | None = None, *, extent: float) -> CoordinateFrame:
    """Find the frame of the coordinates of each image.

    Points are fitted as a linear function of the rays, robustly: as if the camera were affine and the scene a plane.
    The nearest rotation to the columns of that function gives the axes. The geometric median of the points is the
    centre, their median distance from it the extent. All of it moves, turns and scales with the map.

    Args:
        points: (B, N, 3) map points.
        rays: (B, N, 2) their viewing rays.
        mask: (B, N) bool, which of them are used; None: all.
        extent: extent that the points shall have in the frame.
    """
    kept = torch.ones_like(points[..., 0]) if mask is None else mask.to(points.dtype)
    centre = _geometric_median(points, kept)
    shifted = points - centre[:, None]
    size = masked_median(shifted.norm(dim=-1), kept).clamp(min=MIN_EXTENT)
    shifted = shifted / size[:, None, None]
    axes = _fit_axes(shifted, rays, kept)
    return CoordinateFrame(rotation=axes, centre=centre, unit_m=size / extent)


def _fit_axes(points: Tensor, rays: Tensor, kept: Tensor) -> Tensor:
    """Return the rotation (B, 3, 3) whose first two columns are nearest to the derivatives of the points with respect
    to the rays; weights of the fit are those of an L1 loss."""
    design = torch.cat([rays, torch.ones_like(rays[..., :1])], -1)
    weights = kept / (points.norm(dim=-1) + MIN_WEIGHT_SCALE)
    for _ in range(FIT_STEPS):
        weighted = design * weights[..., None]
        normal = weighted.transpose(1, 2) @ design
        normal = normal + 1e-6 * torch.eye(3, device=points.device) * weights.sum(1)[:, None, None]
        fit = torch.linalg.solve(normal, weighted.transpose(1, 2) @ points)
        residual = (points - design @ fit).norm(dim=-1)
        scale = MIN_WEIGHT_SCALE * masked_median(residual, kept)[:, None] + 1e-6
        weights = kept / (residual + scale)
    u, _, vh = torch.linalg.svd(fit[:, :2].transpose(1, 2) + 1e-9 * torch.eye(3, 2, device=points.device),
                                full_matrices=False)
    right_down = u @ vh
    return torch.cat([right_down, torch.linalg.cross(right_down[..., 0], right_down[..., 1])[..., None]], -1)


def _geometric_median(points: Tensor, kept: Tensor) -> Tensor:
    """Return the point (B, 3) with the smallest sum of distances to the kept points, nearly (Weiszfeld's algorithm)."""
    weights = kept
    for _ in range(FIT_STEPS + 1):
        centre = (weights[..., None] * points).sum(1) / weights.sum(1)[:, None].clamp(min=MIN_EXTENT)
        distance = (points - centre[:, None]).norm(dim=-1)
        weights = kept / (distance + MIN_WEIGHT_SCALE * masked_median(distance, kept)[:, None] + MIN_EXTENT)
        weights = weights / weights.amax(1, keepdim=True).clamp(min=MIN_EXTENT)
    return centre


def masked_median(values: Tensor, kept: Tensor) -> Tensor:
    """Return the median (B,) of values (B, N) over the kept ones; zero if there are none."""
    return torch.where(kept > 0, values, torch.nan).nanmedian(1).values.nan_to_num(0.0)
