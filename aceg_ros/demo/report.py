"""What a demo achieved, read back from its bag alone: what was not on a topic did not happen."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.highlevel import AnyReader

from aceg_ros.camera import Camera
from aceg_ros.datasets import BagOptions, open_scene
from aceg_ros.errors import UserError
from aceg_ros.evaluation.drive import STATUSES, Drive, frame_results
from aceg_ros.evaluation.evaluate import report_json
from aceg_ros.evaluation.metrics import FrameResult, summarize
from aceg_ros.evaluation.report import write_report
from aceg_ros.geometry import invert, pose_from_quaternion
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.utils.atomic_file import write_json


def write_demo_report(folder: Path, truth_topic: str, since_ns: int, scene_map: SceneMap, device: str,
                      seed: int) -> dict[str, Any]:
    """Print the table; write it as report.txt and report.json, with the plots of an evaluation and overlay.png."""
    drive = read_drive(folder / "bag", truth_topic, since_ns)
    results = frame_results(drive)
    if not results:
        raise UserError("The localizer answered no image of the drive: the machine may be overloaded, or its network"
                        " setup keeps ROS nodes from finding each other.")
    figures = _figures(drive, results, scene_map, folder / "scene.map", device, seed)
    table = _table(figures)
    print(table, flush=True)
    (folder / "report.txt").write_text(table + "\n")
    write_report(folder, results, scene_map)
    _write_overlay(folder / "overlay.png", folder / "bag", results, scene_map)
    write_json(figures, folder / "report.json")
    return figures


def read_drive(bag: Path, truth_topic: str, since_ns: int) -> Drive:
    """The drive that began at since_ns. Raises UserError where the bag lacks images or truth."""
    drive = Drive()
    for topic, message in _messages(bag, {"/image", truth_topic, "/localizer/pose", "/localizer/status"}):
        stamp = _stamp_ns(message)
        if stamp < since_ns:
            continue
        if topic == "/image":
            drive.images.append(stamp)
        elif topic == truth_topic:
            drive.truths[stamp] = _matrix(message.pose)
        elif topic == "/localizer/pose":
            drive.poses[stamp] = _matrix(message.pose.pose), np.reshape(message.pose.covariance, (6, 6))
        elif message.status[0].name.endswith(": image"):
            values = {pair.key: pair.value for pair in message.status[0].values}
            drive.answers[stamp] = values["status"], message.status[0].message, values
    if not any(stamp in drive.truths for stamp in drive.images):
        raise UserError(f"The bag {bag} holds {len(drive.images)} images of the second drive, none with a true pose:"
                        " nothing can be compared.")
    return drive


def _figures(drive: Drive, results: list[FrameResult], scene_map: SceneMap, map_path: Path, device: str,
             seed: int) -> dict[str, Any]:
    """The figures of `aceg evaluate`, and those that only a running node has. Recall counts every image."""
    summary = summarize(results)
    figures = report_json(summary, scene_map, map_path, device, seed, 0)
    count = len(drive.images)
    span_s = (drive.images[-1] - drive.images[0]) * 1e-9
    without_truth = sum(stamp not in drive.truths for stamp in drive.images)
    unanswered = Counter(drive.answers[stamp][0] if stamp in drive.answers else "lost" for stamp in drive.images
                         if stamp not in drive.answers or drive.answers[stamp][0] not in STATUSES)
    return figures | {
        "frames": count, "recall": {bound: value * len(results) / count for bound, value in summary.recall.items()},
        "answered": len(results), "without_truth": without_truth, "unanswered": dict(sorted(unanswered.items())),
        "image_rate_hz": (count - 1) / span_s if span_s else None,
        "pose_rate_hz": summary.localized / count * (count - 1) / span_s if span_s else None,
        # NaN, the only value that is not itself, is no JSON.
        "mapping": {name: None if value != value else value for name, value in asdict(scene_map.statistics).items()}}


def _table(figures: dict[str, Any]) -> str:
    def by_key(counts: dict[str, int]) -> str:
        return ", ".join(f"{key} {count}" for key, count in counts.items()) or "none"

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    translation_cm = None if figures["median_translation_m"] is None else 100 * figures["median_translation_m"]
    stages = ", ".join(f"{stage} {ms:.0f}" for stage, ms in figures["stage_ms"].items())
    rows = [
        ("map", f"{figures['mapping']['frames']} images, {figures['mapping_s']:.0f} s, "
                f"{figures['map_bytes'] / 1e6:.1f} MB"),
        ("images", f"{figures['frames']} at {number(figures['image_rate_hz'], '.1f')} Hz"),
        ("localized", f"{figures['localized']} at {number(figures['pose_rate_hz'], '.1f')} Hz"),
        ("refused", by_key(figures["refused"])),
        ("not answered", by_key(figures["unanswered"])),
        ("median error", f"{number(translation_cm, '.1f')} cm, {number(figures['median_rotation_deg'], '.2f')} deg"),
        *((f"recall {bound.replace('_', ' ')}", f"{value:.2f}") for bound, value in figures["recall"].items()),
        ("image to pose", ", ".join(f"{q} {number(ms, '.0f')} ms" for q, ms in figures["latency_ms"].items())),
        ("stages [ms]", stages or "-"),
    ]
    return "\n".join(f"    {name:<20}{value}" for name, value in rows)


def _write_overlay(path: Path, bag: Path, results: list[FrameResult], scene_map: SceneMap) -> None:
    """The image of median error beside the map's points as the estimated pose projects them into it."""
    localized = sorted((r for r in results if r.errors is not None), key=lambda r: r.errors or (0.0, 0.0))
    if not localized:
        return
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    chosen = localized[len(localized) // 2]
    image, camera = _picture(bag, chosen.stamp_s)
    assert chosen.estimate.map_from_camera is not None and chosen.errors is not None
    pixels, colours = project_cloud(scene_map.cloud_xyz, scene_map.cloud_rgb, chosen.estimate.map_from_camera, camera)
    figure, axes = plt.subplots(1, 2, figsize=(13, 5))
    for axis, title in zip(axes, ("image", f"map points at the estimated pose "
                                  f"({100 * chosen.errors[0]:.1f} cm, {chosen.errors[1]:.2f} deg off)"), strict=True):
        axis.imshow(image, alpha=1.0 if axis is axes[0] else 0.35)
        axis.set_title(title)
        axis.set_axis_off()
    axes[1].scatter(*pixels.T, s=6, c=colours / 255.0, linewidths=0)
    axes[1].set(xlim=(0, camera.width), ylim=(camera.height, 0))
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def project_cloud(xyz: np.ndarray, rgb: np.ndarray, map_from_camera: np.ndarray, camera: Camera,
                  cell_px: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 2) and colours (N, 3) of the points in view; of those in one cell, only the nearest."""
    camera_from_map = invert(map_from_camera)
    points = xyz @ camera_from_map[:3, :3].T + camera_from_map[:3, 3]
    in_front = points[:, 2] > 0.1
    points, rgb = points[in_front], rgb[in_front]
    pixels = camera.rectified().project(points)
    inside = ((pixels >= 0) & (pixels < (camera.width, camera.height))).all(1)
    points, pixels, rgb = points[inside], pixels[inside], rgb[inside]
    nearest_first = np.argsort(points[:, 2], kind="stable")
    cells = (pixels[nearest_first] // cell_px).astype(int)
    _, first = np.unique(cells, axis=0, return_index=True)
    kept = nearest_first[first]
    return pixels[kept], rgb[kept]


def _picture(bag: Path, stamp_s: float) -> tuple[np.ndarray, Camera]:
    """The rectified image with this stamp, and its camera."""
    images = open_scene(bag, bag_options=BagOptions(image="/image", camera_info="/camera_info", posed=False))
    frame = next(frame for frame in images if abs(frame.stamp_s - stamp_s) < 1e-6)
    return frame.camera.rectify(frame.image)[0], frame.camera


def _messages(bag: Path, topics: set[str]):
    with AnyReader([bag]) as reader:
        connections = [connection for connection in reader.connections if connection.topic in topics]
        for connection, _, data in reader.messages(connections):
            yield connection.topic, reader.deserialize(data, connection.msgtype)


def _stamp_ns(message: Any) -> int:
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def _matrix(pose: Any) -> np.ndarray:
    p, q = pose.position, pose.orientation
    return pose_from_quaternion(np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w]))
