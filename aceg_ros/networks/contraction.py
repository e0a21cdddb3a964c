"""Scene contraction (Barron et al., Mip-NeRF 360, CVPR 2022, section 3): all points beyond a radius are mapped to
within twice the radius.

Outdoors, a scene has near objects a few metres away and a background at a hundred times their distance. A network whose
outputs are metres learns the near ones and never reaches the background; contracted, both are numbers of about one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FARTHEST = 100.0        # radii; beyond it the map goes on straight, so that it can be inverted everywhere


@dataclass(frozen=True, kw_only=True)
class Contraction:
    """centre (3,) and radius of the part of the map that keeps its shape, map units."""

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

    def distance(self, points: Tensor, truth: Tensor) -> Tensor:
        """Distances (...) from map points to true ones, measured in contracted space and scaled to map units at the
        truth. An error in the depth of the background, which images hardly show, counts for little, one in its
        direction in full."""
        target = self.contract(truth)
        scale = (truth - self.centre).norm(dim=-1) / target.norm(dim=-1).clamp(min=1e-9)
        return (self.contract(points) - target).norm(dim=-1) * torch.where(scale > 0, scale, self.radius)


def contraction_radius(points: Tensor, centre: Tensor) -> Tensor:
    """The radius that keeps the shape of the nearer part of a scene: 1.5 times the median distance of points (N, 3)
    from the centre."""
    return 1.5 * (points - centre).norm(dim=1).median().clamp(min=1e-6)
