# SPDX-License-Identifier: Apache-2.0
"""Compares the predicted chance of a pose with what the images of the benchmark of rigs measured.

    python -m aceg_ros.benchmarks.coverage OUTPUT [--rooms N] [--fit M] [--textures DIR]

OUTPUT is that of aceg_ros.benchmarks.rigs. The images of each camera alone are taken. The model's constants are fitted
to those of the first M rooms, and printed; the tables of calibration are of the constants in the code, for the rooms
that were fitted to and for the others.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from aceg_ros.benchmarks.rigs import CASES, rig_room
from aceg_ros.maps import coverage
from aceg_ros.maps.coverage import LandmarkVisibility, chance_of_pose
from aceg_ros.maps.keyframe_database import SECTION, KeyframeDatabase
from aceg_ros.synthetic.rig_sessions import NAMES, robot_camera
from aceg_ros.synthetic.textures import load_atlas

BOUND = (0.25, 5.0)                 # metres, degrees: within it a pose counts
BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
ANGLES_DEG, OCTAVES = (20.0, 30.0, 40.0), (0.5, 0.75, 1.0)


def measured(output: Path, number: int) -> np.ndarray:
    """Return whether each image (stops, cameras) of a room was localized within the bound."""
    cases = list(CASES)
    found = []
    for name in NAMES:
        results = json.loads((output / f"rig_room_{number}_case_{cases.index(f'1: {name}')}.json").read_text())
        found.append([result["errors"] is not None and result["errors"][0] <= BOUND[0]
                      and result["errors"][1] <= BOUND[1] for result in results])
    return np.array(found).T


def predicted_inliers(output: Path, number: int, textures: Path | None) -> np.ndarray:
    """Return the expected inliers (stops, cameras) in the images of a room's query drive."""
    sessions, scene_map = rig_room(output, number, load_atlas(textures), 0.0)
    visibility = LandmarkVisibility(KeyframeDatabase.from_section(scene_map.sections[SECTION]))
    mounts = [sessions.rig.rig_from_camera[name] for name in NAMES]
    return np.array([[visibility.expected_inliers(base @ mount, robot_camera()) for mount in mounts]
                     for base in sessions.poses[1]])


def fit(expected: np.ndarray, right: np.ndarray) -> tuple[float, float, float]:
    """Return the logit at one expected inlier, its slope by their logarithm, and the mean log-likelihood."""
    log = np.log1p(expected)

    def loss(parameters: np.ndarray) -> float:
        logit = parameters[0] + parameters[1] * log
        return float(np.mean(np.logaddexp(0.0, logit) - right * logit)) + 1e-3 * float(parameters[1] ** 2)

    found = minimize(loss, np.array([-5.0, 1.0]), method="Nelder-Mead", options={"maxiter": 2000})
    return float(found.x[0]), float(found.x[1]), -float(found.fun)


def calibration_table(expected: np.ndarray, right: np.ndarray) -> str:
    """Return predicted against measured recall as Markdown, and the error of calibration: the mean absolute difference,
    weighted by the images of each bin."""
    chances = chance_of_pose(expected)
    rows = ["| predicted | images | mean predicted | measured |", "|---|---|---|---|"]
    error = 0.0
    for low, high in pairwise(BINS):
        chosen = (chances >= low) & ((chances < high) | (high == BINS[-1]))
        if chosen.any():
            mean, share = float(chances[chosen].mean()), float(right[chosen].mean())
            error += chosen.mean() * abs(mean - share)
            rows.append(f"| {low:.1f} to {high:.1f} | {chosen.sum()} | {mean:.2f} | {share:.2f} |")
    rows.append(f"| all | {len(right)} | {chances.mean():.2f} | {right.mean():.2f} |")
    return "\n".join([*rows, "", f"Error of calibration: {error:.3f}"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--rooms", type=int, default=6, help="(default: %(default)s)")
    parser.add_argument("--fit", type=int, default=3, help="rooms that constants are fitted to (default: %(default)s)")
    parser.add_argument("--textures", type=Path, help="folder of additional texture tiles")
    options = parser.parse_args(arguments)
    rooms = range(options.rooms)
    right = [measured(options.output, number).ravel() for number in rooms]
    given = coverage.ANGLE_RAD, coverage.OCTAVES
    for angle_deg in ANGLES_DEG:
        for octaves in OCTAVES:
            coverage.ANGLE_RAD, coverage.OCTAVES = np.radians(angle_deg), octaves
            expected = [predicted_inliers(options.output, number, options.textures).ravel()
                        for number in rooms[:options.fit]]
            at_one, slope, likelihood = fit(np.concatenate(expected), np.concatenate(right[:options.fit]))
            print(f"{angle_deg:.0f} deg, {octaves} octaves: logit {at_one:.2f} + {slope:.2f} log, log-likelihood"
                  f" {likelihood:.3f}")
    coverage.ANGLE_RAD, coverage.OCTAVES = given
    expected = [predicted_inliers(options.output, number, options.textures).ravel() for number in rooms]
    for title, chosen in (("fitted", slice(0, options.fit)), ("others", slice(options.fit, None))):
        if right[chosen]:
            print(f"\n{title}:\n\n{calibration_table(np.concatenate(expected[chosen]), np.concatenate(right[chosen]))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
