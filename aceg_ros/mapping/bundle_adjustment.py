# SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment: camera poses and points that together explain where the points were seen (Triggs et al. 1999).

Levenberg-Marquardt on a Cauchy loss whose scale is taken from the residuals at every step. Points are eliminated block
by block (Schur complement), so that a system of the camera poses alone is solved: densely for some hundred cameras, by
conjugate gradients for more. A Gaussian prior of each pose around the given one keeps the map frame where it is.

Poses here are camera_from_map, perturbed in the camera frame: Y' = exp(w) Y + d, parameters (d, w).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, cg
from scipy.spatial.transform import Rotation

from aceg_ros.geometry import invert
from aceg_ros.mapping.budget import MappingBudget

DENSE_CAMERAS = 400
MAX_STEPS, CONVERGED = 40, 5e-4         # relative decrease of the cost per step
SCALE_STEP = 0.8                        # the scale of the loss follows the residuals in steps of this at least
CAUCHY_SCALES = 2.0                     # scale of the loss, in robust standard deviations of the residuals
RAYLEIGH_MEDIAN = 1.1774                # median length of a residual whose axes have a standard deviation of one
MIN_SCALE = 0.02                        # robust standard deviations of residuals below this are rounding
MIN_DEPTH, FAR = 1e-6, 1e6              # nearest depth; length of a residual behind the camera


@dataclass(frozen=True, kw_only=True)
class BundleObservations:
    """N observations of T points by F pinhole cameras of rectified images.

    intrinsics (F, 4): fx, fy, cx, cy. images (N,), points (N,): indices. pixels (N, 2). noise_px (N,): standard
    deviation of a pixel on each axis; only their ratios matter.
    """

    intrinsics: np.ndarray
    images: np.ndarray
    points: np.ndarray
    pixels: np.ndarray
    noise_px: np.ndarray

    def subset(self, chosen: np.ndarray) -> BundleObservations:
        """Return the chosen observations: a mask (N,) or indices."""
        return replace(self, images=self.images[chosen], points=self.points[chosen], pixels=self.pixels[chosen],
                       noise_px=self.noise_px[chosen])


@dataclass(frozen=True, kw_only=True)
class BundleState:
    """camera_from_map (F, 4, 4) and points (T, 3)."""

    camera_from_map: np.ndarray
    points: np.ndarray


@dataclass(frozen=True, kw_only=True)
class PosePrior:
    """The given poses camera_from_map (F, 4, 4), and their standard deviations on each axis: position in the unit of
    the map, rotation_rad."""

    camera_from_map: np.ndarray
    position: float
    rotation_rad: float

    def residuals(self, camera_from_map: np.ndarray) -> np.ndarray:
        """Return the differences (F, 6) from the given poses, (d, w), in standard deviations."""
        moved = invert(camera_from_map)[:, :3, 3] - invert(self.camera_from_map)[:, :3, 3]
        shift = -np.einsum("fij,fj->fi", camera_from_map[:, :3, :3], moved)
        turn = Rotation.from_matrix(camera_from_map[:, :3, :3] @ self.camera_from_map[:, :3, :3].transpose(0, 2, 1))
        return np.hstack([shift / self.position, turn.as_rotvec() / self.rotation_rad])

    @property
    def information(self) -> np.ndarray:
        """(6,): the inverse variances of (d, w)."""
        return np.repeat([self.position**-2.0, self.rotation_rad**-2.0], 3)


def residual_lengths(observations: BundleObservations, state: BundleState) -> np.ndarray:
    """Return the reprojection errors (N,) in units of noise_px; 1e6 behind a camera."""
    return _lengths(*_residuals(observations, state))


def robust_scale(lengths: np.ndarray) -> float:
    """Return the standard deviation of an axis by the median length of residuals (N,)."""
    return max(float(np.median(lengths)) / RAYLEIGH_MEDIAN, MIN_SCALE)


def adjust(observations: BundleObservations, state: BundleState, prior: PosePrior | None, budget: MappingBudget
           ) -> tuple[BundleState, int]:
    """Adjust poses and points, or points alone where no prior is given, until they converge or the budget is over.

    Returns the adjusted state and the number of steps taken.
    """
    damping, system, scale = 1e-4, None, np.inf
    solver = _PointSolver(observations, state) if prior is None else _CameraSolver(observations, state)
    steps = 0
    while steps < MAX_STEPS and damping < 1e8 and not budget.is_over():
        if system is None:
            # A scale that followed every step would shrink on and on: the loss fits best what already fits well.
            found = robust_scale(residual_lengths(observations, state))
            scale = found if found < SCALE_STEP * scale else scale
            system = _linearize(observations, state, prior, scale)
            cost = _cost(observations, state, prior, scale)
        moved = solver.step(system, state, damping)
        new_cost = np.inf if moved is None else _cost(observations, moved, prior, scale)
        steps += 1
        if moved is None or not new_cost < cost:
            damping *= 10.0
            if moved is not None and new_cost - cost < CONVERGED * cost * 0.01:
                break                   # no step goes anywhere
            continue
        state, system, damping = moved, None, max(damping / 10.0, 1e-7)
        if cost - new_cost < CONVERGED * cost:
            break
    return state, steps


