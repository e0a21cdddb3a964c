# SPDX-License-Identifier: Apache-2.0
"""Writes the plots and tables of an evaluation into a folder."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from aceg_ros.errors import UserError
from aceg_ros.evaluation.evaluate import tum_line
from aceg_ros.evaluation.metrics import FrameResult
from aceg_ros.maps.scene_map import SceneMap

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def write_report(folder: Path, results: Sequence[FrameResult], scene_map: SceneMap) -> None:
    """Write frames.csv, estimated.tum, truth.tum, trajectory.png and errors.png. Raises UserError if it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The report folder {folder} cannot be made: {error.strerror or error}.") from None
    _write_frames(folder / "frames.csv", results)
    (folder / "truth.tum").write_text("".join(tum_line(r.stamp_s, r.truth) + "\n" for r in results))
    (folder / "estimated.tum").write_text("".join(tum_line(r.stamp_s, r.estimate.map_from_camera) + "\n"
                                                  for r in results if r.estimate.map_from_camera is not None))
    plot_trajectory(folder / "trajectory.png", results, scene_map)
    _plot_errors(folder / "errors.png", results)


def _write_frames(path: Path, results: Sequence[FrameResult]) -> None:
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "stamp_s", "status", "translation_m", "rotation_deg", "inliers", "inlier_ratio",
                        "reprojection_rms_px", "std_m", "std_deg", "nees", "latency_ms", "message"])
        for r in results:
            translation, rotation = r.errors or ("", "")
            std_m, std_deg = r.standard_deviations or ("", "")
            table.writerow([r.name, r.stamp_s, r.estimate.status.value, translation, rotation, r.estimate.inliers,
                            r.estimate.inlier_ratio, r.estimate.reprojection_rms_px, std_m, std_deg,
                            "" if r.nees is None else r.nees, r.latency_ms, r.estimate.message])


def plot_trajectory(path: Path, results: Sequence[FrameResult], scene_map: SceneMap) -> None:
    """Plot the trajectories in the two axes in which the cameras moved most, on top of the map's point cloud."""
    truth = np.array([r.truth[:3, 3] for r in results])
    found = np.array([r.estimate.map_from_camera[:3, 3] for r in results if r.estimate.map_from_camera is not None])
    found = found.reshape(-1, 3)
    mapped = scene_map.trajectory[:, :3, 3]
    extent = np.ptp(np.concatenate([truth, mapped]), axis=0)
    a, b = sorted(np.argsort(extent)[-2:])
    figure, axes = plt.subplots(figsize=(8, 8))
    low, high = np.array(scene_map.bounds)
    inside = ((scene_map.cloud_xyz > low) & (scene_map.cloud_xyz < high)).all(1)
    axes.scatter(scene_map.cloud_xyz[inside, a], scene_map.cloud_xyz[inside, b], s=1, alpha=0.25,
                 c=scene_map.cloud_rgb[inside] / 255.0, linewidths=0)
    axes.plot(mapped[:, a], mapped[:, b], color="0.55", lw=1, label="mapping trajectory")
    axes.plot(truth[:, a], truth[:, b], ".-", color="tab:green", ms=4, lw=1, label="ground truth")
    axes.plot(found[:, a], found[:, b], ".", color="tab:red", ms=4, label="localized")
    axes.set_xlabel(f"{'xyz'[a]} [m]")
    axes.set_ylabel(f"{'xyz'[b]} [m]")
    axes.set_aspect("equal")
    axes.legend()
    axes.set_title(f"{len(found)} of {len(results)} frames localized")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _plot_errors(path: Path, results: Sequence[FrameResult]) -> None:
    """Plot the cumulative distribution of errors over all frames; rejected frames count as infinite errors."""
    errors = np.array([r.errors for r in results if r.errors is not None]).reshape(-1, 2)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, values, unit in zip(axes, errors.T, ("translation [m]", "rotation [deg]"), strict=True):
        ordered = np.sort(values)
        axis.step(ordered, (np.arange(len(ordered)) + 1) / len(results), where="post")
        axis.set_xscale("log")
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
        axis.set_xlabel(unit)
        axis.set_ylabel("share of all frames")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
