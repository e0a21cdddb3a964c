# SPDX-License-Identifier: Apache-2.0
"""Evaluates a demo from its bag, that is, from the recorded topics alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from aceg_ros.camera import Camera
from aceg_ros.datasets import BagOptions, open_scene
from aceg_ros.datasets.bag.messages import pose_matrix, stamp_ns
from aceg_ros.datasets.bag.reader import read_messages
from aceg_ros.errors import UserError
from aceg_ros.evaluation.evaluate import report_json
from aceg_ros.evaluation.metrics import FrameResult, summarize
from aceg_ros.evaluation.node_recording import ImageStatus, NodeRecording
from aceg_ros.evaluation.report import write_report
from aceg_ros.geometry import invert
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.utils.atomic_file import without_nan, write_json
from aceg_ros.utils.stamps import ns_to_s


def write_demo_report(folder: Path, truth_topic: str, since_ns: int, scene_map: SceneMap, *, device: str,
                      seed: int) -> dict[str, Any]:
    """Print a table; write it as report.txt and report.json, with the plots of an evaluation and overlay.png.

    Args:
        folder: Contains bag/ and scene.map; the report is written to it.
        truth_topic: Topic of the true poses.
        since_ns: Earlier images are not evaluated.
        scene_map: The map of the node.
        device: Device of the node.
        seed: Seed of the node's pose solver.

    Returns:
        The statistics of report.json.
    """
    recording = read_recording(folder / "bag", truth_topic, since_ns)
    results = recording.frame_results()
    if not results:
        raise UserError("The localizer processed no image of the drive: the machine may be overloaded, or its network"
                        " setup keeps ROS nodes from discovering each other.")
    statistics = report_json(summarize(results), scene_map, path=folder / "scene.map", device=device, seed=seed)
    statistics |= _node_statistics(recording, results, scene_map)
    table = _table(statistics)
    print(table, flush=True)
    (folder / "report.txt").write_text(table + "\n")
    write_report(folder, results, scene_map)
    _write_overlay(folder / "overlay.png", folder / "bag", results, scene_map)
    write_json(statistics, folder / "report.json")
    return statistics


def read_recording(bag: Path, truth_topic: str, since_ns: int) -> NodeRecording:
    """Read the drive that began at since_ns. Raises UserError if the bag lacks its images or true poses."""
    recording = NodeRecording()
    for topic, message in read_messages(bag, {"/image", truth_topic, "/localizer/pose", "/localizer/status"}):
        stamp = stamp_ns(message)
        if stamp < since_ns:
            continue
        if topic == "/image":
            recording.images.append(stamp)
        elif topic == truth_topic:
            recording.truths[stamp] = pose_matrix(message.pose.position, message.pose.orientation)
        elif topic == "/localizer/pose":
            pose = message.pose.pose
            recording.poses[stamp] = (pose_matrix(pose.position, pose.orientation),
                                      np.reshape(message.pose.covariance, (6, 6)))
        elif message.status[0].name.endswith(": image"):
            values = {pair.key: pair.value for pair in message.status[0].values}
            recording.statuses[stamp] = ImageStatus(status=values["status"], message=message.status[0].message,
                                                    values=values)
    if not any(stamp in recording.truths for stamp in recording.images):
        raise UserError(f"The bag {bag} holds {len(recording.images)} images of the second drive, none with a true"
                        " pose: nothing can be compared.")
    return recording


def _node_statistics(recording: NodeRecording, results: list[FrameResult], scene_map: SceneMap) -> dict[str, Any]:
    """Return statistics of a running node, and the recall over all images, including those that were not evaluated."""
    summary, count = summarize(results), len(recording.images)
    span_s = ns_to_s(recording.images[-1] - recording.images[0])
    return {
        "frames": count, "recall": {bound: value * len(results) / count for bound, value in summary.recall.items()},
        "answered": len(results), "without_truth": sum(stamp not in recording.truths for stamp in recording.images),
        "unanswered": recording.not_evaluated(), "image_rate_hz": (count - 1) / span_s if span_s else None,
        "pose_rate_hz": summary.localized / count * (count - 1) / span_s if span_s else None,
        "mapping": without_nan(asdict(scene_map.statistics))}


def _table(statistics: dict[str, Any]) -> str:
    def by_key(counts: dict[str, int]) -> str:
        return ", ".join(f"{key} {count}" for key, count in counts.items()) or "none"

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    error_m, error_deg = statistics["median_translation_m"], statistics["median_rotation_deg"]
    error_cm = None if error_m is None else 100 * error_m
    stages = ", ".join(f"{stage} {ms:.0f}" for stage, ms in statistics["stage_ms"].items())
    rows = [
        ("map", f"{statistics['mapping']['frames']} images, {statistics['mapping_s']:.0f} s, "
                f"{statistics['map_bytes'] / 1e6:.1f} MB"),
        ("images", f"{statistics['frames']} at {number(statistics['image_rate_hz'], '.1f')} Hz"),
        ("localized", f"{statistics['localized']} at {number(statistics['pose_rate_hz'], '.1f')} Hz"),
        ("rejected", by_key(statistics["refused"])),
        ("not evaluated", by_key(statistics["unanswered"])),
        ("median error", f"{number(error_cm, '.1f')} cm, {number(error_deg, '.2f')} deg"),
        *((f"recall {bound.replace('_', ' ')}", f"{value:.2f}") for bound, value in statistics["recall"].items()),
        ("latency", ", ".join(f"{q} {number(ms, '.0f')} ms" for q, ms in statistics["latency_ms"].items())),
        ("stages [ms]", stages or "-"),
    ]
    return "\n".join(f"    {name:<20}{value}" for name, value in rows)


def _write_overlay(path: Path, bag: Path, results: list[FrameResult], scene_map: SceneMap) -> None:
    """Draw the image with the median error, beside the map's points projected with its estimated pose."""
    localized = sorted((r for r in results if r.errors is not None), key=lambda r: r.errors or (0.0, 0.0))
    if not localized:
        return
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    chosen = localized[len(localized) // 2]
    image, camera = _image(bag, chosen.stamp_s)
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
    """Project a point cloud into a camera: pixels (N, 2) and colours (N, 3) of the nearest point in each cell."""
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


def _image(bag: Path, stamp_s: float) -> tuple[np.ndarray, Camera]:
    """Return the rectified image with this stamp, and its camera."""
    images = open_scene(bag, bag_options=BagOptions(image="/image", camera_info="/camera_info", posed=False))
    frame = next(frame for frame in images if abs(frame.stamp_s - stamp_s) < 1e-6)
    return frame.camera.rectify(frame.image)[0], frame.camera
