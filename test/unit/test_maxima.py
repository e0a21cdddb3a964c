# SPDX-License-Identifier: Apache-2.0
"""Maxima of similarities against torch's own."""

import pytest
import torch

from aceg_ros.utils.maxima import column_values, row_maxima, row_values, values_where


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_as_torch_has_them(dtype):
    similarity = torch.rand((40, 70), generator=torch.Generator().manual_seed(0)).sub(0.4).to(dtype)
    part = similarity[:, 10:60]                     # not contiguous
    values, columns = row_maxima(part)
    assert torch.equal(values, part.amax(1)) and torch.equal(part[torch.arange(40), columns], values)
    assert torch.equal(row_values(part), part.amax(1)) and torch.equal(column_values(part), part.amax(0))
    assert values.dtype == dtype and columns.dtype == torch.int64


def test_a_row_without_a_positive_value_gives_one_of_its_values():
    values, columns = row_maxima(torch.tensor([[-0.5, -0.25]], dtype=torch.bfloat16))
    assert values.item() == [-0.5, -0.25][columns.item()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_greatest_of_those_chosen(dtype):
    similarity = torch.rand((40, 70), generator=torch.Generator().manual_seed(0)).sub(0.4).to(dtype)
    chosen = torch.rand((40, 70), generator=torch.Generator().manual_seed(1)) < 0.2
    chosen[0] = False
    expected = similarity.masked_fill(~chosen, -1.0).amax(1).clamp(min=0.0)
    assert torch.equal(values_where(chosen, similarity), expected) and expected[0] == 0.0
