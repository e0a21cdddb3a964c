"""What an encoder says of a picture."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class FeatureMap(NamedTuple):
    """features (B, C, h, w); reliability (B, h, w) in [0, 1], how likely a patch is recognised again, or None."""

    features: Tensor
    reliability: Tensor | None
