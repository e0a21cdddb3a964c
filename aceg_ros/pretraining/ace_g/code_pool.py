# SPDX-License-Identifier: Apache-2.0
"""The pool of scenes that a process maps in turn, each from noise and under a random similarity transform."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from aceg_ros.pretraining.ace_g.code_steps import CodeFit, MapCodeTraining
from aceg_ros.pretraining.ace_g.scenes import TrainingScene
from aceg_ros.pretraining.common.distributed import ProcessGroup
from aceg_ros.pretraining.common.run import write_state

RADIUS_M = (1.0, 10.0)                 # of a transformed scene: median distance of its landmarks from their mean


@dataclass(frozen=True, kw_only=True)
class ActiveScene:
    """A scene that is being mapped. generation: its serial number, which determines scene and transform."""

    generation: int
    fit: CodeFit


class CodePool:
    """The scenes that this process maps at the same time, one step of each in turn."""

    def __init__(self, scenes: list[TrainingScene], options: MapCodeTraining, group: ProcessGroup):
        self._scenes, self._options, self._rank = scenes[group.rank::group.world_size] or scenes, options, group.rank
        self._made_for = [group.world_size, len(self._scenes), options.active, options.codes, options.lifetime]
        self._file = options.run / f"pool_{group.rank}.pt"
        # The first codes have different lifetimes, so that the pool has codes of all ages later.
        self._active = [self._start(number, options.lifetime * (number + 1) // options.active)
                        for number in range(options.active)]

    def select(self, iteration: int) -> CodeFit:
        """Return the code to fit in this iteration. At the end of its lifetime, a code of a new scene replaces it."""
        number = iteration % len(self._active)
        active = self._active[number]
        if active.fit.age >= active.fit.lifetime:
            active = self._start(active.generation + len(self._active), self._options.lifetime)
            self._active[number] = active
        return active.fit

    def _start(self, generation: int, lifetime: int) -> ActiveScene:
        rng = np.random.default_rng((self._options.seed, self._rank, generation, 1))
        scene = with_random_similarity(self._scenes[int(rng.integers(len(self._scenes)))], rng)
        fit = CodeFit.start(scene, self._options, seed=int(rng.integers(2**62)), lifetime=lifetime)
        return ActiveScene(generation=generation, fit=fit)

    def save(self, done: int) -> None:
        """Save the codes together with the checkpoint of `done` iterations."""
        states = [{"generation": active.generation, "age": active.fit.age, "lifetime": active.fit.lifetime,
                   "code": active.fit.code.state_dict(), "optimizer": active.fit.optimizer.state_dict()}
                  for active in self._active]
        write_state(self._file, {"iteration": done, "made_for": self._made_for, "active": states})

    def load(self, done: int) -> None:
        """Load the codes saved after `done` iterations. Codes of another iteration, or for another number of processes
        or scenes, are ignored: training continues with new ones."""
        if not done or not self._file.exists():
            return
        state = torch.load(self._file, map_location="cpu", weights_only=True)
        if state["iteration"] != done or state["made_for"] != self._made_for:
            return
        for number, saved in enumerate(state["active"]):
            active = self._start(saved["generation"], saved["lifetime"])
            active.fit.age = saved["age"]
            active.fit.code.load_state_dict(saved["code"])
            active.fit.optimizer.load_state_dict(saved["optimizer"])
            self._active[number] = active


def with_random_similarity(scene: TrainingScene, rng: np.random.Generator) -> TrainingScene:
    """Rotate a scene about the mean of its landmarks, mirror it with probability 0.5, and scale it to a random radius
    within RADIUS_M."""
    matrix = Rotation.random(random_state=rng).as_matrix() * rng.choice((-1.0, 1.0))
    mean = scene.points.mean(0)
    radius = float((scene.points - mean).norm(dim=1).median().clamp(min=1e-6))
    scale = float(np.exp(rng.uniform(*np.log(RADIUS_M)))) / radius
    orthogonal = torch.tensor(matrix, dtype=scene.points.dtype, device=scene.points.device)
    rotation, translation = scene.camera_from_map[:, :, :3], scene.camera_from_map[:, :, 3]
    camera_from_map = torch.cat([rotation @ orthogonal.T, scale * (rotation @ mean + translation)[:, :, None]], 2)
    return replace(scene, points=scale * (scene.points - mean) @ orthogonal.T, depth=scale * scene.depth,
                   camera_from_map=camera_from_map)
