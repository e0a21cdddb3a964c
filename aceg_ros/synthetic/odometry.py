"""Odometry as wheels and gyroscopes give it: smooth, and further from the truth with every metre."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from aceg_ros.geometry import invert


class DriftingOdometry:
    """Integrates true motion with errors. drift: share by which each step is wrong, a part of it always to one side.

    seed decides which side, and the rest.
    """

    def __init__(self, drift: float, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._drift, self._bias = drift, self._rng.choice([-1.0, 1.0], size=2)
        self._last: np.ndarray | None = None
        self._odom_from_base = np.eye(4)

    def update(self, map_from_base: np.ndarray) -> np.ndarray:
        """The true pose of the base (4, 4) to odom_from_base (4, 4); the identity at the first call."""
        if self._last is not None:
            step = invert(self._last) @ map_from_base
            turn = Rotation.from_matrix(step[:3, :3]).as_rotvec()
            scale, angle = 1 + self._drift * (0.5 * self._bias + 0.5 * self._rng.normal(size=2))
            # Wheels slip sideways as well: each metre also turns the robot a little.
            turn = angle * turn + np.array([0, 0, 0.3 * self._drift * self._bias[1] * np.linalg.norm(step[:3, 3])])
            wrong = np.eye(4)
            wrong[:3, :3] = Rotation.from_rotvec(turn).as_matrix()
            wrong[:3, 3] = scale * step[:3, 3]
            self._odom_from_base = self._odom_from_base @ wrong
        self._last = map_from_base
        return self._odom_from_base
