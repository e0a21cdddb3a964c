"""Space made small: what lies beyond a radius is drawn in to twice the radius (Barron et al., Mip-NeRF 360, CVPR 2022,
section 3).

A terrace is a few metres of chairs before a city at a hundred times their distance. A network whose outputs are metres
learns the chairs and never reaches the city; contracted, both are numbers of about one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FARTHEST = 100.0        # radii; beyond it the map goes on straight, so that it can be inverted everywhere


@dataclass(frozen=True)
class Contraction:
    """centre (3,) and radius of the part of the map that keeps its shape, in map units."""

    centre: Tensor
    radius: Tensor

    def contract(self, points: Tensor) -> Tensor:
        """Map points (..., 3) to contracted ones, in radii from the centre: as they are up to 1, within 2 up to
        FARTHEST."""
        offset = (points - self.centre) / self.radius
        distance = offset.norm(dim=-1, keepdim=True).clamp(min=1.0)
        far = distance.clamp(max=FARTHEST)
        return offset / distance * (2.0 - 1.0 / far + (distance - far) / FARTHEST**2)

    def expand(self, contracted: Tensor) -> Tensor:
        """The inverse of `contract`."""
        length = contracted.norm(dim=-1, keepdim=True).clamp(min=1.0)
        near = length.clamp(max=2.0 - 1.0 / FARTHEST)
        distance = 1.0 / (2.0 - near) + (length - near) * FARTHEST**2
        return contracted / length * distance * self.radius + self.centre

    def apart(self, points: Tensor, truth: Tensor) -> Tensor:
        """Distances (...) from map points to true ones, in map units at the truth, measured where all is small: a
        skyline's distance, which no camera can tell, counts for little, its direction for what it is."""
        there = self.contract(truth)
        stretch = (truth - self.centre).norm(dim=-1) / there.norm(dim=-1).clamp(min=1e-9)
        return (self.contract(points) - there).norm(dim=-1) * torch.where(stretch > 0, stretch, self.radius)


def fitting_radius(points: Tensor, centre: Tensor) -> Tensor:
    """Keeps the shape of the nearer part of a place: 1.5 times the median distance of points (N, 3) from the centre."""
    return 1.5 * (points - centre).norm(dim=1).median().clamp(min=1e-6)
