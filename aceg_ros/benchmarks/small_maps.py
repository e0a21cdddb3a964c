"""Maps of a few keyframes: methods beside each other on the same images, and relative poses of single pairs.

    python -m aceg_ros.benchmarks.small_maps maps SCENES -o OUTPUT [--only NAME ...] [--counts 10 20 40] [--methods ...]
    python -m aceg_ros.benchmarks.small_maps pairs SCENE [SCENE ...] --depth D [--keyframes N] [--queries N]

`maps` takes the images of mapping/ that are farthest from each other, maps them, and localizes query/ in each map, and
some images of the other scenes, of which none should be accepted. Results in OUTPUT are not computed again.
`pairs` estimates relative poses of query images and keyframes from matches, by their overlap: the share of an image
that the other sees if everything is at the depth D.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from aceg_ros.camera import MIN_DEPTH, Frame, project_map_points
from aceg_ros.datasets import open_scene
from aceg_ros.geometry import invert, pose_error
from aceg_ros.mapping.build_keyframes import select_views
from aceg_ros.utils.atomic_file import write_text

BOUNDS = ((0.1, 5.0), (0.25, 5.0), (0.5, 5.0))         # units of the scene, degrees
WRONG = (1.0, 15.0)                                     # units, degrees
OVERLAPS = (0.0, 0.25, 0.5, 0.75, 1.01)
AUC_DEG = (5.0, 10.0, 20.0)
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


def run_pairs(scenes: Sequence[Path], depth_m: float, *, keyframes: int, queries: int) -> str:
    """Estimate relative poses of pairs from matches. Returns a table as Markdown text."""
    from aceg_ros.encoders.base import load_encoder
    from aceg_ros.mapping.augmentation import prepare_frame
    from aceg_ros.mapping.budget import MappingBudget
    from aceg_ros.mapping.build_keyframes import build_keyframes
    from aceg_ros.methods.reloc3r_localizer import Reloc3rConfig, Reloc3rLocalizer
    from aceg_ros.methods.reloc3r_pairs import MatchedPoses

    encoder = load_encoder("compact")
    found: list[tuple[float, float, float]] = []
    for scene in scenes:
        prepared = [prepare_frame(frame, encoder.short_side_px, encoder.stride)
                    for frame in _keyframes(scene / "mapping", keyframes)]
        built = build_keyframes(prepared, encoder, keypoints=1500, seed=0, budget=MappingBudget.start())
        assert built is not None
        source = MatchedPoses(built[0])
        extractor = Reloc3rLocalizer(encoder=encoder, keyframes=built[0], source=source, config=Reloc3rConfig())
        for frame in _some(scene / "query", queries):
            query = extractor.extract(frame)
            pairs = source.estimate(query, np.arange(len(built[0])))
            found += _pair_errors(frame, [prepared[number] for number in built[1]], pairs, depth_m)
    return _pair_table(found)


def _pair_errors(frame: Frame, keyframes: Sequence[Any], pairs: Any, depth_m: float
                 ) -> list[tuple[float, float, float]]:
    """Return overlap, rotation error and direction error in degrees (180 without a pose) of all overlapping pairs."""
    assert frame.map_from_camera is not None
    found = []
    estimated = {int(keyframe): index for index, keyframe in enumerate(pairs.keyframes)}
    for keyframe, key in enumerate(keyframes):
        overlap = min(view_overlap(frame.camera, frame.map_from_camera, (key.camera, key.map_from_camera), depth_m),
                      view_overlap(key.camera, key.map_from_camera, (frame.camera, frame.map_from_camera), depth_m))
        if overlap < 0.05:
            continue
        relative = invert(key.map_from_camera) @ frame.map_from_camera
        rotation, direction = 180.0, 180.0
        if keyframe in estimated:
            index = estimated[keyframe]
            pose = np.eye(4)
            pose[:3, :3] = pairs.relative.rotations[index]
            rotation = pose_error(pose, relative)[1]
            cosine = pairs.relative.directions[index] @ relative[:3, 3] / max(np.linalg.norm(relative[:3, 3]), 1e-12)
            direction = float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))
        found.append((overlap, rotation, direction))
    return found


def view_overlap(camera: Any, map_from_camera: np.ndarray, other: tuple[Any, np.ndarray], depth_m: float) -> float:
    """Return the share of an image that another camera sees, if everything is at one depth."""
    grid = np.stack(np.meshgrid(np.linspace(0, camera.width - 1, 16), np.linspace(0, camera.height - 1, 12)), -1)
    points = camera.unproject(grid.reshape(-1, 2)) * depth_m @ map_from_camera[:3, :3].T + map_from_camera[:3, 3]
    other_camera, other_pose = other
    pixels, depth = project_map_points(points, other_camera, other_pose)
    inside = (pixels > 0).all(1) & (pixels < (other_camera.width, other_camera.height)).all(1)
    return float((inside & (depth > MIN_DEPTH)).mean())


def _pair_table(found: Sequence[tuple[float, float, float]]) -> str:
    values = np.array(found).reshape(-1, 3)
    rows = ["| overlap | pairs | with a pose | rotation deg | direction deg | AUC@5 | @10 | @20 |", "|---" * 8 + "|"]
    for low, high in [*pairwise(OVERLAPS), (0.0, 1.01)]:
        chosen = values[(values[:, 0] >= low) & (values[:, 0] < high)]
        if len(chosen) == 0:
            continue
        worst = chosen[:, 1:].max(1)
        areas = " | ".join(f"{area_under_curve(worst, bound):.2f}" for bound in AUC_DEG)
        with_pose = chosen[chosen[:, 1] < 180.0]
        medians = " | ".join(f"{value:.1f}" for value in np.median(with_pose[:, 1:], axis=0)) if len(with_pose) \
            else "- | -"
        rows.append(f"| {max(low, 0.05):.2f} to {min(high, 1.0):.2f} | {len(chosen)} | {len(with_pose)} | {medians} |"
                    f" {areas} |")
    return "\n".join(rows)


def area_under_curve(errors: np.ndarray, bound: float) -> float:
    """Return the area under the recall curve up to a bound, as a share: the mean of 1 - error / bound, at least 0."""
    return float(np.clip(1.0 - errors / bound, 0.0, 1.0).mean()) if len(errors) else 0.0


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
    parts = parser.add_subparsers(dest="part", required=True)
    maps = parts.add_parser("maps")
    maps.add_argument("scenes", type=Path)
    maps.add_argument("-o", "--output", type=Path, required=True)
    maps.add_argument("--only", nargs="*", default=())
    maps.add_argument("--counts", nargs="*", type=int, default=(10, 20, 40))
    maps.add_argument("--methods", nargs="*", default=("reloc3r", "ace_g"))
    maps.add_argument("--every-query", type=int, default=1, help="localize every n-th query image")
    pairs = parts.add_parser("pairs")
    pairs.add_argument("scenes", type=Path, nargs="+")
    pairs.add_argument("--depth", type=float, required=True)
    pairs.add_argument("--keyframes", type=int, default=20)
    pairs.add_argument("--queries", type=int, default=20)
    options = parser.parse_args(arguments)
    if options.part == "maps":
        print(run_maps(options.scenes, options.output, only=options.only, counts=options.counts,
                       methods=options.methods, every_query=options.every_query))
    else:
        print(run_pairs(options.scenes, options.depth, keyframes=options.keyframes, queries=options.queries))
    return 0


if __name__ == "__main__":
    sys.exit(main())
