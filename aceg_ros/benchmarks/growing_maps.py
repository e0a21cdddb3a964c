# SPDX-License-Identifier: Apache-2.0
"""Maps that grow: rendered rooms mapped by day, extended by night, then with furniture moved.

    python -m aceg_ros.benchmarks.growing_maps -o OUTPUT [--rooms N] [--images N] [--textures DIR]
        [--fade-after N]

After each step, images of all visits are localized. For comparison: a map of all recordings at once. What is in OUTPUT
already is not computed again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aceg_ros.datasets import open_scene, open_scenes, write_ace_scene
from aceg_ros.evaluation.evaluate import evaluate
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.maps.keyframe_database import SECTION
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.build_map import FADE_AFTER, build_map, extend_map
from aceg_ros.methods.registry import default_method, make_localizer
from aceg_ros.synthetic.textures import load_atlas
from aceg_ros.synthetic.visits import VISITS, render_visits
from aceg_ros.utils.atomic_file import write_json
from aceg_ros.utils.malloc import configure_malloc

ROOM_SEED = 5_000_000
BOUND = (0.05, 5.0)                 # metres and degrees of a recalled image
WRONG_M, WRONG_DEG = 0.5, 10.0
STEPS = ("day", "day + night", "day + night + moved", "all at once")


def run(output: Path, rooms: int, *, images: int, fade_after: int, textures: Path | None = None) -> str:
    """Map, extend and evaluate all rooms, with so many images to map and half as many to localize of each recording.

    Returns a Markdown table of means over the rooms.
    """
    folders = [output / f"room_{number}" for number in range(rooms)]
    for number, folder in enumerate(folders):
        _render(folder, ROOM_SEED + number, textures, images)
    results = [_room(folder, fade_after) for folder in folders]
    lines = ["| map of | " + " | ".join(f"recall {name}" for name in VISITS) + " | wrong | keyframes | landmarks |"
             " observations | MB | s |", "|---" * (len(VISITS) + 7) + "|"]
    for step in STEPS:
        each = [result[step] for result in results]
        recall = " | ".join(f"{np.mean([one['recall'][name] for one in each]):.2f}" for name in VISITS)
        wrong = sum(sum(one["wrong"].values()) for one in each)
        sizes = " | ".join(f"{np.mean([one[key] for one in each]):.0f}" for key in
                           ("keyframes", "landmarks", "observations"))
        lines.append(f"| {step} | {recall} | {wrong} | {sizes} | {np.mean([one['mb'] for one in each]):.1f} |"
                     f" {np.mean([one['seconds'] for one in each]):.0f} |")
    return "\n".join(lines)


def _room(folder: Path, fade_after: int) -> dict[str, Any]:
    """Return the results of a room by step."""
    done: dict[str, Any] = {}
    scene_map: SceneMap | None = None
    for step, name in zip(STEPS, (*VISITS, None), strict=True):
        file = folder / f"{step.replace(' ', '')}_{fade_after}.map"
        result = file.with_suffix(".json")
        if result.exists():
            done[step], scene_map = json.loads(result.read_text()), SceneMap.load(file)
            continue
        budget = MappingBudget.start(300.0)
        options = MappingOptions(device="cpu")
        if name is None or scene_map is None:
            frames = open_scenes([folder / each / "mapping" for each in (VISITS if name is None else (name,))])
            scene_map, _ = build_map(default_method(options), options, frames, budget)
        else:
            scene_map, _ = extend_map(scene_map, options, open_scene(folder / name / "mapping"), budget,
                                      fade_after=fade_after)
        done[step] = _evaluated(scene_map, folder) | {"seconds": budget.elapsed_s(), "mb": scene_map.save(file) / 1e6}
        write_json(done[step], result)
        print(folder.name, step, done[step], flush=True)
    return done


def _render(folder: Path, seed: int, textures: Path | None, images: int) -> None:
    """Write the recordings of a room, if they are missing."""
    if (folder / VISITS[-1] / "query").exists():
        return
    for rendered in render_visits(seed, load_atlas(textures), mapping=images, query=images // 2):
        write_ace_scene(folder / rendered.name / "mapping", rendered.mapping)
        write_ace_scene(folder / rendered.name / "query", rendered.query)


def _evaluated(scene_map: SceneMap, folder: Path) -> dict[str, Any]:
    database = scene_map.sections[SECTION]
    recall, wrong = {}, {}
    for name in VISITS:
        results = evaluate(make_localizer(scene_map, "cpu"), open_scene(folder / name / "query"))
        errors = np.array([result.errors for result in results if result.errors is not None]).reshape(-1, 2)
        recall[name] = float((errors <= BOUND).all(1).sum() / len(results))
        wrong[name] = int((errors > (WRONG_M, WRONG_DEG)).any(1).sum())
    return {"recall": recall, "wrong": wrong, "keyframes": len(database["poses"]),
            "landmarks": len(database["points"]), "observations": len(database["descriptors"])}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rooms", type=int, default=3)
    parser.add_argument("--images", type=int, default=40, help="to map, of each recording")
    parser.add_argument("--textures", type=Path)
    parser.add_argument("--fade-after", type=int, default=FADE_AFTER)
    options = parser.parse_args(arguments)
    configure_malloc()
    print(run(options.output, options.rooms, images=options.images, fade_after=options.fade_after,
              textures=options.textures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
