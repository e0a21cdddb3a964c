# SPDX-License-Identifier: Apache-2.0
"""Maps rendered rooms whose mapping poses were made inexact, and localizes exact query images.

    python -m aceg_ros.benchmarks.pose_noise -o OUTPUT [--rooms N] [--position-cm 0 1 3 5] [--rotation-deg 0 0.3 1]
        [--kinds noise drift] [--switch=--FLAG] [--method M] [--budget S]

noise: errors of each pose of its own. drift: errors that change slowly along the recording. Their lengths are, root
mean square, as given. --switch: a flag of `aceg map`, with and without which everything is mapped (to compare refined
poses with given ones). Results that are in OUTPUT already are not computed again. The rows are over all rooms.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from aceg_ros.benchmarks.scenes import RECALL_KEYS, map_and_evaluate
from aceg_ros.datasets import write_ace_scene
from aceg_ros.methods.registry import names
from aceg_ros.synthetic.room_sessions import render_room_sessions
from aceg_ros.synthetic.textures import load_atlas

ROOM_SEED = 4_000_000               # no room of the trainings or of aceg_ros.benchmarks.rooms
MAPPING_FRAMES, QUERY_FRAMES, VIEWPOINTS = 48, 12, 3
DRIFT_PERIODS = 1.5                 # of the errors of a drift, along a recording
COLUMNS = ("errors", "cm", "deg", "map options", "frames", "localized", "wrong", "median m", "deg", "0.05/5", "0.1/5",
           "0.25/5", "0.5/5", "inside 95 %")


@dataclass(frozen=True, kw_only=True)
class PoseErrors:
    """Errors of mapping poses. kind: "noise" or "drift". position_cm, rotation_deg: their root mean square length."""

    kind: str
    position_cm: float
    rotation_deg: float

    @property
    def name(self) -> str:
        """Name of the folder."""
        return f"{self.kind}_{self.position_cm:g}cm_{self.rotation_deg:g}deg"

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the errors (count, 6) of the poses of a recording: metres, then radians, in the axes of the map."""
        if self.kind == "noise":
            errors = rng.normal(size=(count, 6))
        else:
            phase = 2 * np.pi * DRIFT_PERIODS * np.arange(count)[:, None] / count + rng.uniform(0, 2 * np.pi, 6)
            errors = np.sin(phase) * rng.normal(size=6)
        for axes, size in ((slice(0, 3), self.position_cm / 100), (slice(3, 6), np.radians(self.rotation_deg))):
            length = np.sqrt(np.square(errors[:, axes]).sum(1).mean())
            errors[:, axes] *= size / length
        return errors


def disturb(pose: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Return the pose (4, 4) with an error (6,): metres, then radians."""
    moved = pose.copy()
    moved[:3, 3] += error[:3]
    moved[:3, :3] = Rotation.from_rotvec(error[3:]).as_matrix() @ pose[:3, :3]
    return moved


def conditions(kinds: Sequence[str], position_cm: Sequence[float], rotation_deg: Sequence[float]) -> list[PoseErrors]:
    """Return all combinations; without errors there is one alone."""
    chosen = [PoseErrors(kind=kind, position_cm=position, rotation_deg=rotation)
              for kind in kinds for position in position_cm for rotation in rotation_deg]
    exact = [each for each in chosen if each.position_cm == 0 and each.rotation_deg == 0]
    return exact[:1] + [each for each in chosen if each not in exact]


def run(output: Path, chosen: Sequence[PoseErrors], *, rooms: int, method: str, budget_s: float,
        variants: Sequence[Sequence[str]] = ((),), textures: Path | None = None) -> str:
    """Map and evaluate the rooms with each kind of errors. Returns a table as Markdown text.

    variants: more arguments of `aceg map`, each of which is tried.
    """
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for errors in chosen:
        folders = [_room(output, number, errors, textures) for number in range(rooms)]
        for options in variants:
            label = "".join(options).replace("/", "_")
            results = [map_and_evaluate(folder, folder / f"{method}{label}.map", method=method, budget_s=budget_s,
                                        map_options=options) for folder in folders]
            lines.append(f"| {errors.kind} | {errors.position_cm:g} | {errors.rotation_deg:g} | {' '.join(options)} | "
                         f"{_cells(results)} |")
    return "\n".join(lines)


def _room(output: Path, number: int, errors: PoseErrors, textures: Path | None) -> Path:
    """Return the folder of a room with inexact mapping poses; make it if it is missing."""
    exact, folder = output / f"room_{number}", output / f"room_{number}_{errors.name}"
    if not (exact / "complete").exists():
        shutil.rmtree(exact, ignore_errors=True)
        mapping, query = render_room_sessions(ROOM_SEED + number, load_atlas(textures), mapping=MAPPING_FRAMES,
                                              query=QUERY_FRAMES, viewpoints=VIEWPOINTS)
        write_ace_scene(exact / "mapping", mapping)
        write_ace_scene(exact / "query", query)
        (exact / "complete").touch()
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(exact, folder, ignore=shutil.ignore_patterns("complete"))
        paths = sorted((folder / "mapping" / "poses").iterdir())
        drawn = errors.draw(len(paths), np.random.default_rng(ROOM_SEED + number))
        for path, error in zip(paths, drawn, strict=True):
            np.savetxt(path, disturb(np.loadtxt(path), error))
        (folder / "complete").touch()
    return folder


def _cells(results: list[dict[str, Any]]) -> str:
    """Return the cells of a row, over all rooms."""
    frames, localized, wrong = (sum(each[key] for each in results) for key in ("frames", "localized", "false_accepts"))
    recall = " | ".join(f"{sum(each['recall'][key] * each['frames'] for each in results) / frames:.2f}"
                        for key in RECALL_KEYS)
    medians = np.array([[each["median_translation_m"], each["median_rotation_deg"]] for each in results
                        if each["localized"]])
    median = "{:.3f} | {:.2f}".format(*np.median(medians, axis=0)) if len(medians) else "- | -"
    inside = sum((each["consistency"]["inside_95"] or 0.0) * each["localized"] for each in results)
    return f"{frames} | {localized} | {wrong} | {median} | {recall} | " + (
        f"{inside / localized:.2f}" if localized else "-")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rooms", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--position-cm", type=float, nargs="+", default=[0.0, 1.0, 3.0, 5.0])
    parser.add_argument("--rotation-deg", type=float, nargs="+", default=[0.0, 0.3, 1.0])
    parser.add_argument("--kinds", nargs="+", choices=("noise", "drift"), default=["noise", "drift"])
    parser.add_argument("--switch", help="a flag of aceg map, with and without which everything is mapped")
    parser.add_argument("--method", choices=names(), default=names()[0], help="(default: %(default)s)")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for each map (default: %(default)s)")
    parser.add_argument("--textures", type=Path, help="folder of additional texture tiles")
    options = parser.parse_args(arguments)
    chosen = conditions(options.kinds, options.position_cm, options.rotation_deg)
    variants: list[tuple[str, ...]] = [()] if options.switch is None else [(), (options.switch,)]
    print(run(options.output, chosen, rooms=options.rooms, method=options.method, budget_s=options.budget,
              variants=variants, textures=options.textures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
