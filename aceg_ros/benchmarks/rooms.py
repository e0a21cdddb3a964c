# SPDX-License-Identifier: Apache-2.0
"""Maps rendered rooms that are not in the training data (but with its textures), and localizes images of a later
session under other light and with objects moved.

    python -m aceg_ros.benchmarks.rooms -o OUTPUT [--methods ace ace_g] [--budget S] [--rooms N]
        [--first N] [--textures DIR] [--walks] [--label L] [--map-options ...]

--walks: walks through long halls instead of rooms. --label: suffix of the maps' names. --map-options, last: more
arguments of `aceg map`. Results that are in OUTPUT already are not computed again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aceg_ros.benchmarks.scenes import RECALL_KEYS, map_and_evaluate
from aceg_ros.datasets import write_ace_scene
from aceg_ros.methods.registry import default_names, names
from aceg_ros.synthetic.hall_sessions import render_hall_sessions
from aceg_ros.synthetic.room_sessions import render_room_sessions
from aceg_ros.synthetic.textures import load_atlas

ROOM_SEED = 3_000_000                  # training rooms have seeds from 1,000,000 and 2,000,000
COLUMNS = ("method", "budget s", "images", "localized", "wrong", "median m", "0.05/5", "0.1/5", "0.25/5", "0.5/5",
           "inside 95 %", "std m")


def run(output: Path, methods: Sequence[str], *, budget_s: float, rooms: Sequence[int], textures: Path | None = None,
        walks: bool = False, label: str = "", map_options: Sequence[str] = ()) -> str:
    """Map and evaluate the rooms with each method. Returns a Markdown table of recalls over all rooms."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    folders = [_rendered_room(output, number, textures, walks) for number in rooms]
    for method in methods:
        name = f"{method}_{budget_s:.0f}{label}"
        results = [map_and_evaluate(folder, folder / f"{name}.map", method=method, budget_s=budget_s,
                                    map_options=map_options) for folder in folders]
        lines.append(f"| {method} {label} | {budget_s:.0f} | {_cells(results)} |")
    return "\n".join(lines)


def _cells(results: list[dict[str, Any]]) -> str:
    """Return the cells of a row, over all rooms."""
    frames, localized = sum(each["frames"] for each in results), sum(each["localized"] for each in results)
    medians = [each["median_translation_m"] for each in results if each["median_translation_m"] is not None]
    recall = " | ".join(f"{sum(each['recall'][key] * each['frames'] for each in results) / frames:.2f}"
                        for key in RECALL_KEYS)
    median = f"{np.median(medians):.3f}" if medians else "-"
    inside = sum((each["consistency"]["inside_95"] or 0.0) * each["localized"] for each in results)
    deviations = [each["consistency"]["median_std_m"] for each in results if each["localized"]]
    covariance = f"{inside / localized:.2f} | {np.median(deviations):.3f}" if localized else "- | -"
    wrong = sum(each["false_accepts"] for each in results)
    return f"{frames} | {localized} | {wrong} | {median} | {recall} | {covariance}"


def _rendered_room(output: Path, number: int, textures: Path | None, walk: bool) -> Path:
    """Return the folder with mapping/ and query/ of a room, or of a walk through a hall; render it if it is missing."""
    folder = output / f"{'walk' if walk else 'room'}_{number}"
    render_sessions = render_hall_sessions if walk else render_room_sessions
    if not (folder / "complete").exists():
        mapping, query = render_sessions(ROOM_SEED + number, load_atlas(textures))
        write_ace_scene(folder / "mapping", mapping)
        write_ace_scene(folder / "query", query)
        (folder / "complete").touch()
    return folder


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=names(), default=list(reversed(default_names())),
                        help="(default: %(default)s)")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for each map (default: %(default)s)")
    parser.add_argument("--rooms", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first room (default: %(default)s)")
    parser.add_argument("--textures", type=Path, help="folder of additional texture tiles")
    parser.add_argument("--walks", action="store_true", help="walks through long halls instead of rooms")
    parser.add_argument("--label", default="", help="suffix of the maps' names")
    parser.add_argument("--map-options", nargs=argparse.REMAINDER, default=(), help="more arguments of aceg map")
    options = parser.parse_args(arguments)
    print(run(options.output, options.methods, budget_s=options.budget,
              rooms=range(options.first, options.first + options.rooms), textures=options.textures,
              walks=options.walks, label=options.label, map_options=options.map_options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
