"""Maps rendered rooms that no training saw, and finds the pictures of a later visit there: other light, things moved.

    python -m aceg_ros.evaluation.room_benchmark -o OUTPUT [--methods ace ace_g] [--budget S] [--rooms N]
        [--textures DIR]

What OUTPUT already has is not done again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from aceg_ros.datasets import write_ace_scene
from aceg_ros.evaluation.scene_benchmark import map_and_evaluate
from aceg_ros.pretraining.places import FIRST_ROOM
from aceg_ros.synthetic.textures import load_atlas
from aceg_ros.synthetic.visits import mapping_and_later_visit

KEYS = ("0.05m_5deg", "0.1m_5deg", "0.25m_5deg", "0.5m_5deg")


def run(output: Path, methods: list[str], budget_s: float, rooms: int, textures: Path | None) -> str:
    """Returns a table as Markdown text: each method's recalls over all rooms."""
    columns = ("method", "budget s", "pictures", "localized", "median m", "0.05/5", "0.1/5", "0.25/5", "0.5/5",
               "inside 95 %", "std m")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    folders = [_room(output, number, textures) for number in range(rooms)]
    for method in methods:
        name = f"{method}_{budget_s:.0f}"
        found = [map_and_evaluate(folder, folder / f"{name}.map", method, budget_s) for folder in folders]
        frames, localized = sum(each["frames"] for each in found), sum(each["localized"] for each in found)
        medians = [each["median_translation_m"] for each in found if each["median_translation_m"] is not None]
        recall = " | ".join(f"{sum(each['recall'][key] * each['frames'] for each in found) / frames:.2f}"
                            for key in KEYS)
        median = f"{np.median(medians):.3f}" if medians else "-"
        inside = sum((each["consistency"]["inside_95"] or 0.0) * each["localized"] for each in found)
        deviations = [each["consistency"]["median_std_m"] for each in found if each["localized"]]
        claimed = f"{inside / localized:.2f} | {np.median(deviations):.3f}" if localized else "- | -"
        lines.append(f"| {method} | {budget_s:.0f} | {frames} | {localized} | {median} | {recall} | {claimed} |")
    return "\n".join(lines)


def _room(output: Path, number: int, textures: Path | None) -> Path:
    """Folder with mapping/ and query/ of a room, rendered if it is not there."""
    folder = output / f"room_{number}"
    if not (folder / "complete").exists():
        mapping, later = mapping_and_later_visit(FIRST_ROOM + number, load_atlas(textures))
        write_ace_scene(folder / "mapping", mapping)
        write_ace_scene(folder / "query", later)
        (folder / "complete").touch()
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["ace", "ace_g"])
    parser.add_argument("--budget", type=float, default=60.0)
    parser.add_argument("--rooms", type=int, default=4)
    parser.add_argument("--textures", type=Path)
    options = parser.parse_args()
    print(run(options.output, options.methods, options.budget, options.rooms, options.textures))
