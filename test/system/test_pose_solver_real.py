# SPDX-License-Identifier: Apache-2.0
"""The pose solver on real predictions.

Bounds: the worst of 5 seeds in docs/benchmarks/2026-11-21-pose-solver.md, and some slack.
"""

from __future__ import annotations

import pytest

from aceg_ros.benchmarks.solver import DEFAULT_PATH, Predictions, count_false_acceptances, evaluate, load, ours
from aceg_ros.pose.config import SolverConfig

pytestmark = [pytest.mark.needs_data,
              pytest.mark.skipif(not DEFAULT_PATH.is_file(), reason=f"no solver set at {DEFAULT_PATH}")]


@pytest.fixture(scope="module")
def data() -> Predictions:
    return load(DEFAULT_PATH)


def test_accuracy_and_honest_covariance(data: Predictions) -> None:
    row = evaluate("default", ours(SolverConfig()), data, range(2))
    assert row.median_cm <= 3.45 and row.median_deg <= 1.0
    assert row.recall_5cm >= 0.67 and row.recall_10cm >= 0.97 and row.recall_25cm >= 0.99 and row.accepted >= 0.99
    assert 2.0 < row.nees < 8.0 and row.inside_95 >= 0.9


def test_opencv_backend(data: Predictions) -> None:
    row = evaluate("opencv", ours(SolverConfig(backend="opencv")), data, range(1))
    assert row.median_cm <= 3.6 and row.recall_10cm >= 0.93 and row.recall_25cm >= 0.96


def test_wrong_frames_are_rejected(data: Predictions) -> None:
    counts = count_false_acceptances(data, every=3)
    assert sum(accepted for accepted, _ in counts.values()) <= 1, counts
