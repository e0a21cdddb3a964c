"""Maps rendered rooms that no training saw, in textures that it did, and finds the pictures of a later visit there:
other light, things moved.

    python -m aceg_ros.benchmarks.rooms -o OUTPUT [--methods M ...] [--budget S] [--rooms N]
        [--textures DIR] [--walks] [--label L] [--map-options ...]

--walks: long halls, walked down once, in the place of rooms. --map-options: more arguments of `aceg map`, last, and
--label, what to call their maps. What OUTPUT already has is not done again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aceg_ros.benchmarks.scenes import map_and_evaluate
from aceg_ros.datasets import write_ace_scene
from aceg_ros.methods.registry import default_names
from aceg_ros.synthetic.hall_sessions import render_hall_sessions
from aceg_ros.synthetic.room_sessions import render_room_sessions
from aceg_ros.synthetic.textures import load_atlas

ROOM_SEED = 3_000_000                  # training rooms have seeds from 1,000,000 and 2,000,000
KEYS = ("0.05m_5deg", "0.1m_5deg", "0.25m_5deg", "0.5m_5deg")


def run(output: Path, methods: list[str], budget_s: float, rooms: int, textures: Path | None,
        walks: bool = False, label: str = "", map_options: Sequence[str] = ()) -> str:
    """Returns a table as Markdown text: each method's recalls over all rooms."""
    columns = ("method", "budget s", "pictures", "localized", "median m", "0.05/5", "0.1/5", "0.25/5", "0.5/5",
               "inside 95 %", "std m")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    folders = [_room(output, number, textures, walks) for number in range(rooms)]
    for method in methods:
        name = f"{method}_{budget_s:.0f}{label}"
        found = [map_and_evaluate(folder, folder / f"{name}.map", method, budget_s,
                                map_options=map_options) for folder in folders]
        frames, localized = sum(each["frames"] for each in found), sum(each["localized"] for each in found)
        medians = [each["median_translation_m"] for each in found if each["median_translation_m"] is not None]
        recall = " | ".join(f"{sum(each['recall'][key] * each['frames'] for each in found) / frames:.2f}"
                            for key in KEYS)
        median = f"{np.median(medians):.3f}" if medians else "-"
        inside = sum((each["consistency"]["inside_95"] or 0.0) * each["localized"] for each in found)
        deviations = [each["consistency"]["median_std_m"] for each in found if each["localized"]]
        claimed = f"{inside / localized:.2f} | {np.median(deviations):.3f}" if localized else "- | -"
        lines.append(f"| {method} {label} | {budget_s:.0f} | {frames} | {localized} | {median} | {recall} |"
                     f" {claimed} |")
    return "\n".join(lines)


def _room(output: Path, number: int, textures: Path | None, walk: bool) -> Path:
    """Folder with mapping/ and query/ of a room or walk, rendered if it is not there."""
    folder = output / f"{'walk' if walk else 'room'}_{number}"
    visits = render_hall_sessions if walk else render_room_sessions
    if not (folder / "complete").exists():
        mapping, later = visits(ROOM_SEED + number, load_atlas(textures))
        write_ace_scene(folder / "mapping", mapping)
        write_ace_scene(folder / "query", later)
        (folder / "complete").touch()
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=list(reversed(default_names())))
    parser.add_argument("--budget", type=float, default=60.0)
    parser.add_argument("--rooms", type=int, default=4)
    parser.add_argument("--textures", type=Path)
    parser.add_argument("--walks", action="store_true")
    parser.add_argument("--label", default="")
    parser.add_argument("--map-options", nargs=argparse.REMAINDER, default=())
    options = parser.parse_args()
    print(run(options.output, options.methods, options.budget, options.rooms, options.textures,
              options.walks, options.label, options.map_options))
