"""Localizes every frame of a scene and compares with its poses."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from aceg_ros.camera import Frame
from aceg_ros.datasets import Scene
from aceg_ros.evaluation.metrics import FrameResult, Summary, summarize
from aceg_ros.geometry import rotation_to_quaternion
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.base import Localizer
from aceg_ros.methods.registry import make_localizer
from aceg_ros.utils.atomic_file import without_nan


@dataclass(frozen=True)
class Run:
    """One map on one scene. content: as `report_json` gives it."""

    name: str
    results: Sequence[FrameResult]
    scene_map: SceneMap
    content: dict[str, Any]


def evaluate_map(name: str, path: Path, scene_map: SceneMap, scene: Scene, device: str, seed: int,
                 progress: Callable[[int, int], None] | None = None) -> Run:
    """Localize a scene in a map that was loaded from path, and sum it up."""
    results = evaluate(make_localizer(scene_map, device, seed), scene, progress)
    content = report_json(summarize(results), scene_map, path, device, seed, len(scene.skipped))
    return Run(name, results, scene_map, content)


def evaluate(localizer: Localizer, scene: Scene | list[Frame], progress: Callable[[int, int], None] | None = None
             ) -> list[FrameResult]:
    """Localize the usable frames of a scene, in order. The first frame is run once more beforehand, untimed: it pays
    for lazy initialisation that a running robot has behind it."""
    results: list[FrameResult] = []
    for frame in scene:
        query = replace(frame, map_from_camera=None, depth_m=None)
        if not results:
            localizer.localize(query)
        started = time.perf_counter()
        estimate = localizer.localize(query)
        latency = 1e3 * (time.perf_counter() - started)
        assert frame.map_from_camera is not None
        results.append(FrameResult(frame.name, frame.stamp_s, frame.map_from_camera, estimate, latency))
        if progress is not None:
            progress(len(results), len(scene))
    return results


def report_json(summary: Summary, scene_map: SceneMap, map_path: Path, device: str, seed: int,
                skipped: int) -> dict[str, Any]:
    """The figures under the keys that other tools rely on; NaN becomes null."""
    content = asdict(summary) | {
        "map_bytes": map_path.stat().st_size, "mapping_s": scene_map.statistics.mapping_s, "method": scene_map.method,
        "encoder": scene_map.network("encoder").identity, "device": device, "seed": seed, "skipped": skipped}
    return without_nan(content)


def tum_line(stamp_s: float, map_from_camera: Any) -> str:
    """One pose in TUM's format: stamp tx ty tz qx qy qz qw."""
    numbers = [*map_from_camera[:3, 3], *rotation_to_quaternion(map_from_camera[:3, :3])]
    return f"{stamp_s:.6f} " + " ".join(f"{number:.7f}" for number in numbers)
