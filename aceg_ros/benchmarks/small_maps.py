# SPDX-License-Identifier: Apache-2.0
"""Maps of a few keyframes: methods beside each other on the same images.

    python -m aceg_ros.benchmarks.small_maps SCENES -o OUTPUT [--only NAME ...] [--counts 10 20 40] [--methods ...]

Takes the images of mapping/ that are farthest from each other, maps them, and localizes query/ in each map, and some
images of the other scenes, of which none should be accepted. Results in OUTPUT are not computed again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from aceg_ros.camera import Frame
from aceg_ros.datasets import open_scene
from aceg_ros.mapping.build_keyframes import select_views
from aceg_ros.utils.atomic_file import write_text

BOUNDS = ((0.1, 5.0), (0.25, 5.0), (0.5, 5.0))         # units of the scene, degrees
WRONG = (1.0, 15.0)                                     # units, degrees
FOREIGN = 12                                            # images of each other scene


def run_maps(scenes: Path, output: Path, *, only: Sequence[str], counts: Sequence[int], methods: Sequence[str],
             every_query: int = 1) -> str:
    """Map and localize every n-th query image. Returns a table as Markdown text."""
    output.mkdir(parents=True, exist_ok=True)
    known = sorted(path.name for path in scenes.iterdir() if (path / "mapping").is_dir())
    rows = ["| scene | keyframes | method | localized | 0.1/5 | 0.25/5 | 0.5/5 | median | wrong | inside 95 % | ms |"
            " mapping s | map MB | foreign accepted |", "|---" * 14 + "|"]
    for name in only or known:
        for count in counts:
            for method in methods:
                path = output / f"{name}_{count}_{method}.json"
                if not path.exists():
                    others = [scenes / other / "query" for other in known if other != name]
                    found = evaluate(scenes / name, count, method, others, every_query=every_query)
                    write_text(path, json.dumps(found))
                rows.append(_row(name, count, method, json.loads(path.read_text())))
    return "\n".join(rows)


def evaluate(scene: Path, count: int, method: str, others: Sequence[Path], *, every_query: int = 1
             ) -> dict[str, Any]:
    """Map `count` images of a scene with a method, and localize its queries and images of other scenes."""
    from aceg_ros.errors import UserError
    from aceg_ros.evaluation.metrics import FrameResult, consistency
    from aceg_ros.mapping.budget import MappingBudget
    from aceg_ros.methods.base import MappingOptions
    from aceg_ros.methods.build_map import build_map
    from aceg_ros.methods.registry import make_localizer

    frames = _keyframes(scene / "mapping", count)
    started = time.monotonic()
    try:
        scene_map, _ = build_map(method, MappingOptions(device="cpu"), frames, MappingBudget.start(120.0))
    except UserError as error:
        return {"error": str(error)}
    mapping_s, localizer = time.monotonic() - started, make_localizer(scene_map, "cpu")
    results = []
    for frame in open_scene(scene / "query", every_query):
        before = time.perf_counter()
        estimate = localizer.localize(_blind(frame))
        assert frame.map_from_camera is not None
        results.append(FrameResult(name=frame.name, stamp_s=frame.stamp_s, truth=frame.map_from_camera,
                                   estimate=estimate, latency_ms=1000.0 * (time.perf_counter() - before)))
    errors = np.array([result.errors for result in results if result.errors is not None]).reshape(-1, 2)
    foreign = [localizer.localize(_blind(frame)).accepted for other in others for frame in _some(other, FOREIGN)]
    return {"frames": len(results), "errors": errors.tolist(), "inside_95": consistency(results).inside_95,
            "ms": float(np.median([result.latency_ms for result in results])), "mapping_s": mapping_s,
            "bytes": sum(tensor.nbytes for section in scene_map.sections.values() for tensor in section.values()),
            "foreign": len(foreign), "foreign_accepted": sum(foreign)}


def _row(name: str, count: int, method: str, result: dict[str, Any]) -> str:
    if "error" in result:
        return f"| {name} | {count} | {method} | no map: {result['error']} |" + " |" * 10
    errors = np.array(result["errors"]).reshape(-1, 2)
    recall = " | ".join(f"{(errors <= bound).all(1).sum() / result['frames']:.2f}" for bound in BOUNDS)
    median = f"{np.median(errors[:, 0]):.3f}" if len(errors) else "-"
    return (f"| {name} | {count} | {method} | {len(errors)} of {result['frames']} | {recall} | {median} |"
            f" {int((errors > WRONG).any(1).sum())} | {result['inside_95']:.2f} | {result['ms']:.0f} |"
            f" {result['mapping_s']:.0f} | {result['bytes'] / 1e6:.1f} | {result['foreign_accepted']} of"
            f" {result['foreign']} |")


def _keyframes(scene: Path, count: int) -> list[Frame]:
    frames = list(open_scene(scene))
    chosen = select_views(np.stack([frame.map_from_camera for frame in frames if frame.map_from_camera is not None]),
                          count)
    return [frames[index] for index in chosen]


def _some(scene: Path, count: int) -> list[Frame]:
    frames = open_scene(scene)
    return list(frames)[::max(1, len(frames) // count)]


def _blind(frame: Frame) -> Frame:
    return replace(frame, map_from_camera=None, depth_m=None)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--counts", nargs="*", type=int, default=(10, 20, 40))
    parser.add_argument("--methods", nargs="*", default=("reloc3r", "ace_g"))
    parser.add_argument("--every-query", type=int, default=1, help="localize every n-th query image")
    options = parser.parse_args(arguments)
    print(run_maps(options.scenes, options.output, only=options.only, counts=options.counts, methods=options.methods,
                   every_query=options.every_query))
    return 0


if __name__ == "__main__":
    sys.exit(main())
