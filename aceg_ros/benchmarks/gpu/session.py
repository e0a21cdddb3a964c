# SPDX-License-Identifier: Apache-2.0
"""What the checks of a device share: the device, a rendered room, its images and its map."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aceg_ros.camera import Frame
from aceg_ros.evaluation.metrics import FrameResult, percentiles, summarize
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.build_map import build_map
from aceg_ros.methods.registry import default_method, make_method_options
from aceg_ros.synthetic.demo_room import TILE_SEED, TILES, World, demo_world, mapping_path, query_path
from aceg_ros.synthetic.render import DAYLIGHT, EVENING, Light, render
from aceg_ros.synthetic.textures import make_atlas, paint_tiles

MAPPING_IMAGES, QUERY_IMAGES = 60, 60
QUICK_MAPPING_IMAGES, QUICK_QUERY_IMAGES = 24, 6
WARM_UP = 3                             # frames that are not timed
BUDGET_S = 25.0                         # of a map, unless it is done before

Results = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a check has measured. problems: sentences about what is not as it should be."""

    results: Results
    problems: Sequence[str] = ()


class Session:
    """Things that are made when the first check needs them. quick: few images and repeats, as for a test."""

    def __init__(self, device: str, output: Path, *, quick: bool = False):
        self.device, self.output, self.quick = device, output, quick
        self.head_map: SceneMap | None = None           # with a trained head, once there is one

    @cached_property
    def world(self) -> World:
        """The demo's room, with textures on the CPU."""
        return demo_world()

    @cached_property
    def device_world(self) -> World:
        """The same with textures on the device."""
        return replace(self.world, atlas=make_atlas(paint_tiles(TILES, TILE_SEED), self.device))

    def render_frame(self, pose: np.ndarray, light: Light = DAYLIGHT, name: str = "") -> Frame:
        """Render an image on the device; if that does not work, on the CPU."""
        try:
            seen = render(self.world.room, self.device_world.atlas, self.world.camera, pose, light=light,
                          device=self.device)
        except RuntimeError:                            # which the check of the renderer reports
            return self.world.render_frame(pose, light, name)
        return Frame(image=seen.image, camera=self.world.camera, map_from_camera=pose, name=name, depth_m=seen.depth_m)

    @cached_property
    def mapping_frames(self) -> list[Frame]:
        count = QUICK_MAPPING_IMAGES if self.quick else MAPPING_IMAGES
        return [self.render_frame(pose, name=f"mapping {number}")
                for number, pose in enumerate(mapping_path(count, self.world.room))]

    @cached_property
    def queries(self) -> list[Frame]:
        """Images of another drive, under other light."""
        count = QUICK_QUERY_IMAGES if self.quick else QUERY_IMAGES
        return [replace(self.render_frame(pose, EVENING, f"query {number}"), stamp_s=0.1 * number)
                for number, pose in enumerate(query_path(count, self.world.room))]

    @cached_property
    def scene_map(self) -> SceneMap:
        """A map of the default method, made on the device or, if that does not work, on the CPU."""
        try:
            return self.build()
        except Exception:                               # of any kind: the check of mapping reports it
            if self.device == "cpu":
                raise
            return self.build(device="cpu")

    def build(self, method: str | None = None, *, device: str | None = None, budget_s: float = BUDGET_S,
              encoder: str | None = None, **given: Any) -> SceneMap:
        """Map the room. given: options of the method."""
        options = MappingOptions(device=device or self.device, trust_poses=True, encoder=encoder)
        name = method or default_method(options, given)
        return build_map(name, options, self.mapping_frames, MappingBudget.start(budget_s),
                         method_options=make_method_options(name, given))[0]

    def localize(self, localize: Callable[[Frame], Any], frames: Sequence[Frame] | None = None) -> list[FrameResult]:
        """Localize images without their truths. The first ones are localized twice; the first time is not counted."""
        frames = self.queries if frames is None else frames
        images = [replace(frame, map_from_camera=None, depth_m=None) for frame in frames]
        for image in images[:WARM_UP]:
            localize(image)
        results = []
        for frame, image in zip(frames, images, strict=True):
            assert frame.map_from_camera is not None
            started = time.perf_counter()
            estimate = localize(image)
            results.append(FrameResult(name=frame.name, stamp_s=frame.stamp_s, truth=frame.map_from_camera,
                                       estimate=estimate, latency_ms=1e3 * (time.perf_counter() - started)))
        return results

    def time(self, call: Callable[[], object], repeats: int = 200) -> Results:
        """Return p50, p99 and mean milliseconds of a call, the device's work included."""
        repeats = min(repeats, 3) if self.quick else repeats
        for _ in range(WARM_UP):
            call()
        milliseconds = []
        for _ in range(repeats):
            self.synchronize()
            started = time.perf_counter()
            call()
            self.synchronize()
            milliseconds.append(1e3 * (time.perf_counter() - started))
        return milliseconds_of(milliseconds)

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def milliseconds_of(values: Sequence[float]) -> Results:
    """Return p50, p95, p99 and the mean."""
    return {**percentiles(values), "mean": float(np.mean(values)) if len(values) else float("nan")}


def localization_results(results: Sequence[FrameResult]) -> Results:
    """Return recall, errors, wrong poses, and the time of a frame and of each stage."""
    summary = summarize(results)
    stages = sorted({stage for each in results for stage in each.estimate.stage_ms})
    latencies = [each.latency_ms for each in results]
    return {"images": summary.frames, "localized": summary.localized, "recall": summary.recall,
            "median_m": summary.median_translation_m, "median_deg": summary.median_rotation_deg,
            "wrong": summary.false_accepts, "frames_per_s": 1e3 / float(np.mean(latencies)),
            "frame_ms": milliseconds_of(latencies),
            "stage_ms": {stage: milliseconds_of([each.estimate.stage_ms[stage] for each in results
                                                 if stage in each.estimate.stage_ms]) for stage in stages}}
