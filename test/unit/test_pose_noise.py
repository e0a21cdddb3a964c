# SPDX-License-Identifier: Apache-2.0
"""The benchmark of inexact mapping poses: the errors are as large as it says, and it maps with them."""

import numpy as np
import pytest

from aceg_ros.benchmarks import pose_noise
from aceg_ros.benchmarks.pose_noise import PoseErrors, conditions, disturb
from aceg_ros.geometry import look_at, pose_error


@pytest.mark.parametrize("kind", ["noise", "drift"])
def test_errors_are_as_large_as_given(kind):
    errors = PoseErrors(kind=kind, position_cm=3.0, rotation_deg=0.3).draw(60, np.random.default_rng(0))
    pose = look_at([1.0, 2.0, 1.5], [4.0, 0.0, 1.0])
    found = np.array([pose_error(disturb(pose, error), pose) for error in errors])
    assert np.sqrt(np.mean(found**2, axis=0)) == pytest.approx([0.03, 0.3], rel=1e-6)
    steps = np.linalg.norm(np.diff(errors[:, :3], axis=0), axis=1)
    assert (steps.max() < 0.015) == (kind == "drift")


def test_without_errors_there_is_one_condition():
    chosen = conditions(["noise", "drift"], [0.0, 5.0], [0.0, 1.0])
    assert len(chosen) == 7 and len({each.name for each in chosen}) == 7
    assert (PoseErrors(kind="noise", position_cm=0.0, rotation_deg=0.0).draw(5, np.random.default_rng(0)) == 0).all()


def test_rooms_are_mapped_with_errors_and_variants(tmp_path, monkeypatch):
    mapped = []

    def fake(scene, map_path, *, method, budget_s, map_options):
        mapped.append((scene.name, tuple(map_options), map_path.name))
        return {"frames": 2, "localized": 1, "false_accepts": 0, "recall": dict.fromkeys(pose_noise.RECALL_KEYS, 0.5),
                "median_translation_m": 0.01, "median_rotation_deg": 0.2, "consistency": {"inside_95": 1.0}}

    monkeypatch.setattr(pose_noise, "map_and_evaluate", fake)
    monkeypatch.setattr(pose_noise, "MAPPING_FRAMES", 3)
    monkeypatch.setattr(pose_noise, "QUERY_FRAMES", 1)
    chosen = conditions(["noise"], [0.0, 5.0], [0.0])
    table = pose_noise.run(tmp_path, chosen, rooms=1, method="m", budget_s=1.0, variants=[(), ("--flag",)])
    assert [(name, options) for name, options, _ in mapped] == [
        ("room_0_noise_0cm_0deg", ()), ("room_0_noise_0cm_0deg", ("--flag",)),
        ("room_0_noise_5cm_0deg", ()), ("room_0_noise_5cm_0deg", ("--flag",))]
    assert len({name for _, _, name in mapped}) == 2
    assert "| noise | 5 | 0 | --flag | 2 | 1 | 0 | 0.010 | 0.20 | 0.50 |" in table

    def read(folder, part):
        return np.stack([np.loadtxt(path) for path in sorted((tmp_path / folder / part / "poses").iterdir())])

    moved = read("room_0_noise_5cm_0deg", "mapping") - read("room_0", "mapping")
    assert np.sqrt(np.square(moved[:, :3, 3]).sum(1).mean()) == pytest.approx(0.05, rel=1e-4)
    assert (read("room_0_noise_5cm_0deg", "query") == read("room_0", "query")).all()
    assert np.allclose(read("room_0_noise_0cm_0deg", "mapping"), read("room_0", "mapping"))
