"""Maps and evaluates a folder of scenes with the default settings, one process each, and prints a table.

    python -m aceg_ros.benchmarks.scenes SCENES -o OUTPUT [--method M] [--budget S] [--every N]
        [--only NAME ...] [--map-options ...]

SCENES holds folders with mapping/ and query/. What OUTPUT already has is not done again, so an interrupted run goes on.
--map-options: more arguments of `aceg map`, last.
The first scene's map is shown the pictures of all others, too: none of them should be accepted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aceg_ros.methods.registry import names


def run(scenes: Path, output: Path, method: str, budget_s: float, every: int = 1, only: Sequence[str] = (),
        foreign: bool = True, map_options: Sequence[str] = (), first: str = "redkitchen7s") -> str:
    """Returns the tables as Markdown text. every: of the mapping pictures; foreign: whether the first map is shown the
    other scenes."""
    names = sorted(path.name for path in scenes.iterdir()
                   if (path / "mapping").is_dir() and (not only or path.name in only))
    names.sort(key=lambda name: name != first)
    output.mkdir(parents=True, exist_ok=True)
    columns = ("scene", "frames", "localized", "median", "deg", "0.05/5", "0.1/5", "0.25/5", "0.5/5",
               "inside 95 %", "std", "mapping s", "map MB", "frame ms p50 / p99")
    rows = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name in names:
        found = map_and_evaluate(scenes / name, output / f"{name}.map", method, budget_s, every, map_options)
        rows.append(_row(name, found))
    if not foreign:
        return "\n".join(rows)
    rows += ["", f"| pictures shown to the {names[0]} map | frames | accepted | refused |", "|---|---|---|---|"]
    for name in names[1:]:
        for part in ("mapping", "query"):
            found = _evaluate(output / f"{names[0]}.map", scenes / name / part, output / f"cross_{name}_{part}.json")
            reasons = ", ".join(f"{status} {count}" for status, count in found["refused"].items())
            rows.append(f"| {name} {part} | {found['frames']} | {found['localized']} | {reasons} |")
    return "\n".join(rows)


def map_and_evaluate(scene: Path, map_path: Path, method: str, budget_s: float, every: int = 1,
                     map_options: Sequence[str] = ()) -> dict[str, Any]:
    """The figures of a scene's query/ in a map of its mapping/, both made if they are not there."""
    if not map_path.exists():
        _aceg("map", scene / "mapping", "-o", map_path, "--budget", budget_s, "--method", method, "--every", every,
              *map_options)
    return _evaluate(map_path, scene / "query", map_path.with_suffix(".json"))


def _evaluate(map_path: Path, scene: Path, result: Path) -> dict[str, Any]:
    if not result.exists():
        _aceg("evaluate", map_path, scene, "--json", result)
    return json.loads(result.read_text())


def _aceg(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "aceg_ros.cli", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def _row(name: str, found: dict[str, Any]) -> str:
    recall = " | ".join(f"{found['recall'][key]:.2f}" for key in ("0.05m_5deg", "0.1m_5deg", "0.25m_5deg", "0.5m_5deg"))
    median = "- | -" if found["median_translation_m"] is None else \
        f"{found['median_translation_m']:.3f} | {found['median_rotation_deg']:.2f}"
    latency, claimed = found["latency_ms"], found["consistency"]
    claims = "- | -" if claimed["inside_95"] is None else \
        f"{claimed['inside_95']:.2f} | {claimed['median_std_m']:.3f}"
    costs = f"{found['mapping_s']:.0f} | {found['map_bytes'] / 1e6:.1f} | {latency['p50']:.0f} / {latency['p99']:.0f}"
    return f"| {name} | {found['frames']} | {found['localized']} | {median} | {recall} | {claims} | {costs} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--method", default=names()[0])
    parser.add_argument("--budget", type=float, default=300.0)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--no-foreign", action="store_true")
    parser.add_argument("--map-options", nargs=argparse.REMAINDER, default=())
    options = parser.parse_args()
    print(run(options.scenes, options.output, options.method, options.budget, options.every, options.only,
              not options.no_foreign, options.map_options))
