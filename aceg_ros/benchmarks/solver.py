# SPDX-License-Identifier: Apache-2.0
"""Compares pose solvers on recorded scene-coordinate predictions: `python -m aceg_ros.benchmarks.solver [PATH]`.

PATH: a safetensors file with scene_coordinates (F, N, 3) on a 60x80 grid, camera_to_world (F, 4, 4) and intrinsics
(fx, fy, cx, cy). Each row of the table is one solver over all frames and several seeds; times are CPU time of a thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import thread_time

import cv2
import numpy as np
import poselib
from safetensors.numpy import load_file
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from aceg_ros.camera import Camera
from aceg_ros.errors import UserError
from aceg_ros.pose.config import SolverConfig
from aceg_ros.pose.correspondences import Correspondences
from aceg_ros.pose.verify import estimate_verified_pose

DEFAULT_PATH = Path(__file__).resolve().parents[3] / "shared/solver/redkitchen_predictions.safetensors"
REFERENCE = "PoseLib, all points"


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The predictions for F frames. pixels (N, 2); points (F, N, 3) in the map frame, metres; poses (F, 4, 4): true
    map_from_camera."""

    pixels: np.ndarray
    points: np.ndarray
    poses: np.ndarray
    camera: Camera

    def correspondences(self, points: np.ndarray) -> Correspondences:
        """Pair the pixels with map points (N, 3)."""
        return Correspondences(pixels=self.pixels, points=points, camera=self.camera)


@dataclass(frozen=True, kw_only=True)
class Row:
    """Means over the seeds. Errors are over accepted frames, recall is over all; a rejected frame counts as a miss.

    seed_std_cm: standard deviation of median_cm over the seeds. nees: mean normalized estimation error squared (6 is
    ideal), and inside_95 the share of frames inside the 95 percent ellipsoid; NaN for a solver without covariance.
    """

    name: str
    median_cm: float
    seed_std_cm: float
    median_deg: float
    recall_5cm: float
    recall_10cm: float
    recall_25cm: float
    accepted: float
    median_ms: float
    p95_ms: float
    nees: float
    inside_95: float


def load(path: Path) -> Predictions:
    """Read a predictions file. Raises UserError if there is none."""
    if not Path(path).is_file():
        raise UserError(f"No solver predictions at {path}: give the path of a predictions file.")
    data = load_file(path)
    fx, fy, cx, cy = (float(value) for value in data["intrinsics"].ravel())
    row, column = np.mgrid[:60, :80]
    pixels = np.column_stack([column.ravel() + 0.5, row.ravel() + 0.5]) * 8.0  # as the README of the set says
    return Predictions(pixels=pixels, points=data["scene_coordinates"].astype(np.float64),
                       poses=data["camera_to_world"],
                       camera=Camera(width=640, height=480, fx=fx, fy=fy, cx=cx, cy=cy))


# From correspondences and a seed to map_from_camera and its covariance, None if there is none.
Solver = Callable[[Correspondences, int], tuple[np.ndarray | None, np.ndarray | None]]


