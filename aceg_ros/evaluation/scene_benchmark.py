"""Maps and evaluates a folder of scenes with the default settings, one process each, and prints a table.

    python -m aceg_ros.evaluation.scene_benchmark SCENES -o OUTPUT [--budget S]

SCENES holds folders with mapping/ and query/. What OUTPUT already has is not done again, so an interrupted run goes on.
The first scene's map is shown the pictures of all others, too: none of them should be accepted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def run(scenes: Path, output: Path, budget_s: float, first: str = "redkitchen7s") -> str:
    """Returns the tables as Markdown text."""
    names = sorted(path.name for path in scenes.iterdir() if (path / "mapping").is_dir())
    names.sort(key=lambda name: name != first)
    output.mkdir(parents=True, exist_ok=True)
    columns = ("scene", "frames", "localized", "median", "deg", "0.05/5", "0.1/5", "0.25/5", "0.5/5", "mapping s",
               "map MB", "frame ms p50 / p99")
    rows = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name in names:
        map_path = output / f"{name}.map"
        if not map_path.exists():
            _aceg("map", scenes / name / "mapping", "-o", map_path, "--budget", budget_s)
        rows.append(_row(name, _evaluate(map_path, scenes / name / "query", output / f"{name}.json")))
    rows += ["", f"| pictures shown to the {names[0]} map | frames | accepted | refused |", "|---|---|---|---|"]
    for name in names[1:]:
        for part in ("mapping", "query"):
            found = _evaluate(output / f"{names[0]}.map", scenes / name / part, output / f"cross_{name}_{part}.json")
            reasons = ", ".join(f"{status} {count}" for status, count in found["refused"].items())
            rows.append(f"| {name} {part} | {found['frames']} | {found['localized']} | {reasons} |")
    return "\n".join(rows)


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
    latency = found["latency_ms"]
    return (f"| {name} | {found['frames']} | {found['localized']} | {median} | {recall} | {found['mapping_s']:.0f} |"
            f" {found['map_bytes'] / 1e6:.1f} | {latency['p50']:.0f} / {latency['p99']:.0f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=300.0)
    options = parser.parse_args()
    print(run(options.scenes, options.output, options.budget))
