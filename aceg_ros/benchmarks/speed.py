"""Times every stage of localization on this machine, beside named references in the same run."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import poselib
import torch

from aceg_ros.camera import Camera
from aceg_ros.encoders.ace import AceNet
from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.preprocess import image_to_tensor
from aceg_ros.evaluation.metrics import percentiles
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.registry import make_localizer, specs
from aceg_ros.methods.scene_coordinates import SceneCoordinateLocalizer
from aceg_ros.pose.correspondences import Correspondences
from aceg_ros.pose.verify import estimate_verified_pose
from aceg_ros.synthetic.demo_room import demo_world, query_path
from aceg_ros.synthetic.render import EVENING
from aceg_ros.utils.device import on_device, pick_device


def run_bench(map_path: str | None, device: str, repeats: int) -> dict[str, Any]:
    """Print and return median, p95 and p99 milliseconds of each stage, from a JPEG to a pose, for 640x480 pictures of
    the rendered room."""
    device = pick_device(device)
    world = demo_world()
    frames = [world.render_frame(pose, EVENING) for pose in query_path(8, world.room)]
    localizer = make_localizer(SceneMap.load(map_path), device) if map_path else _untrained(device)
    assert isinstance(localizer, SceneCoordinateLocalizer)
    rows: dict[str, list[float]] = {"decode": [], "prepare": [], "encode": [], "head": [], "solve": [], "frame": []}
    pictures = [cv2.imencode(".jpg", frame.image[..., ::-1])[1] for frame in frames]
    for number in range(repeats + 3):
        frame = frames[number % len(frames)]
        started = time.perf_counter()
        cv2.cvtColor(np.asarray(cv2.imdecode(pictures[number % len(frames)], cv2.IMREAD_COLOR)), cv2.COLOR_BGR2RGB)
        decode_ms = 1e3 * (time.perf_counter() - started)
        started = time.perf_counter()
        seen = localizer.scene_coordinates(frame)
        coordinates_ms = 1e3 * (time.perf_counter() - started)
        pixels, points = _predictions(frame, seen.pixels, number)
        started = time.perf_counter()
        estimate_verified_pose(Correspondences(pixels=pixels, points=points, camera=seen.camera), seed=number)
        solve_ms = 1e3 * (time.perf_counter() - started)
        if number >= 3:                                   # the first ones warm up
            for stage, milliseconds in seen.stage_ms.items():
                rows[stage].append(milliseconds)
            rows["decode"].append(decode_ms)
            rows["solve"].append(solve_ms)
            rows["frame"].append(decode_ms + coordinates_ms + solve_ms)
    stages = {stage: percentiles(values) for stage, values in rows.items()}
    references = _references(frames[0], device)
    content = {"machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
               "torch": torch.__version__, "device": device, "picture": "640x480", "repeats": repeats,
               "stage_ms": stages, "reference_ms": references,
               "encode_ratio_to_ace_encoder": stages["encode"]["p50"] / references["ACE encoder, 512-D"],
               "solve_ratio_to_poselib": stages["solve"]["p50"] / references["PoseLib on all patches, 10 px"]}
    print(f"{content['machine']}, {device}, 640x480, {repeats} pictures, milliseconds\n")
    print(f"{'stage':32}{'p50':>9}{'p95':>9}{'p99':>9}")
    for stage, values in stages.items():
        print(f"{stage:32}{values['p50']:9.1f}{values['p95']:9.1f}{values['p99']:9.1f}")
    for name, milliseconds in references.items():
        print(f"{'reference: ' + name:32}{milliseconds:9.1f}")
    return content


def _untrained(device: str) -> SceneCoordinateLocalizer:
    """Default sizes with random weights: the time does not depend on the values. The solver gets predictions of its
    own, see `_predictions`."""
    make_map = next(spec.untrained_map for spec in specs() if spec.untrained_map is not None)
    localizer = make_localizer(make_map(device, "compact"), device)
    assert isinstance(localizer, SceneCoordinateLocalizer)
    return localizer


def _predictions(frame, pixels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scene coordinates as a trained head gives them: the true ones, off by 4 cm, every third one anywhere."""
    rng = np.random.default_rng(seed)
    depth = frame.depth_m[pixels[:, 1].round().astype(int), pixels[:, 0].round().astype(int)]
    camera: Camera = frame.camera
    rays = np.column_stack([(pixels - (camera.cx, camera.cy)) / (camera.fx, camera.fy), np.ones(len(pixels))])
    points = (rays * depth[:, None]) @ frame.map_from_camera[:3, :3].T + frame.map_from_camera[:3, 3]
    points += rng.normal(0, 0.04, points.shape)
    astray = rng.uniform(size=len(points)) < 0.33
    points[astray] += rng.normal(0, 1.0, (astray.sum(), 3))
    return pixels, points


def _references(frame, device: str) -> dict[str, float]:
    """What a user would otherwise run, on the same picture in the same process."""
    torch.manual_seed(0)
    ace = Encoder(name="ace", identity="", source="", stride=8, dim=512, short_side_px=480,
                  net=on_device(AceNet().eval(), device))
    image = image_to_tensor(frame.image, device)
    rows, columns = np.mgrid[4:480:8, 4:640:8]
    pixels, points = _predictions(frame, np.column_stack([columns.ravel(), rows.ravel()]).astype(float), 0)
    camera = {"model": "PINHOLE", "width": 640, "height": 480,
              "params": [frame.camera.fx, frame.camera.fy, frame.camera.cx, frame.camera.cy]}
    ransac = {"max_reproj_error": 10.0, "min_iterations": 100, "max_iterations": 1000}
    return {"ACE encoder, 512-D": _median_ms(lambda: ace(image), 5, device),
            "PoseLib on all patches, 10 px": _median_ms(
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
