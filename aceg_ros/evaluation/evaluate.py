# SPDX-License-Identifier: Apache-2.0
"""Localizes every frame of a scene and compares the poses with the true ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from aceg_ros.camera import Frame
from aceg_ros.datasets import Scene
from aceg_ros.datasets.bag.rig import RigScene
from aceg_ros.evaluation.metrics import FrameResult, Summary, summarize
from aceg_ros.geometry import rotation_to_quaternion
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.base import Localizer
from aceg_ros.methods.registry import make_localizer
from aceg_ros.methods.rig_localizer import RigLocalizer
from aceg_ros.rig import RigFrame, ViewShare
from aceg_ros.utils.atomic_file import without_nan

Progress = Callable[[int, int], None]       # frames done, frames in all
E = TypeVar("E")
Q = TypeVar("Q")
Q_co = TypeVar("Q_co", covariant=True)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The evaluation of a map on a scene. statistics: see `report_json`."""

    name: str
    results: Sequence[FrameResult]
    scene_map: SceneMap
    statistics: dict[str, Any]


def evaluate_map(scene_map: SceneMap, scene: Scene, *, name: str, path: Path, device: str, seed: int,
                 method: str | None = None, progress: Progress | None = None) -> Evaluation:
    """Localize the frames of a scene in a map, and compute the statistics.

    Args:
        scene_map: The map.
        scene: Frames with poses in the map frame.
        name: Name of this evaluation in reports.
        path: The file that the map was loaded from.
        device: Device of the localizer.
        seed: Seed of the pose solver.
        method: See `registry.make_localizer`.
        progress: Called after each frame.
    """
    results = evaluate(make_localizer(scene_map, device, seed, method), scene, progress)
    statistics = report_json(summarize(results), scene_map, path=path, device=device, seed=seed,
                             skipped=len(scene.skipped))
    statistics |= {"method": method or scene_map.method}
    return Evaluation(name=name, results=results, scene_map=scene_map, statistics=statistics)


def evaluate(localizer: Localizer, scene: Scene | list[Frame], progress: Progress | None = None) -> list[FrameResult]:
    """Localize the usable frames of a scene, in order.

    The first frame is localized twice, the first time as a warm-up that is not timed.
    """
    results: list[FrameResult] = []
    for frame, estimate, latency_ms in _localize_each(scene, _without_truth, localizer.localize, progress):
        assert frame.map_from_camera is not None
        results.append(FrameResult(name=frame.name, stamp_s=frame.stamp_s, truth=frame.map_from_camera,
                                   estimate=estimate, latency_ms=latency_ms))
    return results


def evaluate_rig(scene_map: SceneMap, scene: RigScene, *, name: str, path: Path, device: str, seed: int,
                 progress: Progress | None = None) -> Evaluation:
    """Localize the moments of a rig's recording in a map, and compute the statistics; see `evaluate_map`.

    The poses are those of the base. The statistics also have, for each camera, how many of its images were used and the
    median number of its inliers.
    """
    localizer = RigLocalizer.from_map(scene_map, device=device, seed=seed)
    results: list[FrameResult] = []
    views: list[Mapping[str, ViewShare]] = []
    for moment, estimate, latency_ms in _localize_each(scene, _rig_without_truth, localizer.localize, progress):
        assert moment.map_from_rig is not None
        results.append(FrameResult(name=moment.name, stamp_s=moment.stamp_s, truth=moment.map_from_rig,
                                   estimate=estimate.base, latency_ms=latency_ms))
        views.append(estimate.views)
    statistics = report_json(summarize(results), scene_map, path=path, device=device, seed=seed,
                             skipped=len(scene.skipped))
    cameras = sorted({camera for shares in views for camera in shares})
    used = {camera: [shares[camera].inliers for shares in views if camera in shares and not shares[camera].problem]
            for camera in cameras}
    statistics |= {"cameras": {camera: {"images": len(inliers), "median_inliers": float(np.median(inliers))
                                        if inliers else 0.0} for camera, inliers in used.items()}}
    return Evaluation(name=name, results=results, scene_map=scene_map, statistics=statistics)


class _Recording(Protocol[Q_co]):
    """Frames, or the moments of a rig, one by one."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Q_co]: ...


def _localize_each(scene: _Recording[Q], without_truth: Callable[[Q], Q], localize: Callable[[Q], E],
                   progress: Progress | None) -> Iterator[tuple[Q, E, float]]:
    """Yield each query with its estimate and the time that it took, in milliseconds.

    The first one is localized twice, the first time as a warm-up that is not timed.
    """
    for done, posed in enumerate(scene):
        query = without_truth(posed)
        if done == 0:
            localize(query)
        started = time.perf_counter()
        estimate = localize(query)
        yield posed, estimate, 1e3 * (time.perf_counter() - started)
        if progress is not None:
            progress(done + 1, len(scene))


def _without_truth(frame: Frame) -> Frame:
    return replace(frame, map_from_camera=None, depth_m=None)


def _rig_without_truth(moment: RigFrame) -> RigFrame:
    return replace(moment, map_from_rig=None,
                   frames={camera: _without_truth(frame) for camera, frame in moment.frames.items()})


def report_json(summary: Summary, scene_map: SceneMap, *, path: Path, device: str, seed: int,
                skipped: int = 0) -> dict[str, Any]:
    """Return the statistics under the keys that other tools read, with null for NaN."""
    keys = {"rejected": "refused"}          # the key of the first release stays
    content = {keys.get(name, name): value for name, value in asdict(summary).items()}
    return without_nan(content | {
        "map_bytes": path.stat().st_size, "mapping_s": scene_map.statistics.mapping_s, "method": scene_map.method,
        "encoder": scene_map.network("encoder").identity, "device": device, "seed": seed, "skipped": skipped})


def tum_line(stamp_s: float, map_from_camera: np.ndarray) -> str:
    """Format a pose as a line of a TUM file: stamp tx ty tz qx qy qz qw."""
    numbers = [*map_from_camera[:3, 3], *rotation_to_quaternion(map_from_camera[:3, :3])]
    return f"{stamp_s:.6f} " + " ".join(f"{number:.7f}" for number in numbers)
