"""Several maps on one scene, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from aceg_ros.datasets import Scene
from aceg_ros.evaluation.evaluate import Run, evaluate_map
from aceg_ros.maps.scene_map import SceneMap

ROWS = (("localized", "localized", 1.0, "{:.0f}"), ("false accepts", "false_accepts", 1.0, "{:.0f}"),
        ("median cm", "median_translation_m", 100.0, "{:.1f}"), ("median deg", "median_rotation_deg", 1.0, "{:.2f}"),
        ("recall 5 cm 5 deg", "recall.0.05m_5deg", 1.0, "{:.2f}"),
        ("recall 10 cm 5 deg", "recall.0.1m_5deg", 1.0, "{:.2f}"),
        ("recall 25 cm 5 deg", "recall.0.25m_5deg", 1.0, "{:.2f}"), ("ATE cm", "ate_m", 100.0, "{:.1f}"),
        ("inside 95 %", "consistency.inside_95", 1.0, "{:.2f}"), ("latency p50 ms", "latency_ms.p50", 1.0, "{:.0f}"),
        ("latency p99 ms", "latency_ms.p99", 1.0, "{:.0f}"), ("mapping s", "mapping_s", 1.0, "{:.0f}"),
        ("map MB", "map_bytes", 1e-6, "{:.2f}"))


def compare(paths: Sequence[Path], scene: Scene, device: str, seed: int,
            progress: Callable[[int, int], None]) -> list[Run]:
    """Each map evaluated on the scene, in turn; progress as for `evaluate`, beginning again with each map."""
    return [evaluate_map(path.stem, path, SceneMap.load(path), scene, device, seed, progress) for path in paths]


def table(runs: Sequence[Run]) -> str:
    """One column for each run."""
    width = max(12, *(len(run.name) for run in runs)) + 2
    lines = [f"{'':20}" + "".join(f"{run.name:>{width}}" for run in runs)]
    for title, key, scale, form in ROWS:
        cells = (_cell(run.content, key, scale, form) for run in runs)
        lines.append(f"{title:20}" + "".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join(lines)


def _cell(content: dict, key: str, scale: float, form: str) -> str:
    group, _, name = key.partition(".")
    value = content[group][name] if name else content[group]
    return "-" if value is None else form.format(scale * value)
