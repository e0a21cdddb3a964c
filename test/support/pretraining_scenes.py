# SPDX-License-Identifier: Apache-2.0
"""Options for small pre-trainings of ace_g, and ways to stop them, shared by tests and by what torchrun starts."""

from pathlib import Path

from aceg_ros.benchmarks.gpu.methods import SMALL_HEAD
from aceg_ros.pretraining.ace_g.code_steps import MapCodeTraining
from aceg_ros.pretraining.ace_g.scenes import TrainingSceneData


def map_code_options(run: Path, **changes) -> MapCodeTraining:
    return MapCodeTraining(run=run, data=TrainingSceneData(), **{
        "iterations": 60, "size": SMALL_HEAD, "codes": 16, "active": 3, "lifetime": 15, "batch": 64,
        "checkpoint_every": 30} | changes)


class InterruptedAt:
    """A should_stop that is interrupted, as by Ctrl-C, when it is asked for the nth time."""

    def __init__(self, question: int):
        self._left = question

    def __call__(self) -> bool:
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt
        return False


class StopAt:
    """A should_stop that says so when it is asked for the nth time."""

    def __init__(self, question: int):
        self._left = question

    def __call__(self) -> bool:
        self._left -= 1
        return self._left <= 0
