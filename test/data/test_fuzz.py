# SPDX-License-Identifier: Apache-2.0
"""The short part of `make fuzz`, the same every time: strange inputs are rejected with a reason, or are read."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from fuzz_targets import TARGETS  # isort: skip

EXAMPLES = {"map header": 10, "bag mcap": 15, "bag sqlite3": 15, "bag ros1": 15}


@pytest.mark.parametrize("name", TARGETS)
def test_strange_inputs(name, tmp_path):
    target = TARGETS[name]

    @settings(max_examples=EXAMPLES.get(name, 40), derandomize=True, deadline=None, database=None,
              phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(target.inputs(tmp_path))
    def check(value):
        target.run(tmp_path, value)

    check()
