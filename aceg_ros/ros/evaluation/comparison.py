# SPDX-License-Identifier: Apache-2.0
"""Evaluate the poses that a localizer node published for a scene, and compare them with an offline evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aceg_ros.datasets import Scene
from aceg_ros.errors import UserError
from aceg_ros.evaluation.evaluate import Evaluation, evaluate_map, report_json
from aceg_ros.evaluation.html_page import write_page
from aceg_ros.evaluation.metrics import FrameResult, summarize
from aceg_ros.evaluation.node_recording import NodeRecording
from aceg_ros.geometry import pose_error
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.ros.evaluation.parameters import EvaluationParameters
from aceg_ros.utils.atomic_file import without_nan, write_json
from aceg_ros.utils.device import pick_device


def evaluate_recording(recording: NodeRecording, recorded: Mapping[int, tuple[str, float]], scene: Scene,
                       parameters: EvaluationParameters) -> dict[str, Any]:
    """Evaluate the node's results and the scene offline, and write evaluation.json and report.html.

    Args:
        recording: What the node published.
        recorded: Name and own stamp in seconds of each frame, by the stamp that it was played with.

    Returns:
        The content of evaluation.json.

    Raises:
        UserError: if no frame was localized, or the map cannot be used.
    """
    results = recording.frame_results(recorded, parameters.speed)
    if not results:
        raise UserError("The localizer processed no frame: is it running, with this map and use_sim_time?")
    device = pick_device(parameters.device)
    scene_map = SceneMap.load(parameters.map)
    offline = evaluate_map(scene_map, scene, name="offline", path=Path(parameters.map), device=device,
                           seed=parameters.seed)
    statistics = report_json(summarize(results), scene_map, path=Path(parameters.map), device=device,
                             seed=parameters.seed, skipped=len(scene.skipped))
    content = without_nan({
        "frames": len(recording.images), "not_answered": {"lost": 0} | recording.not_evaluated(),
        "difference": difference(results, offline.results), "over_topics": statistics, "offline": offline.statistics})
    output = Path(parameters.output)
    write_json(content, output / "evaluation.json")
    over_topics = Evaluation(name="over topics", results=results, scene_map=scene_map, statistics=statistics)
    write_page(output / "report.html", [over_topics, offline], scene.name, scene)
    return content


def difference(results: Sequence[FrameResult], offline: Sequence[FrameResult]) -> dict[str, Any]:
    """Count the frames that only one of the runs accepted, and find the largest difference between poses of a frame."""
    expected = {result.name: result.estimate for result in offline}
    both = [(result.estimate, expected[result.name]) for result in results]
    errors = [pose_error(a.map_from_camera, b.map_from_camera) for a, b in both
              if a.map_from_camera is not None and b.map_from_camera is not None]
    largest = np.max(errors, axis=0) if errors else (float("nan"), float("nan"))
    return {"compared": len(both), "accepted_only_once": sum(a.accepted != b.accepted for a, b in both),
            "most_m": float(largest[0]), "most_deg": float(largest[1])}


def describe(content: Mapping[str, Any]) -> str:
    """Return the lines that sum up evaluation.json."""
    lines = [f"{name:12s} {run['localized']} of {run['frames']} localized, median"
             f" {_rounded(run['median_translation_m'])} m {_rounded(run['median_rotation_deg'])} deg, recall"
             f" {', '.join(f'{key} {_rounded(share)}' for key, share in run['recall'].items())}"
             for name, run in (("over topics", content["over_topics"]), ("offline", content["offline"]))]
    between = content["difference"]
    lines.append(f"{between['compared']} frames compared, {between['accepted_only_once']} accepted in one run only;"
                 f" largest difference of poses {_rounded(between['most_m'])} m {_rounded(between['most_deg'])} deg.")
    return "\n".join(lines)


def _rounded(value: float | None) -> str:
    """Three digits are enough for people; evaluation.json has all."""
    return "-" if value is None else f"{value:.3g}"
