# SPDX-License-Identifier: Apache-2.0
"""Times every stage of localization on this machine, and references in the same run.

    python -m aceg_ros.benchmarks.speed [--map MAP] [--device D] [--repeats N] [--json FILE]
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import poselib
import torch

from aceg_ros.camera import Frame
from aceg_ros.encoders.ace import AceNet
from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.preprocess import image_to_tensor
from aceg_ros.evaluation.metrics import percentiles
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.base import Localizer
from aceg_ros.methods.registry import make_localizer, specs
from aceg_ros.methods.scene_coordinates import SceneCoordinateLocalizer
from aceg_ros.pose.correspondences import Correspondences
from aceg_ros.pose.verify import estimate_verified_pose
from aceg_ros.synthetic.demo_room import demo_world, query_path
from aceg_ros.synthetic.render import EVENING
from aceg_ros.utils.atomic_file import write_json
from aceg_ros.utils.device import pick_device, to_device
from aceg_ros.utils.malloc import configure_malloc

REFERENCE_ENCODER, REFERENCE_RANSAC = "ACE encoder, 512-D", "PoseLib on all patches, 10 px"
STAGES = ("decode", "prepare", "encode", "retrieve", "match", "head", "solve", "gates", "frame")
WARM_UP = 3                            # frames that are not counted


def measure_speed(map_path: str | None, device: str, repeats: int) -> dict[str, Any]:
    """Time each stage from a JPEG to a pose for 640x480 images of the rendered room, and print a table.

    Args:
        map_path: a map of the demo room; if its method predicts scene coordinates, a map of any scene. None for one of
            default size with random weights.
        device: "auto", "cpu" or "cuda".
        repeats: number of images.

    Returns:
        Median, p95 and p99 in milliseconds of each stage, and of references on the same image.
    """
    device = pick_device(device)
    world = demo_world()
    frames = [world.render_frame(pose, EVENING) for pose in query_path(8, world.room)]
    localizer = make_localizer(SceneMap.load(map_path), device) if map_path else _untrained(device)
    jpegs = [cv2.imencode(".jpg", frame.image[..., ::-1])[1] for frame in frames]
    timed = [_time_frame(localizer, frames[number % len(frames)], jpegs[number % len(frames)], number)
             for number in range(repeats + WARM_UP)][WARM_UP:]
    names = [stage for stage in STAGES if any(stage in each for each in timed)]
    stages = {stage: percentiles([each.get(stage, 0.0) for each in timed]) for stage in names}
    references = _references(frames[0], device)
    content = {"machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
               "torch": torch.__version__, "device": device, "picture": "640x480", "repeats": repeats,
               "stage_ms": stages, "reference_ms": references,
               "encode_ratio_to_ace_encoder": stages["encode"]["p50"] / references[REFERENCE_ENCODER],
               "solve_ratio_to_poselib": stages["solve"]["p50"] / references[REFERENCE_RANSAC]}
    _print_table(content)
    return content


def _time_frame(localizer: Localizer, frame: Frame, jpeg: np.ndarray, number: int) -> dict[str, float]:
    """Return the milliseconds of each stage for one frame."""
    started = time.perf_counter()
    cv2.cvtColor(np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR)), cv2.COLOR_BGR2RGB)
    decode_ms = 1e3 * (time.perf_counter() - started)
    started = time.perf_counter()
    if not isinstance(localizer, SceneCoordinateLocalizer):
        stages = localizer.localize(replace(frame, map_from_camera=None, depth_m=None)).stage_ms
        return {**stages, "decode": decode_ms, "frame": decode_ms + 1e3 * (time.perf_counter() - started)}
    predicted = localizer.scene_coordinates(frame)
    coordinates_ms = 1e3 * (time.perf_counter() - started)
    points = _typical_predictions(frame, predicted.pixels, number)
    started = time.perf_counter()
    matches = Correspondences(pixels=predicted.pixels, points=points, camera=predicted.camera)
    estimate_verified_pose(matches, seed=number)
    solve_ms = 1e3 * (time.perf_counter() - started)
    return {**predicted.stage_ms, "decode": decode_ms, "solve": solve_ms,
            "frame": decode_ms + coordinates_ms + solve_ms}


def _print_table(content: dict[str, Any]) -> None:
    print(f"{content['machine']}, {content['device']}, 640x480, {content['repeats']} images, milliseconds\n")
    print(f"{'stage':32}{'p50':>9}{'p95':>9}{'p99':>9}")
    for stage, values in content["stage_ms"].items():
        print(f"{stage:32}{values['p50']:9.1f}{values['p95']:9.1f}{values['p99']:9.1f}")
    for name, milliseconds in content["reference_ms"].items():
        print(f"{'reference: ' + name:32}{milliseconds:9.1f}")


def _untrained(device: str) -> SceneCoordinateLocalizer:
    """Make a localizer of default size with random weights, which do not change the time of inference."""
    make_map = next(spec.untrained_map for spec in specs() if spec.untrained_map is not None)
    localizer = make_localizer(make_map(device, "compact"), device)
    assert isinstance(localizer, SceneCoordinateLocalizer)
    return localizer


def _typical_predictions(frame: Frame, pixels: np.ndarray, seed: int) -> np.ndarray:
    """Simulate the scene coordinates (N, 3) of a trained head: true ones with 4 cm of noise, and a third outliers."""
    rng = np.random.default_rng(seed)
    assert frame.depth_m is not None and frame.map_from_camera is not None
    depth = frame.depth_m[pixels[:, 1].round().astype(int), pixels[:, 0].round().astype(int)]
    camera = frame.camera
    rays = np.column_stack([(pixels - (camera.cx, camera.cy)) / (camera.fx, camera.fy), np.ones(len(pixels))])
    points = (rays * depth[:, None]) @ frame.map_from_camera[:3, :3].T + frame.map_from_camera[:3, 3]
    points += rng.normal(0, 0.04, points.shape)
    outlier = rng.uniform(size=len(points)) < 0.33
    points[outlier] += rng.normal(0, 1.0, (outlier.sum(), 3))
    return points


def _references(frame: Frame, device: str) -> dict[str, float]:
    """Return the milliseconds of common alternatives, on the same image in the same process."""
    torch.manual_seed(0)
    ace = Encoder(name="ace", identity="", source="", stride=8, dim=512, short_side_px=480,
                  net=to_device(AceNet().eval(), device))
    image = image_to_tensor(frame.image, device)
    rows, columns = np.mgrid[4:480:8, 4:640:8]
    pixels = np.column_stack([columns.ravel(), rows.ravel()]).astype(float)
    points = _typical_predictions(frame, pixels, 0)
    camera = {"model": "PINHOLE", "width": 640, "height": 480,
              "params": [frame.camera.fx, frame.camera.fy, frame.camera.cx, frame.camera.cy]}
    ransac = {"max_reproj_error": 10.0, "min_iterations": 100, "max_iterations": 1000}
    return {REFERENCE_ENCODER: _median_ms(lambda: ace(image), 5, device),
            REFERENCE_RANSAC: _median_ms(
                lambda: poselib.estimate_absolute_pose(pixels, points, camera, ransac, {}), 9, "cpu")}


def _median_ms(call: Callable[[], object], repeats: int, device: str) -> float:
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - started))
    return float(np.median(times[1:]))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--map", help="a map of the demo room (default: one of default size with random weights)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=40, help="images (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args(arguments)
    configure_malloc()
    content = measure_speed(options.map, options.device, options.repeats)
    if options.json is not None:
        write_json(content, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
