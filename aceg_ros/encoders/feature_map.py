# SPDX-License-Identifier: Apache-2.0
"""The output of an encoder."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class FeatureMap(NamedTuple):
    """Features of images, one descriptor per cell of a grid.

    features (B, C, h, w): descriptors. reliability (B, h, w) in [0, 1]: how likely a cell is matched correctly in
    another image; None if the encoder does not predict it. keypoints (B, 2, h, w): pixel (x, y) of the image that each
    descriptor belongs to, sub-pixel, the centre of the first pixel being (0, 0); None: the centres of the cells.
    """

    features: Tensor
    reliability: Tensor | None
    keypoints: Tensor | None = None
