# SPDX-License-Identifier: Apache-2.0
"""marepo from the command line: mapping with landmarks, localizing, evaluating; what happens to a regressed pose."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from aceg_ros.benchmarks.regressed_poses import evaluate, run, with_outliers
from aceg_ros.cli import main
from aceg_ros.datasets import open_scene
from aceg_ros.geometry import pose_error
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.marepo import as_marepo_map, load_transformer
from aceg_ros.methods.marepo_localizer import MarepoLocalizer, trusted_cells

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(marepo_folder) -> Path:
    return marepo_folder


@pytest.fixture(scope="module")
def frames(rendered_scene):
    return list(open_scene(rendered_scene / "query"))


class KnownPose(MarepoLocalizer):
    """A localizer whose transformer gives a pose that the test has chosen."""

    pose: np.ndarray | None = None

    def regress_pose(self, found):
        return self.pose


def near(pose: np.ndarray, degrees: float, metres: float) -> np.ndarray:
    """A pose that is off by this much."""
    moved = pose.copy()
    moved[:3, :3] = pose[:3, :3] @ Rotation.from_rotvec(np.deg2rad(degrees) * np.array([0.6, 0.8, 0.0])).as_matrix()
    moved[:3, 3] += metres * np.array([0.0, 0.6, 0.8])
    return moved


def test_the_map_keeps_what_was_chosen(made):
    plain, scene_map = (SceneMap.load(made / name) for name in ("room.map", "codes.map"))
    assert plain.method == "marepo" and "database" in plain.sections
    assert plain.settings["coordinates"] == "database" and plain.settings["refine"] is False
    assert set(plain.networks) == {"encoder", "pose_regressor"}
    assert scene_map.settings["coordinates"] == "ace_g" and scene_map.settings["refine"] is True
    assert set(scene_map.networks) == {"encoder", "regressor", "pose_regressor"}
    original, tuned = load_transformer(plain, "cpu").net, load_transformer(scene_map, "cpu").net
    assert tuned.config == original.config and not torch.equal(tuned.head[1].weight, original.head[1].weight)


@pytest.mark.parametrize("name", ["room.map", "codes.map"])
def test_the_shipped_transformer_localizes(made, frames, name):
    """Bounds of repeated runs, with other seeds of mapping: see docs/benchmarks/2026-11-27-marepo-2.md."""
    localizer = MarepoLocalizer.from_map(SceneMap.load(made / name), device="cpu", seed=0)
    errors = [pose_error(estimate.map_from_camera, frame.map_from_camera) for frame in frames
              if (estimate := localizer.localize(frame)).accepted]
    assert len(errors) >= 8 and np.median(errors, axis=0)[0] < 0.05 and max(error[0] for error in errors) < 0.3


def test_evaluate_localize_and_info_work_as_with_other_methods(made, rendered_scene, tmp_path, capsys):
    assert main(["evaluate", str(made / "room.map"), str(rendered_scene / "query"), "--json",
                 str(tmp_path / "result.json")]) == 0
    assert json.loads((tmp_path / "result.json").read_text())["frames"] == 12
    image = str(min((rendered_scene / "query" / "rgb").iterdir()))
    assert main(["localize", str(made / "room.map"), image]) == 0
    assert main(["info", str(made / "room.map")]) == 0
    assert "marepo" in capsys.readouterr().out
    assert main(["localize", str(made / "codes.map"), image]) == 0


def test_a_near_pose_is_refined_and_a_far_one_is_rejected(made, frames):
    localizer = KnownPose.from_map(SceneMap.load(made / "codes.map"), device="cpu", seed=0)
    errors = []
    for frame in frames[:6]:
        localizer.pose = near(frame.map_from_camera, 5.0, 0.15)
        estimate = localizer.localize(frame)
        if estimate.accepted:
            errors.append(pose_error(estimate.map_from_camera, frame.map_from_camera))
            assert "refine" in estimate.stage_ms and "ransac" not in estimate.stage_ms
        localizer.pose = near(frame.map_from_camera, 120.0, 2.0)
        assert not localizer.localize(frame).accepted
    assert len(errors) >= 4 and np.median(errors, axis=0)[0] < 0.03


def test_a_pose_that_is_not_refined_is_published_with_its_error(made, frames):
    rough = as_marepo_map_without_refinement(made)
    localizer = KnownPose.from_map(rough, device="cpu", seed=0)
    refining = KnownPose.from_map(SceneMap.load(made / "codes.map"), device="cpu", seed=0)
    ratios = []
    for frame in frames[:6]:
        localizer.pose = near(frame.map_from_camera, 0.3, 0.01)
        refining.pose = localizer.pose
        estimate, refined = localizer.localize(frame), refining.localize(frame)
        if estimate.accepted and refined.accepted:
            assert np.allclose(estimate.map_from_camera, localizer.pose)
            added = np.trace(estimate.covariance[:3, :3] - refined.covariance[:3, :3]) ** 0.5
            ratios.append(added / np.linalg.norm((refined.map_from_camera - localizer.pose)[:3, 3]))
            assert estimate.inliers > refined.inliers / 2
    assert len(ratios) >= 4, "accepted"
    assert np.median(ratios) == pytest.approx(rough.covariance_scale**0.5, rel=1e-3), "the distance to the refined pose"


def as_marepo_map_without_refinement(made: Path) -> SceneMap:
    scene_map = SceneMap.load(made / "codes.map")
    return replace(scene_map, settings=scene_map.settings | {"refine": False})


def test_no_trusted_cells_no_pose(made, frames):
    localizer = MarepoLocalizer.from_map(SceneMap.load(made / "codes.map"), device="cpu", seed=0)
    found = localizer.scene_coordinates(frames[0])
    assert localizer.regress_pose(replace(found, mask=np.zeros(len(found.points), bool))) is None
    assert localizer.regress_pose(replace(found, points=np.full_like(found.points, np.nan))) is None
    reliability = np.arange(10.0)
    assert trusted_cells(np.arange(10) != 9, reliability).tolist() == [False] * 5 + [True] * 4 + [False]


def test_the_benchmark_compares_on_the_same_coordinates(made, frames, rendered_map, rendered_scene):
    table = run([(rendered_map, rendered_scene / "query")], None, every=4, outliers=(0.0, 0.5))
    assert table.count("\n") == 11 and table.count("RANSAC") == 2 and table.count("no network") == 4
    localizer = MarepoLocalizer.from_map(as_marepo_map(SceneMap.load(rendered_map)), device="cpu", seed=0)
    found = localizer.scene_coordinates(frames[0])
    result = evaluate(localizer, "RANSAC", found, frames[0].map_from_camera)
    assert result.accepted and result.metres < 0.05
    spoilt = with_outliers(found, 0.5, 1)
    assert 0.4 < (spoilt.points != found.points).any(1).mean() < 0.6
