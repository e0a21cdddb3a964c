# SPDX-License-Identifier: Apache-2.0
"""Checks of mapping and localization on a device, against the CPU."""

from __future__ import annotations

import cProfile
import io
import pstats
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from aceg_ros.benchmarks.gpu.session import (
    WARM_UP,
    Outcome,
    Results,
    Session,
    localization_results,
    milliseconds_of,
)
from aceg_ros.estimate import PriorPose
from aceg_ros.evaluation.metrics import FrameResult
from aceg_ros.geometry import pose_error
from aceg_ros.maps.keyframe_database import SECTION, KeyframeDatabase
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.base import Localizer
from aceg_ros.methods.keyframe_localizer import KeyframeLocalizer
from aceg_ros.methods.landmark_search import KeyframeLocalizerConfig
from aceg_ros.methods.registry import make_localizer
from aceg_ros.methods.rig_localizer import RigLocalizer
from aceg_ros.methods.scene_coordinates import encoder_of
from aceg_ros.rig import Rig, RigFrame
from aceg_ros.synthetic.render import EVENING
from aceg_ros.utils.atomic_file import write_text

MIN_RECALL, MAX_DIFFERENCE_M, MAX_DIFFERENCE_DEG = 0.9, 0.005, 0.1
PROFILED = 30                           # frames
PRIOR_COVARIANCE = np.diag([0.1**2] * 3 + [np.radians(2.0)**2] * 3)


def check_mapping(session: Session) -> Outcome:
    """Map the room by the default method on the device."""
    started = time.perf_counter()
    scene_map = session.build()
    seconds = time.perf_counter() - started
    session.scene_map = scene_map
    return Outcome(results=_about(scene_map, seconds))


def _about(scene_map: SceneMap, seconds: float) -> Results:
    database = scene_map.sections[SECTION]
    return {"seconds": seconds, "keyframes": len(database["poses"]), "landmarks": len(database["points"]),
            "observations": len(database["descriptors"]), "covariance_scale": scene_map.covariance_scale}


def check_localization(session: Session) -> Outcome:
    """Localize images of another drive on the device and, in the same map, on the CPU."""
    found = session.localize(make_localizer(session.scene_map, session.device).localize)
    results = localization_results(found)
    problems = _problems(found)
    expected = session.localize(make_localizer(session.scene_map, "cpu").localize)
    results["difference_to_cpu"], different = _difference(found, expected)
    results["on_cpu"] = {key: value for key, value in localization_results(expected).items() if key != "stage_ms"}
    return Outcome(results=results, problems=[*problems, *different])


def _problems(results: Sequence[FrameResult]) -> list[str]:
    summary = localization_results(results)
    problems = [] if summary["wrong"] == 0 else [f"{summary['wrong']} wrong poses"]
    if summary["localized"] < MIN_RECALL * summary["images"]:
        problems.append(f"only {summary['localized']} of {summary['images']} images are localized")
    return problems


def _difference(found: Sequence[FrameResult], expected: Sequence[FrameResult]) -> tuple[Results, list[str]]:
    """Return how far poses differ, and what is wrong with that."""
    pairs = [(a.estimate.map_from_camera, b.estimate.map_from_camera) for a, b in zip(found, expected, strict=True)]
    errors = np.array([pose_error(a, b) for a, b in pairs if a is not None and b is not None]).reshape(-1, 2)
    one_alone = sum((a is None) != (b is None) for a, b in pairs)
    results: Results = {"localized_by_one_alone": one_alone, "compared": len(errors)}
    if len(errors) == 0:
        return results, ["no image is localized by both"]
    metres, degrees = np.median(errors, axis=0)
    results |= {"median_m": float(metres), "median_deg": float(degrees), "max_m": float(errors[:, 0].max()),
                "max_deg": float(errors[:, 1].max())}
    same = metres < MAX_DIFFERENCE_M and degrees < MAX_DIFFERENCE_DEG and one_alone <= 0.05 * len(pairs)
    return results, [] if same else ["the poses are not those of the CPU"]


def check_where_time_goes(session: Session) -> Outcome:
    """Profile localization: Python functions, and what torch runs on the device. The tables are files."""
    localizer = make_localizer(session.scene_map, session.device)
    frames = session.queries[:PROFILED]
    session.localize(localizer.localize, frames)
    profile = cProfile.Profile()
    profile.enable()
    session.localize(localizer.localize, frames)
    profile.disable()
    for order in ("tottime", "cumulative"):
        text = io.StringIO()
        pstats.Stats(profile, stream=text).sort_stats(order).print_stats(60)
        write_text(session.output / f"profile_{order}.txt", text.getvalue())
    activities = [torch.profiler.ProfilerActivity.CPU]
    if session.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        session.localize(localizer.localize, frames[:10])
    averages = profiler.key_averages()
    write_text(session.output / "profile_torch.txt",
               averages.table(sort_by="self_cpu_time_total", row_limit=60)
               + "\n" + averages.table(sort_by="self_device_time_total", row_limit=40))
    counts = {event.key: event.count for event in averages}
    wanted = ("cudaLaunchKernel", "cudaMemcpyAsync", "cudaStreamSynchronize", "cudaDeviceSynchronize", "aten::item",
              "aten::copy_", "aten::index", "aten::nonzero")
    images = len(frames[:10]) + min(WARM_UP, len(frames))
    return Outcome(results={"calls_per_frame": {key: counts[key] / images for key in wanted if key in counts}})


