# SPDX-License-Identifier: Apache-2.0
"""Simulated wheel odometry: smooth, with an error that grows with the distance travelled."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from aceg_ros.geometry import invert


class DriftingOdometry:
    """Integrates the true motion with errors.

    Args:
        drift: relative error of each step; half of it is a constant bias, half is random.
        seed: seed of the signs of the bias and of the random part.
    """

    def __init__(self, drift: float, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._drift, self._bias = drift, self._rng.choice([-1.0, 1.0], size=2)
        self._last: np.ndarray | None = None
        self._odom_from_base = np.eye(4)

    def update(self, map_from_base: np.ndarray) -> np.ndarray:
        """Move to the true pose map_from_base (4, 4). Returns odom_from_base (4, 4), the identity at first."""
        if self._last is not None:
            step = invert(self._last) @ map_from_base
            rotation = Rotation.from_matrix(step[:3, :3]).as_rotvec()
            scale, angle = 1 + self._drift * (0.5 * self._bias + 0.5 * self._rng.normal(size=2))
            # Wheels slip sideways: each metre also turns the robot a little.
            slip = 0.3 * self._drift * self._bias[1] * np.linalg.norm(step[:3, 3])
            rotation = angle * rotation + np.array([0, 0, slip])
            measured = np.eye(4)
            measured[:3, :3] = Rotation.from_rotvec(rotation).as_matrix()
            measured[:3, 3] = scale * step[:3, 3]
            self._odom_from_base = self._odom_from_base @ measured
        self._last = map_from_base
        return self._odom_from_base
