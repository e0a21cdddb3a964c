"""The output of an encoder."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class FeatureMap(NamedTuple):
    """Dense features of images.

    features (B, C, h, w): one descriptor per cell. reliability (B, h, w) in [0, 1]: how likely a cell is matched
    correctly in another image; None if the encoder does not predict it.
    """

    features: Tensor
    reliability: Tensor | None
