# SPDX-License-Identifier: Apache-2.0
"""The budget of a mapping run and of its phases, by a clock that the tests set."""

import dataclasses
import math
from types import SimpleNamespace

import pytest

from aceg_ros.mapping import budget as budget_module
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.utils.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """The clock of the budget: seconds in a list of one."""
    now = [1000.0]
    monkeypatch.setattr(budget_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_run_ends_when_its_time_is_up(clock):
    budget = MappingBudget.start(60.0)
    assert (budget.started, budget.deadline, budget.finish, budget.total_s) == (1000.0, 1060.0, 1060.0, 60.0)
    clock[0] += 45.0
    assert budget.elapsed_s() == 45.0 and budget.remaining_s() == 15.0 and not budget.is_over()
    clock[0] += 16.0
    assert budget.elapsed_s() == 61.0 and budget.remaining_s() == 0.0 and budget.is_over()


def test_time_before_the_budget_was_made_counts_if_it_is_said_when_the_run_began(clock):
    budget = MappingBudget.start(60.0, started=990.0)
    assert budget.elapsed_s() == 10.0 and budget.remaining_s() == 50.0


def test_phases_take_a_share_of_the_time_left_or_so_many_seconds_but_never_more_than_there_are(clock):
    budget = MappingBudget.start(100.0)
    clock[0] += 50.0
    assert budget.phase("a").deadline == 1100.0
    assert budget.phase("a", share=0.2).deadline == pytest.approx(1060.0)
    assert budget.phase("a", at_most_s=30.0).deadline == 1080.0
    assert budget.phase("a", at_most_s=300.0).deadline == 1100.0
    assert budget.reserve(5.0).phase("a", share=0.5).deadline == pytest.approx(1072.5)
    assert budget.phase("a", share=0.5).phase("b", share=0.5).deadline == pytest.approx(1062.5)
    assert budget.phase("a", share=0.2).total_s == 100.0 and budget.phase("a").started == 1000.0


def test_a_run_without_a_limit_has_phases_without_one(clock):
    budget = MappingBudget.start()
    assert budget.reserve(math.inf).phase("a", share=0.2).deadline == math.inf
    assert budget.phase("a", share=0.2).phase("b", at_most_s=3.0).deadline == 1003.0
    assert not budget.is_over() and budget.remaining_s() == math.inf


def test_a_stop_ends_every_phase(clock):
    stop = []
    budget = MappingBudget.start(60.0, should_stop=lambda: bool(stop))
    phase = budget.phase("a", share=0.5)
    assert not budget.is_over() and not phase.is_over()
    stop.append(True)
    assert budget.is_over() and phase.is_over() and phase.remaining_s() == 30.0


def test_a_phase_reports_under_its_name_with_the_time_until_the_run_ends(clock):
    told: list[Progress] = []
    budget = MappingBudget.start(60.0, progress=told.append)
    clock[0] += 10.0
    budget.reserve(5.0).phase("encoding images", share=0.1).report(0.25)
    budget.phase("training").report(0.5, 3.0, remaining_s=7.0)
    assert told[0].stage == "encoding images" and told[0].fraction == 0.25 and told[0].remaining_s == 50.0
    assert math.isnan(told[0].reprojection_px)
    assert told[1] == Progress(stage="training", fraction=0.5, remaining_s=7.0, reprojection_px=3.0)


def test_nobody_needs_to_be_told_and_a_budget_cannot_be_changed(clock):
    budget = MappingBudget.start(60.0)
    budget.report(1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        budget.deadline = 0.0
