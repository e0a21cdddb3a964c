# SPDX-License-Identifier: Apache-2.0
"""Scene contraction (Barron et al., Mip-NeRF 360, CVPR 2022, section 3): all points beyond a radius are mapped to
within twice the radius.

Outdoor scenes have objects a few metres away and a background at a hundred times their distance. A network that outputs
metres learns the near objects only; contracted coordinates are of order one for both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FARTHEST = 100.0        # radii; beyond it the contraction is linear, so that it can be inverted everywhere


@dataclass(frozen=True, kw_only=True)
class Contraction:
    """A contraction. centre (3,), radius: the ball that is only shifted and scaled, in map units."""

    centre: Tensor
    radius: Tensor

    def contract(self, points: Tensor) -> Tensor:
        """Contract map points (..., 3), in units of the radius about the centre.

        Points up to distance 1 keep their distance, those up to FARTHEST get one below 2.
        """
        offset = (points - self.centre) / self.radius
        distance = offset.norm(dim=-1, keepdim=True).clamp(min=1.0)
        far = distance.clamp(max=FARTHEST)
        return offset / distance * (2.0 - 1.0 / far + (distance - far) / FARTHEST**2)

    def expand(self, contracted: Tensor) -> Tensor:
        """Map contracted points (..., 3) back to map points: the inverse of `contract`."""
        length = contracted.norm(dim=-1, keepdim=True).clamp(min=1.0)
        near = length.clamp(max=2.0 - 1.0 / FARTHEST)
        distance = 1.0 / (2.0 - near) + (length - near) * FARTHEST**2
        return contracted / length * distance * self.radius + self.centre

    def distance(self, points: Tensor, truth: Tensor) -> Tensor:
        """Compute distances (...) from map points to true ones in contracted space, in map units at the true points.

        So errors in the depth of the background, which images hardly constrain, count little; errors in its direction
        count in full.
        """
        target = self.contract(truth)
        scale = (truth - self.centre).norm(dim=-1) / target.norm(dim=-1).clamp(min=1e-9)
        return (self.contract(points) - target).norm(dim=-1) * torch.where(scale > 0, scale, self.radius)


def contraction_radius(points: Tensor, centre: Tensor) -> Tensor:
    """Return a radius that includes the nearer part of a scene: 1.5 times the median distance of points (N, 3) from
    the centre."""
    return 1.5 * (points - centre).norm(dim=1).median().clamp(min=1e-6)
