# SPDX-License-Identifier: Apache-2.0
"""Maps of a few keyframes: methods beside each other on the same images.

    python -m aceg_ros.benchmarks.small_maps SCENES -o OUTPUT [--only NAME ...] [--counts 10 20 40] [--methods ...]
        [--held-out]

Takes the images of mapping/ that are farthest from each other, maps them, and localizes query/ in each map, and some
images of the other scenes, of which none should be accepted. A method may have a variant, such as reloc3r:network
(where relative poses come from). With --held-out, three tenths of mapping/ are held out in chunks and localized instead
of query/, and other scenes show theirs: for choosing. Results in OUTPUT are not computed again.
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

from aceg_ros.benchmarks.keyframe_ablations import split
from aceg_ros.camera import Frame
from aceg_ros.datasets import open_scene
from aceg_ros.mapping.build_keyframes import select_views
from aceg_ros.utils.atomic_file import write_text

BOUNDS = ((0.1, 5.0), (0.25, 5.0), (0.5, 5.0))         # units of the scene, degrees
WRONG = (1.0, 15.0)                                     # units, degrees
FOREIGN = 12                                            # images of each other scene


def run_maps(scenes: Path, output: Path, *, only: Sequence[str], counts: Sequence[int], methods: Sequence[str],
             every_query: int = 1, held_out: bool = False) -> str:
    """Map and localize every n-th query image. Returns a table as Markdown text."""
    output.mkdir(parents=True, exist_ok=True)
    known = sorted(path.name for path in scenes.iterdir() if (path / "mapping").is_dir())
    rows = ["| scene | keyframes | method | localized | 0.1/5 | 0.25/5 | 0.5/5 | median | wrong | inside 95 % | ms |"
            " mapping s | map MB | foreign accepted |", "|---" * 14 + "|"]
    for name in only or known:
        for count in counts:
            for method in methods:
                path = output / f"{name}_{count}_{method.replace(':', '_')}.json"
                if not path.exists():
                    mapping, queries = parts(scenes / name, every_query, held_out=held_out)
                    others = [frame for other in known if other != name
                              for frame in _some(parts(scenes / other, 1, held_out=held_out)[1])]
                    write_text(path, json.dumps(evaluate(farthest(mapping, count), method, queries, others)))
                rows.append(_row(name, count, method, json.loads(path.read_text())))
    return "\n".join(rows)


def parts(scene: Path, every: int, *, held_out: bool) -> tuple[list[Frame], list[Frame]]:
    """Return the mapping images of a scene, and every n-th of those to localize: of query/, or held out of mapping/."""
    mapping = list(open_scene(scene / "mapping"))
    if not held_out:
        return mapping, list(open_scene(scene / "query", every))
    mapping, queries = split(mapping)
    return mapping, queries[::every]


def evaluate(frames: Sequence[Frame], method: str, queries: Sequence[Frame], others: Sequence[Frame]
             ) -> dict[str, Any]:
    """Map images with a method, and localize images of the same scene and of other scenes."""
    from aceg_ros.errors import UserError
    from aceg_ros.evaluation.metrics import FrameResult, consistency
    from aceg_ros.mapping.budget import MappingBudget
    from aceg_ros.methods.base import MappingOptions
    from aceg_ros.methods.build_map import build_map
    from aceg_ros.methods.registry import make_localizer, make_method_options

    method, _, variant = method.partition(":")
    given = make_method_options(method, {"relative_pose": variant}) if variant else None
    started = time.monotonic()
    try:
        scene_map, _ = build_map(method, MappingOptions(device="cpu"), frames, MappingBudget.start(120.0),
                                 method_options=given)
    except UserError as error:
        return {"error": str(error)}
    mapping_s, localizer = time.monotonic() - started, make_localizer(scene_map, "cpu")
    results = []
    for frame in queries:
        before = time.perf_counter()
        estimate = localizer.localize(_blind(frame))
        assert frame.map_from_camera is not None
        results.append(FrameResult(name=frame.name, stamp_s=frame.stamp_s, truth=frame.map_from_camera,
                                   estimate=estimate, latency_ms=1000.0 * (time.perf_counter() - before)))
    errors = np.array([result.errors for result in results if result.errors is not None]).reshape(-1, 2)
    foreign = [localizer.localize(_blind(frame)).accepted for frame in others]
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


def farthest(frames: Sequence[Frame], count: int) -> list[Frame]:
    """Return the images that are farthest from each other."""
    chosen = select_views(np.stack([frame.map_from_camera for frame in frames if frame.map_from_camera is not None]),
                          count)
    return [frames[index] for index in chosen]


def _some(frames: Sequence[Frame]) -> list[Frame]:
    return list(frames[::max(1, len(frames) // FOREIGN)])


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
    parser.add_argument("--held-out", action="store_true", help="localize chunks held out of mapping/, not query/")
    options = parser.parse_args(arguments)
    print(run_maps(options.scenes, options.output, only=options.only, counts=options.counts, methods=options.methods,
                   every_query=options.every_query, held_out=options.held_out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