def ours(config: SolverConfig) -> Solver:
    """Return the solver of this package, including the gates."""
    def solve(correspondences: Correspondences, seed: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        estimate = estimate_verified_pose(correspondences, config, seed=seed)
        return estimate.map_from_camera, estimate.covariance
    return solve


def reference(correspondences: Correspondences, seed: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Run PoseLib on all points, 10 px, 100 to 1000 iterations: the best solver in the README of the solver set."""
    camera = correspondences.camera
    model = {"model": "PINHOLE", "width": camera.width, "height": camera.height,
             "params": [camera.fx, camera.fy, camera.cx, camera.cy]}
    options = {"max_reproj_error": 10.0, "min_iterations": 100, "max_iterations": 1000, "seed": seed}
    pose, _ = poselib.estimate_absolute_pose(correspondences.pixels, correspondences.points, model, options)
    map_from_camera = np.eye(4)
    map_from_camera[:3, :3], map_from_camera[:3, 3] = pose.R.T, -pose.R.T @ pose.t
    return map_from_camera, None


SOLVERS: dict[str, Solver] = {
    "ours, PoseLib (default)": ours(SolverConfig()),
    "ours, OpenCV USAC": ours(SolverConfig(backend="opencv")),
    REFERENCE: reference,
}


def evaluate(name: str, solve: Solver, data: Predictions, seeds: range) -> Row:
    """Run one solver on all frames with each seed."""
    medians, rates, times, nees = [], [], [], []
    for seed in seeds:
        errors = np.full((len(data.points), 2), np.inf)         # centimetres and degrees, infinite if rejected
        for frame, points in enumerate(data.points):
            start = thread_time()
            found, covariance = solve(data.correspondences(points), seed)
            times.append((thread_time() - start) * 1e3)
            if found is None:
                continue
            error = _error(found, data.poses[frame])
            errors[frame] = np.linalg.norm(error[:3]) * 100.0, np.degrees(np.linalg.norm(error[3:]))
            if covariance is not None:
                nees.append(float(error @ np.linalg.solve(covariance, error)))
        accepted = np.isfinite(errors[:, 0])
        medians.append(np.median(errors[accepted], axis=0) if accepted.any() else np.full(2, np.nan))
        rates.append([float(((errors[:, 0] <= limit) & (errors[:, 1] <= 5.0)).mean()) for limit in (5.0, 10.0, 25.0)]
                     + [float(accepted.mean())])
    cm, deg = np.array(medians).T
    recall_5cm, recall_10cm, recall_25cm, accepted_share = (float(value) for value in np.mean(rates, axis=0))
    return Row(name=name, median_cm=float(cm.mean()), seed_std_cm=float(cm.std()), median_deg=float(deg.mean()),
               recall_5cm=recall_5cm, recall_10cm=recall_10cm, recall_25cm=recall_25cm, accepted=accepted_share,
               median_ms=float(np.median(times)), p95_ms=float(np.percentile(times, 95)),
               nees=float(np.mean(nees)) if nees else float("nan"),
               inside_95=float((np.array(nees) < chi2.ppf(0.95, 6)).mean()) if nees else float("nan"))


def count_false_acceptances(data: Predictions, every: int = 1) -> dict[str, tuple[int, int]]:
    """Count (accepted, tried) for frames with wrong predictions: mirrored, shuffled by patch or block, two mixed."""
    rng = np.random.default_rng(0)
    counts: dict[str, tuple[int, int]] = {}
    for frame in range(0, len(data.points), every):
        grid = data.points[frame].reshape(60, 80, 3)
        blocks = grid.reshape(6, 10, 8, 10, 3).swapaxes(1, 2).reshape(48, 10, 10, 3)
        mixed = rng.permutation(blocks).reshape(6, 8, 10, 10, 3).swapaxes(1, 2).reshape(60, 80, 3)
        other = data.points[(frame + 37) % len(data.points)].reshape(60, 80, 3)
        for name, wrong in {"mirrored": grid[:, ::-1], "upside down": grid[::-1], "blocks shuffled": mixed,
                            "patches shuffled": rng.permutation(grid.reshape(-1, 3)),
                            "two mirrored frames mixed": np.where(rng.random((60, 80, 1)) < 0.5, grid[:, ::-1],
                                                                  other[:, ::-1])}.items():
            accepted = estimate_verified_pose(data.correspondences(wrong.reshape(-1, 3)), seed=frame).accepted
            before = counts.get(name, (0, 0))
            counts[name] = before[0] + int(accepted), before[1] + 1
    return counts


def run(predictions_path: Path | str = DEFAULT_PATH, seeds: range = range(5)) -> str:
    """Run all solvers and return the table as text. Raises UserError if the file is missing."""
    data = load(Path(predictions_path))
    cv2.setNumThreads(1)
    rows = [evaluate(name, solve, data, seeds) for name, solve in SOLVERS.items()]
    base = next(row.median_ms for row in rows if row.name == REFERENCE)
    lines = ["| solver | cm (sd over seeds) | deg | 5/5 | 10/5 | 25/5 | accepted | CPU ms p50 | p95 | p50 / reference "
             "| NEES | in 95 % |", "|---|---|---|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row.name} | {row.median_cm:.2f} ({row.seed_std_cm:.2f}) | {row.median_deg:.2f} | "
                     f"{row.recall_5cm:.3f} | {row.recall_10cm:.3f} | {row.recall_25cm:.3f} | {row.accepted:.3f} | "
                     f"{row.median_ms:.1f} | {row.p95_ms:.1f} | {row.median_ms / base:.2f} | {row.nees:.1f} | "
                     f"{row.inside_95:.2f} |")
    lines += ["", f"{len(data.points)} frames, {len(seeds)} seeds. Wrong frames accepted (default solver): "
              + ", ".join(f"{name} {hit}/{tried}" for name, (hit, tried) in count_false_acceptances(data).items())
              + "."]
    return "\n".join(lines)


def _error(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return the true pose minus the found one as (6,): position, then rotation vector about the axes of the map."""
    return np.r_[true[:3, 3] - found[:3, 3], Rotation.from_matrix(true[:3, :3] @ found[:3, :3].T).as_rotvec()]


if __name__ == "__main__":
    try:
        print(run(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_PATH))
    except UserError as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