def check_priors(session: Session) -> Outcome:
    """Localize with a prior near the truth."""
    localizer = make_localizer(session.scene_map, session.device)
    rng = np.random.default_rng(0)
    by_image = {id(frame.image): _near(frame.map_from_camera, rng) for frame in session.queries}
    found = session.localize(lambda frame: localizer.localize(frame, by_image[id(frame.image)]))
    tracked = sum("solve" not in each.estimate.stage_ms for each in found if each.estimate.accepted)
    return Outcome(results={**localization_results(found), "answered_by_tracking": tracked}, problems=_problems(found))


def check_graphed_encoder(session: Session) -> Outcome:
    """Localize with the encoder as a CUDA graph, as on a GPU by default, and with one computed as usual."""
    usual = KeyframeLocalizer(encoder=encoder_of(session.scene_map, session.device), config=KeyframeLocalizerConfig(),
                              database=KeyframeDatabase.from_section(session.scene_map.sections[SECTION]))
    graphed = make_localizer(session.scene_map, session.device)
    runs = [session.localize(localizer.localize) for localizer in (graphed, usual)]
    difference, problems = _difference(*runs)
    return Outcome(results={"graphed": localization_results(runs[0]), "difference": difference}, problems=problems)


def check_throughput(session: Session) -> Outcome:
    """Localize in several threads, with a localizer each."""
    images = [replace(frame, map_from_camera=None, depth_m=None) for frame in session.queries[:PROFILED]]
    results: Results = {}
    for count in (1, 2) if session.quick else (1, 2, 4, 8):
        localizers = [make_localizer(session.scene_map, session.device) for _ in range(count)]

        def localize_all(localizer: Localizer) -> int:
            return sum(localizer.localize(image).accepted for image in images)

        with ThreadPoolExecutor(count) as pool:
            for localizer in localizers:
                localizer.localize(images[0])
            started = time.perf_counter()
            accepted = list(pool.map(localize_all, localizers))
            seconds = time.perf_counter() - started
        results[f"{count} threads"] = {"frames_per_s": count * len(images) / seconds, "localized": sum(accepted)}
    return Outcome(results=results)


def _near(pose: np.ndarray | None, rng: np.random.Generator) -> PriorPose:
    assert pose is not None
    moved = pose.copy()
    moved[:3, 3] += rng.normal(0, 0.05, 3)
    moved[:3, :3] = Rotation.from_rotvec(rng.normal(0, np.radians(1.0), 3)).as_matrix() @ pose[:3, :3]
    return PriorPose(map_from_camera=moved, covariance=PRIOR_COVARIANCE)


def check_rigs(session: Session) -> Outcome:
    """Localize a rig of two cameras, 30 degrees to the left and to the right of the way ahead."""
    mounts = {}
    for name, degrees in (("left", -30.0), ("right", 30.0)):
        mounts[name] = np.eye(4)
        mounts[name][:3, :3] = Rotation.from_rotvec([0.0, np.radians(degrees), 0.0]).as_matrix()
    rig = Rig(rig_from_camera=mounts)
    localizer = RigLocalizer.from_map(session.scene_map, device=session.device)
    errors, milliseconds = [], []
    every = 1 if session.quick else 3
    for number, frame in enumerate(session.queries[::every]):
        truth = frame.map_from_camera
        assert truth is not None
        frames = {name: replace(session.render_frame(truth @ mount, EVENING), map_from_camera=None, depth_m=None)
                  for name, mount in mounts.items()}
        moment = RigFrame(rig=rig, frames=frames)
        if number == 0:
            localizer.localize(moment)
        started = time.perf_counter()
        estimate = localizer.localize(moment)
        milliseconds.append(1e3 * (time.perf_counter() - started))
        if estimate.map_from_rig is not None:
            errors.append(pose_error(estimate.map_from_rig, truth))
    results: Results = {"moments": len(milliseconds), "localized": len(errors), "ms": milliseconds_of(milliseconds)}
    if errors:
        results |= {"median_m": float(np.median(errors, axis=0)[0]), "max_m": max(error[0] for error in errors)}
    right = len(errors) >= MIN_RECALL * len(milliseconds) and max(error[0] for error in errors) < 0.5
    return Outcome(results=results, problems=[] if right else ["not all moments are localized, or some wrongly"])


def check_mapping_on_cpu(session: Session) -> Outcome:
    """Map the room on the CPU, to compare the time."""
    started = time.perf_counter()
    scene_map = session.build(device="cpu")
    return Outcome(results=_about(scene_map, time.perf_counter() - started))
