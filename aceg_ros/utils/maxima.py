# SPDX-License-Identifier: Apache-2.0
"""The greatest values of matrices of similarities, fast on the CPU too."""

from __future__ import annotations

import torch
from torch import Tensor


def row_maxima(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Return the greatest similarity (N,) of each row of a matrix (N, M), and its column (N,).

    Rows without a positive value give any of their values.
    """
    if similarity.device.type != "cpu":
        values, columns = similarity.max(1)
        return values, columns
    # numpy's argmax is vectorised, torch's is not: measured, 10 times as fast.
    columns = torch.from_numpy(_comparable(similarity).numpy().argmax(1))
    return similarity.gather(1, columns[:, None])[:, 0], columns


def row_values(similarity: Tensor) -> Tensor:
    """Return the greatest similarity (N,) of each row, as `row_maxima` does, without the columns."""
    return _comparable(similarity).amax(1).view(similarity.dtype)


def values_where(chosen: Tensor, similarity: Tensor) -> Tensor:
    """Return the greatest similarity (N,) in each row of those chosen (N, M), bool; 0 where none of them is positive.
    """
    values = _comparable(similarity)
    return (values * chosen.to(values.dtype)).amax(1).view(similarity.dtype)      # a third of the time of masked_fill


def column_values(similarity: Tensor) -> Tensor:
    """Return the greatest similarity (M,) of each column; columns without a positive value give any of their values."""
    return _comparable(similarity).amax(0).view(similarity.dtype)


def _comparable(similarity: Tensor) -> Tensor:
    """Return bf16 as integers, which have the same order where they are positive, and are compared much faster."""
    return similarity.view(torch.int16) if similarity.dtype == torch.bfloat16 else similarity
