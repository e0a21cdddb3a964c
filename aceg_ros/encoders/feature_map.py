"""What an encoder extracts from an image."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class FeatureMap(NamedTuple):
    """features (B, C, h, w), one descriptor per cell; reliability (B, h, w) in [0, 1]: how likely a cell is matched
    correctly in another image, None if the encoder does not predict it."""

    features: Tensor
    reliability: Tensor | None
