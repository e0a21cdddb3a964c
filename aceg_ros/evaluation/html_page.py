# SPDX-License-Identifier: Apache-2.0
"""Writes evaluations as one self-contained HTML page."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from aceg_ros.camera import Frame
from aceg_ros.encoders.preprocess import reject_image
from aceg_ros.errors import UserError
from aceg_ros.evaluation.evaluate import Evaluation
from aceg_ros.evaluation.metrics import FrameResult
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.scene_coordinates import encoder_of
from aceg_ros.utils.atomic_file import without_nan, write_text
from aceg_ros.visualization.overlay import draw_estimate
from aceg_ros.visualization.shortlist import ShortlistDrawing

CLOUD_POINTS = 15_000
BEST, WORST = 3, 3              # frames whose images are shown
_IMAGE_WIDTH, WIDE_PX, _JPEG_QUALITY = 640, 1200, 80


def write_page(path: Path, evaluations: Sequence[Evaluation], scene: str, frames: Iterable[Frame]) -> None:
    """Write a page on one or several evaluations of the same frames.

    Args:
        path: The file to write.
        evaluations: The evaluations, one per map.
        scene: Name of the scene.
        frames: The evaluated frames, for their images.

    Raises:
        UserError: If the file cannot be written.
    """
    images = _example_images(evaluations, frames)
    title = f"{evaluations[0].name} in {scene}" if len(evaluations) == 1 else f"{len(evaluations)} maps in {scene}"
    data = {"title": title, "scene": f"{scene}, {len(evaluations[0].results)} frames",
            "created": datetime.now().strftime("%Y-%m-%d %H:%M"),
            "runs": [_run(evaluation, shown) for evaluation, shown in zip(evaluations, images, strict=True)]}
    template = files("aceg_ros.evaluation").joinpath("page.html").read_text()
    # "</script>" in a name must not end the script element.
    text = json.dumps(without_nan(data), allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    write_text(path, template.replace("@DATA@", text))


def _run(evaluation: Evaluation, images: list[dict[str, str]]) -> dict[str, Any]:
    """Return the page's data on one evaluation."""
    scene_map = evaluation.scene_map
    sources = {f"{role} source": network.source for role, network in scene_map.networks.items()}
    configuration = {**sources, "created": scene_map.created, "settings": scene_map.settings,
                     "covariance scale": scene_map.covariance_scale, "mapping": asdict(scene_map.statistics),
                     "cameras": [asdict(camera) for camera in scene_map.cameras[:3]]}
    return {"name": evaluation.name, "summary": evaluation.statistics, "configuration": _plain(configuration),
            "frames": [_frame(result) for result in evaluation.results], "cloud": _cloud(scene_map),
            "mapped": np.round(scene_map.trajectory[:, :3, 3].astype(float), 4).tolist(), "images": images}


def _frame(result: FrameResult) -> dict[str, Any]:
    estimate = result.estimate
    metres, degrees = result.errors or (None, None)
    std_m, std_deg = result.standard_deviations or (None, None)
    pose = None if estimate.map_from_camera is None else np.round(estimate.map_from_camera[:3, 3], 5).tolist()
    return {"name": result.name, "t": result.stamp_s, "status": estimate.status.value, "message": estimate.message,
            "truth": np.round(result.truth[:3, 3], 5).tolist(), "pose": pose, "m": metres, "deg": degrees,
            "std_m": std_m, "std_deg": std_deg, "nees": result.nees, "inliers": estimate.inliers,
            "ms": result.latency_ms}


def _cloud(scene_map: SceneMap) -> dict[str, Any]:
    """Return the points within the bounds of the map, subsampled and quantized to 16 bits per coordinate."""
    low, high = (np.array(corner) for corner in scene_map.bounds)
    inside = ((scene_map.cloud_xyz >= low) & (scene_map.cloud_xyz <= high)).all(1)
    xyz, rgb = scene_map.cloud_xyz[inside], scene_map.cloud_rgb[inside]
    step = max(1, -(-len(xyz) // CLOUD_POINTS))
    xyz, rgb = xyz[::step], rgb[::step]
    quantized = np.round((xyz - low) / np.maximum(high - low, 1e-9) * 65535).astype("<u2")
    return {"count": len(xyz), "low": low.tolist(), "high": high.tolist(),
            "xyz": base64.b64encode(quantized.tobytes()).decode(), "rgb": base64.b64encode(rgb.tobytes()).decode()}


def _example_images(evaluations: Sequence[Evaluation], frames: Iterable[Frame]) -> list[list[dict[str, str]]]:
    """Return, for each evaluation, the images of its best and worst frames as JPEG with a caption."""
    chosen = [_best_and_worst(evaluation.results) for evaluation in evaluations]
    drawings = [_shortlist_drawing(evaluation.scene_map) for evaluation in evaluations]
    drawn: list[dict[str, list[tuple[str, str]]]] = [{} for _ in evaluations]
    for frame in frames:
        for results, images, drawing in zip(chosen, drawn, drawings, strict=True):
            for result in results:
                if (result.name, result.stamp_s) == (frame.name, frame.stamp_s):
                    images[result.name] = [(_caption(result), _jpeg(draw_estimate(frame, result.estimate)))]
                    if drawing is not None and reject_image(frame) is None:
                        images[result.name].append((f"{result.name} beside the keyframes that look most like it",
                                                    _jpeg(drawing.draw(frame, result.estimate), WIDE_PX)))
    return [[{"caption": caption, "jpeg": jpeg} for result in results for caption, jpeg in images.get(result.name, ())]
            for results, images in zip(chosen, drawn, strict=True)]


def _shortlist_drawing(scene_map: SceneMap) -> ShortlistDrawing | None:
    """Return what draws keyframes and matches; None if the map has no keyframes, or its encoder is not here."""
    if not ShortlistDrawing.can_draw(scene_map):
        return None
    try:
        return ShortlistDrawing(scene_map, encoder_of(scene_map, "cpu"))
    except UserError:
        return None


def _best_and_worst(results: Sequence[FrameResult]) -> list[FrameResult]:
    """Return the best frames, then the worst, which include a rejected one if there is any."""
    localized = sorted((r for r in results if r.errors is not None), key=lambda r: r.errors or (0, 0))
    rejected = [r for r in results if r.errors is None]
    best = localized[:BEST]
    worst = (rejected[:1] + localized[BEST:][::-1])[:WORST]
    return best + worst


def _caption(result: FrameResult) -> str:
    if result.errors is None:
        return f"{result.name}: {result.estimate.status.value}, {result.estimate.message}"
    metres, degrees = result.errors
    return f"{result.name}: {100 * metres:.1f} cm, {degrees:.2f} deg; {result.estimate.message}"


def _jpeg(rgb: np.ndarray, max_width: int = _IMAGE_WIDTH) -> str:
    height, width = rgb.shape[:2]
    if width > max_width:
        rgb = cv2.resize(rgb, (max_width, round(height * max_width / width)), interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return base64.b64encode(data.tobytes()).decode()


def _plain(value: Any) -> Any:
    """Convert a value to types that JSON supports."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return {str(index): _plain(entry) for index, entry in enumerate(value)}
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
