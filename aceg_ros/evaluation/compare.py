# SPDX-License-Identifier: Apache-2.0
"""Evaluates several maps on one scene, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aceg_ros.datasets import Scene
from aceg_ros.evaluation.evaluate import Evaluation, Progress, evaluate_map
from aceg_ros.maps.scene_map import SceneMap

# Title, key of the statistics, factor, format.
ROWS = (("localized", "localized", 1.0, "{:.0f}"), ("false accepts", "false_accepts", 1.0, "{:.0f}"),
        ("median cm", "median_translation_m", 100.0, "{:.1f}"), ("median deg", "median_rotation_deg", 1.0, "{:.2f}"),
        ("recall 5 cm 5 deg", "recall.0.05m_5deg", 1.0, "{:.2f}"),
        ("recall 10 cm 5 deg", "recall.0.1m_5deg", 1.0, "{:.2f}"),
        ("recall 25 cm 5 deg", "recall.0.25m_5deg", 1.0, "{:.2f}"), ("ATE cm", "ate_m", 100.0, "{:.1f}"),
        ("inside 95 %", "consistency.inside_95", 1.0, "{:.2f}"), ("latency p50 ms", "latency_ms.p50", 1.0, "{:.0f}"),
        ("latency p99 ms", "latency_ms.p99", 1.0, "{:.0f}"), ("mapping s", "mapping_s", 1.0, "{:.0f}"),
        ("map MB", "map_bytes", 1e-6, "{:.2f}"))


def compare(paths: Sequence[Path], scene: Scene, *, device: str, seed: int, progress: Progress) -> list[Evaluation]:
    """Evaluate each map on the scene. progress: called after each frame, counting anew for each map."""
    return [evaluate_map(SceneMap.load(path), scene, name=path.stem, path=path, device=device, seed=seed,
                         progress=progress) for path in paths]


def table(evaluations: Sequence[Evaluation]) -> str:
    """Return a text table with a column for each evaluation."""
    width = max(12, *(len(evaluation.name) for evaluation in evaluations)) + 2
    lines = [f"{'':20}" + "".join(f"{evaluation.name:>{width}}" for evaluation in evaluations)]
    for title, key, scale, form in ROWS:
        values = [_value(evaluation.statistics, key) for evaluation in evaluations]
        cells = ("-" if value is None else form.format(scale * value) for value in values)
        lines.append(f"{title:20}" + "".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join(lines)


def _value(statistics: dict[str, Any], key: str) -> float | None:
    group, _, name = key.partition(".")
    return statistics[group][name] if name else statistics[group]