# --- cost and its derivatives ---------------------------------------------------------------------------------------


def _residuals(observations: BundleObservations, state: BundleState) -> tuple[np.ndarray, np.ndarray]:
    """Return camera coordinates (N, 3), and residuals (N, 2) in units of noise_px."""
    poses, intrinsics = state.camera_from_map[observations.images], observations.intrinsics[observations.images]
    local = np.einsum("nij,nj->ni", poses[:, :3, :3], state.points[observations.points]) + poses[:, :3, 3]
    depth = np.where(local[:, 2] > MIN_DEPTH, local[:, 2], 1.0)[:, None]
    pixels = local[:, :2] / depth * intrinsics[:, :2] + intrinsics[:, 2:]
    return local, (pixels - observations.pixels) / observations.noise_px[:, None]


def _lengths(local: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    return np.where(local[:, 2] > MIN_DEPTH, np.minimum(np.hypot(residuals[:, 0], residuals[:, 1]), FAR), FAR)


def _cost(observations: BundleObservations, state: BundleState, prior: PosePrior | None, scale: float) -> float:
    squared = np.square(residual_lengths(observations, state) / (CAUCHY_SCALES * scale))
    cost = 0.5 * CAUCHY_SCALES**2 * float(np.log1p(squared).sum())
    return cost if prior is None else cost + 0.5 * float(np.square(prior.residuals(state.camera_from_map)).sum())


@dataclass(frozen=True, kw_only=True)
class _System:
    """Normal equations of a Gauss-Newton step: cameras (F, 6, 6), points (T, 3, 3), mixed (N, 6, 3) of each
    observation, gradients (F, 6) and (T, 3)."""

    cameras: np.ndarray
    points: np.ndarray
    mixed: np.ndarray
    camera_gradient: np.ndarray
    point_gradient: np.ndarray


def _linearize(observations: BundleObservations, state: BundleState, prior: PosePrior | None, scale: float) -> _System:
    local, residuals = _residuals(observations, state)
    lengths = _lengths(local, residuals)
    weights = np.where(lengths < FAR, 1.0 / (1.0 + np.square(lengths / (CAUCHY_SCALES * scale))), 0.0)
    root = np.sqrt(weights) / scale
    depth = np.where(local[:, 2] > MIN_DEPTH, local[:, 2], 1.0)
    focal = observations.intrinsics[observations.images, :2] * (root / observations.noise_px / depth)[:, None]
    by_local = np.zeros((len(local), 2, 3))
    by_local[:, 0, 0], by_local[:, 1, 1] = focal[:, 0], focal[:, 1]
    by_local[:, :, 2] = -focal * local[:, :2] / depth[:, None]
    x, y, z = local.T
    by_turn = np.stack([np.stack([by_local[:, k, 2] * y - by_local[:, k, 1] * z,
                                  by_local[:, k, 0] * z - by_local[:, k, 2] * x,
                                  by_local[:, k, 1] * x - by_local[:, k, 0] * y], -1) for k in range(2)], 1)
    by_camera = np.concatenate([by_local, by_turn], axis=2)
    by_point = by_local @ state.camera_from_map[observations.images, :3, :3]
    weighted = residuals * root[:, None]
    count, cameras = len(state.points), len(state.camera_from_map)
    hessian = _sum(observations.images, by_camera.transpose(0, 2, 1) @ by_camera, cameras)
    gradient = _sum(observations.images, np.einsum("nki,nk->ni", by_camera, weighted), cameras)
    if prior is not None:
        information = prior.information
        hessian[:, np.arange(6), np.arange(6)] += information
        gradient += np.sqrt(information) * prior.residuals(state.camera_from_map)
    return _System(
        cameras=hessian, points=_sum(observations.points, by_point.transpose(0, 2, 1) @ by_point, count),
        mixed=by_camera.transpose(0, 2, 1) @ by_point, camera_gradient=gradient,
        point_gradient=_sum(observations.points, np.einsum("nki,nk->ni", by_point, weighted), count))


def _sum(groups: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Sum values (N, ...) of each group: (count, ...)."""
    members = sparse.csr_matrix((np.ones(len(groups)), (groups, np.arange(len(groups)))), shape=(count, len(groups)))
    return (members @ values.reshape(len(values), -1)).reshape(count, *values.shape[1:])


def _damped(blocks: np.ndarray, damping: float) -> np.ndarray:
    """Add to the diagonals of blocks (B, n, n) their share `damping`, and enough that none is singular."""
    size = np.arange(blocks.shape[1])
    diagonal = blocks[:, size, size]
    result = blocks.copy()
    result[:, size, size] += damping * diagonal + 1e-9 * diagonal.mean(1, keepdims=True) + 1e-12
    return result


# --- steps ----------------------------------------------------------------------------------------------------------


class _PointSolver:
    """Steps of the points alone."""

    def __init__(self, observations: BundleObservations, state: BundleState) -> None:
        del observations, state

    def step(self, system: _System, state: BundleState, damping: float) -> BundleState | None:
        moved = np.linalg.solve(_damped(system.points, damping), system.point_gradient[..., None])[..., 0]
        return replace(state, points=state.points - moved)


class _CameraSolver:
    """Steps of cameras and points, by the Schur complement of the points."""

    def __init__(self, observations: BundleObservations, state: BundleState) -> None:
        self._observations = observations
        self._order = np.argsort(observations.images, kind="stable")
        cameras, points = len(state.camera_from_map), len(state.points)
        self._first = np.searchsorted(observations.images[self._order], np.arange(cameras + 1))
        self._columns, self._shape = observations.points[self._order], (6 * cameras, 3 * points)

    def step(self, system: _System, state: BundleState, damping: float) -> BundleState | None:
        """Return the state after one damped step; None where the equations cannot be solved."""
        images, points = self._observations.images, self._observations.points
        point_blocks = np.linalg.inv(_damped(system.points, damping))
        half = np.linalg.cholesky(point_blocks)                 # points^-1 = half half^T
        mixed = system.mixed @ half[points]
        rows = sparse.bsr_matrix((mixed[self._order], self._columns, self._first), shape=self._shape)
        carried = np.einsum("tij,ti->tj", half, system.point_gradient)
        gradient = system.camera_gradient - (rows @ carried.ravel()).reshape(-1, 6)
        reduction = (rows @ rows.T.tobsr((3, 6))).tobsr((6, 6))
        turn = self._solve(_damped(system.cameras, damping), reduction, gradient.ravel())
        if turn is None or not np.isfinite(turn).all():
            return None
        turn = -turn.reshape(-1, 6)
        back = _sum(points, np.einsum("nij,ni->nj", system.mixed, turn[images]), len(state.points))
        shift = -np.einsum("tij,tj->ti", point_blocks, system.point_gradient + back)
        return BundleState(camera_from_map=_turned(state.camera_from_map, turn), points=state.points + shift)

    @staticmethod
    def _solve(cameras: np.ndarray, reduction: sparse.bsr_matrix, gradient: np.ndarray) -> np.ndarray | None:
        count = len(cameras)
        if count <= DENSE_CAMERAS:
            dense = -reduction.toarray()
            blocks = np.arange(6 * count).reshape(count, 6)
            dense[blocks[:, :, None], blocks[:, None]] += cameras
            try:
                return scipy.linalg.cho_solve(scipy.linalg.cho_factor(dense, lower=True, overwrite_a=True,
                                                                      check_finite=False), gradient)
            except np.linalg.LinAlgError:
                return None
        diagonal = sparse.bsr_matrix((cameras, np.arange(count), np.arange(count + 1)))
        matrix = (diagonal - reduction).tocsr()
        inverse = np.linalg.inv(cameras)
        preconditioner = LinearOperator(matrix.shape, dtype=np.float64, matvec=lambda vector: np.einsum(
            "fij,fj->fi", inverse, vector.reshape(count, 6)).ravel())
        return cg(matrix, gradient, rtol=1e-4, maxiter=200, M=preconditioner)[0]


def _turned(camera_from_map: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Apply steps (F, 6), (d, w), to poses (F, 4, 4)."""
    turn = Rotation.from_rotvec(steps[:, 3:]).as_matrix()
    result = camera_from_map.copy()
    result[:, :3, :3] = turn @ camera_from_map[:, :3, :3]
    result[:, :3, 3] = np.einsum("fij,fj->fi", turn, camera_from_map[:, :3, 3]) + steps[:, :3]
    return result
