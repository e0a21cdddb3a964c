# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the readers' tests."""

import pytest
from datasets_fixtures import Recording, make_recording


@pytest.fixture
def recording() -> Recording:
    return make_recording()
