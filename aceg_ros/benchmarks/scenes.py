# SPDX-License-Identifier: Apache-2.0
"""Maps and evaluates a folder of scenes, each in a process of its own, and prints a table.

    python -m aceg_ros.benchmarks.scenes SCENES -o OUTPUT [--method M] [--budget S] [--every N]
        [--only NAME ...] [--map-options ...]

SCENES contains folders with mapping/ and query/. Results that are in OUTPUT already are not computed again, so that an
interrupted run can be continued. --map-options, last: more arguments of `aceg map`.
The images of all other scenes are also localized in the first scene's map, which should accept none of them.
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

RECALL_KEYS = ("0.05m_5deg", "0.1m_5deg", "0.25m_5deg", "0.5m_5deg")
FIRST_SCENE = "redkitchen7s"
COLUMNS = ("scene", "frames", "localized", "median", "deg", "0.05/5", "0.1/5", "0.25/5", "0.5/5", "inside 95 %", "std",
           "mapping s", "map MB", "frame ms p50 / p99")


def run(scenes: Path, output: Path, *, method: str, budget_s: float, every: int = 1, only: Sequence[str] = (),
        other_scenes: bool = True, map_options: Sequence[str] = ()) -> str:
    """Map and evaluate the scenes. Returns the tables as Markdown text.

    Args:
        scenes: folder of folders with mapping/ and query/.
        output: folder for maps and results.
        method: name of the mapping method.
        budget_s: seconds for each map.
        every: map every n-th image.
        only: names of the scenes; empty for all.
        other_scenes: whether images of the other scenes are localized in the first scene's map as well.
        map_options: more arguments of `aceg map`.
    """
    chosen = sorted((path.name for path in scenes.iterdir()
                     if (path / "mapping").is_dir() and (not only or path.name in only)),
                    key=lambda name: (name != FIRST_SCENE, name))
    output.mkdir(parents=True, exist_ok=True)
    rows = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for name in chosen:
        result = map_and_evaluate(scenes / name, output / f"{name}.map", method=method, budget_s=budget_s, every=every,
                                  map_options=map_options)
        rows.append(_row(name, result))
    if not other_scenes:
        return "\n".join(rows)
    rows += ["", f"| images localized in the map of {chosen[0]} | frames | accepted | rejected |", "|---|---|---|---|"]
    for name in chosen[1:]:
        for part in ("mapping", "query"):
            result = _evaluate(output / f"{chosen[0]}.map", scenes / name / part, output / f"cross_{name}_{part}.json")
            reasons = ", ".join(f"{status} {count}" for status, count in result["refused"].items())
            rows.append(f"| {name} {part} | {result['frames']} | {result['localized']} | {reasons} |")
    return "\n".join(rows)


def map_and_evaluate(scene: Path, map_path: Path, *, method: str, budget_s: float, every: int = 1,
                     map_options: Sequence[str] = ()) -> dict[str, Any]:
    """Map a scene's mapping/ and evaluate its query/, unless there are results. Returns those of `aceg evaluate`."""
    if not map_path.exists():
        _aceg(["map", scene / "mapping", "-o", map_path, "--budget", budget_s, "--method", method, "--every", every,
               *map_options])
    return _evaluate(map_path, scene / "query", map_path.with_suffix(".json"))


def _evaluate(map_path: Path, scene: Path, result: Path) -> dict[str, Any]:
    if not result.exists():
        _aceg(["evaluate", map_path, scene, "--json", result])
    return json.loads(result.read_text())


def _aceg(arguments: Sequence[object]) -> None:
    subprocess.run([sys.executable, "-m", "aceg_ros.cli", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def _row(name: str, result: dict[str, Any]) -> str:
    recall = " | ".join(f"{result['recall'][key]:.2f}" for key in RECALL_KEYS)
    median = "- | -" if result["median_translation_m"] is None else \
        f"{result['median_translation_m']:.3f} | {result['median_rotation_deg']:.2f}"
    latency, consistency = result["latency_ms"], result["consistency"]
    covariance = "- | -" if consistency["inside_95"] is None else \
        f"{consistency['inside_95']:.2f} | {consistency['median_std_m']:.3f}"
    costs = f"{result['mapping_s']:.0f} | {result['map_bytes'] / 1e6:.1f} | {latency['p50']:.0f} / {latency['p99']:.0f}"
    return f"| {name} | {result['frames']} | {result['localized']} | {median} | {recall} | {covariance} | {costs} |"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--method", choices=names(), default=names()[0], help="(default: %(default)s)")
    parser.add_argument("--budget", type=float, default=300.0, help="seconds for each map (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1, help="map every n-th image")
    parser.add_argument("--only", nargs="*", default=(), help="names of the scenes")
    parser.add_argument("--no-foreign", action="store_true", help="do not localize images of the other scenes")
    parser.add_argument("--map-options", nargs=argparse.REMAINDER, default=(), help="more arguments of aceg map")
    options = parser.parse_args(arguments)
    print(run(options.scenes, options.output, method=options.method, budget_s=options.budget, every=options.every,
              only=options.only, other_scenes=not options.no_foreign, map_options=options.map_options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
