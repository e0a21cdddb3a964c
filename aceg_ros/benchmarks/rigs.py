# SPDX-License-Identifier: Apache-2.0
"""Maps rendered rooms with a simulated robot of four cameras, and localizes a later drive with one, two and four.

    python -m aceg_ros.benchmarks.rigs -o OUTPUT [--rooms N] [--textures DIR] [--budget S]

The mapping drive is a loop; the query drive stops anywhere in the room, under other light, after objects were moved.
Failures: one of the four images is missing, the hand is before the lens, or the camera repeats an image of another
stop. Results that are in OUTPUT already are not computed again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from aceg_ros.benchmarks.rooms import ROOM_SEED
from aceg_ros.camera import Frame
from aceg_ros.encoders.keypoints import Keypoints
from aceg_ros.evaluation.metrics import FrameResult
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.build_map import build_map
from aceg_ros.methods.registry import default_method
from aceg_ros.methods.rig_localizer import RigLocalizer
from aceg_ros.rig import RigFrame
from aceg_ros.synthetic.rig_sessions import NAMES, RigSessions, rig_sessions
from aceg_ros.synthetic.textures import load_atlas
from aceg_ros.utils.atomic_file import write_text

BOUNDS = ((0.05, 5.0), (0.1, 5.0), (0.25, 5.0))         # metres, degrees
WRONG = (0.25, 5.0)                                     # accepted poses with a larger error are wrong
COLUMNS = ("cameras", "stops", "localized", "0.05/5", "0.1/5", "0.25/5", "median m", "median deg", "wrong",
           "inside 95 %", "median NEES", "std m")
COVERED_GREY = 24.0                                     # of a hand before the lens

ImagesByName = Mapping[str, Frame]
Change = Callable[[ImagesByName, ImagesByName], ImagesByName]      # the images of a stop, and of the one before


def _only(*names: str) -> Change:
    return lambda frames, _: {name: frames[name] for name in names}


def _covered(frames: ImagesByName, _: ImagesByName) -> ImagesByName:
    """Cover the camera that looks ahead: a dark blur with noise."""
    front = frames["front"]
    shape = front.image.shape
    noise = np.random.default_rng(int(front.stamp_s)).normal(0.0, 4.0, shape)
    shade = cv2.GaussianBlur(front.image, (0, 0), 40).astype(float) * 0.1 + COVERED_GREY + noise
    return {**frames, "front": replace(front, image=np.clip(shade, 0, 255).astype(np.uint8))}


def _repeated(frames: ImagesByName, before: ImagesByName) -> ImagesByName:
    """Repeat the image ahead of the stop before."""
    return {**frames, "front": before["front"]}


CASES: dict[str, Change] = {
    **{f"1: {name}": _only(name) for name in NAMES}, "2: front, rear": _only("front", "rear"),
    "2: front, left": _only("front", "left"), "4": _only(*NAMES), "3: front missing": _only("left", "rear", "right"),
    "4: front covered": _covered, "4: front repeats the stop before": _repeated}


def run(output: Path, *, rooms: int, textures: Path | None, budget_s: float) -> str:
    """Map and localize. Returns a table as Markdown text."""
    output.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in CASES}
    for number in range(rooms):
        paths = {name: output / f"rig_room_{number}_case_{index}.json" for index, name in enumerate(CASES)}
        if not all(path.exists() for path in paths.values()):
            _evaluate(rig_room(output, number, load_atlas(textures), budget_s), paths)
        for name, path in paths.items():
            rows[name] += json.loads(path.read_text())
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    ones = [result for name in CASES if name.startswith("1") for result in rows[name]]
    return "\n".join([*lines, _row("1: each alone", ones), *(_row(name, rows[name]) for name in CASES)])


def rig_room(output: Path, number: int, atlas: Any, budget_s: float) -> tuple[RigSessions, SceneMap]:
    """Return the sessions in a room and its map, which is made if it is not in OUTPUT."""
    sessions = rig_sessions(ROOM_SEED + number, atlas)
    path = output / f"rig_room_{number}.map"
    if not path.exists():
        frames = [frame for moment in sessions.mapping() for frame in moment.posed_frames()]
        options = MappingOptions(device="cpu", trust_poses=True)
        scene_map, _ = build_map(default_method(options, {}), options, frames, MappingBudget.start(budget_s))
        scene_map.save(path)
    return sessions, SceneMap.load(path)


class _ExtractsOnce(RigLocalizer):
    """Keeps the keypoints of images, which several cases share."""

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self._kept: dict[int, tuple[Frame, Keypoints]] = {}

    def extract(self, frame: Frame) -> Keypoints:
        key = id(frame.image)           # whose frame is kept, so that nothing else gets its number
        if key not in self._kept:
            self._kept[key] = frame, super().extract(frame)
        return self._kept[key][1]


def _evaluate(room: tuple[RigSessions, SceneMap], paths: Mapping[str, Path]) -> None:
    """Localize the query drive in each case, and write the results."""
    localizer = _ExtractsOnce.from_map(room[1], device="cpu")
    moments = list(room[0].query())
    for name, change in CASES.items():
        if not paths[name].exists():
            write_text(paths[name], json.dumps([
                _result(localizer, moment, change(moment.frames, before.frames))
                for moment, before in zip(moments, [moments[-1], *moments[:-1]], strict=True)]))


def _result(localizer: RigLocalizer, moment: RigFrame, frames: ImagesByName) -> dict[str, Any]:
    assert moment.map_from_rig is not None
    seen = {name: replace(frame, map_from_camera=None, depth_m=None) for name, frame in frames.items()}
    estimate = localizer.localize(RigFrame(rig=moment.rig, frames=seen, stamp_s=moment.stamp_s, name=moment.name)).base
    result = FrameResult(name=moment.name, stamp_s=moment.stamp_s, truth=moment.map_from_rig, estimate=estimate,
                         latency_ms=0.0)
    deviations = result.standard_deviations
    return {"errors": result.errors, "nees": result.nees, "std_m": None if deviations is None else deviations[0],
            "status": estimate.status.value, "inliers": estimate.inliers}


def _row(name: str, results: Sequence[dict[str, Any]]) -> str:
    from aceg_ros.mapping.calibration import CHI2_95

    found = [result for result in results if result["errors"] is not None]
    errors = np.array([result["errors"] for result in found]).reshape(-1, 2)
    recall = " | ".join(f"{(errors <= bound).all(1).sum() / len(results):.2f}" for bound in BOUNDS)
    if not found:
        return f"| {name} | {len(results)} | 0 | {recall} |" + " - |" * 6
    nees = np.array([result["nees"] for result in found])
    medians = " | ".join(f"{value:.3f}" for value in np.median(errors, axis=0))
    return (f"| {name} | {len(results)} | {len(found)} | {recall} | {medians} | {int((errors > WRONG).any(1).sum())} |"
            f" {(nees <= CHI2_95).mean():.2f} | {np.median(nees):.1f} | {_median(found, 'std_m'):.3f} |")


def _median(results: Iterable[dict[str, Any]], key: str) -> float:
    return float(np.median([result[key] for result in results]))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rooms", type=int, default=6, help="(default: %(default)s)")
    parser.add_argument("--textures", type=Path, help="folder of additional texture tiles")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds for each map (default: %(default)s)")
    options = parser.parse_args(arguments)
    print(run(options.output, rooms=options.rooms, textures=options.textures, budget_s=options.budget))
    return 0


if __name__ == "__main__":
    sys.exit(main())
