# SPDX-License-Identifier: Apache-2.0
"""Maps that grow: a second recording beside the first, things that are gone, bounded size, and damage."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import two_walls

from aceg_ros.camera import Frame
from aceg_ros.cli import main
from aceg_ros.datasets import write_ace_scene
from aceg_ros.errors import UserError
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.observation_table import ObservationTable, join
from aceg_ros.mapping.select_keyframes import KeyframeChoice, select_keyframes
from aceg_ros.maps.keyframe_database import SECTION
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.build_map import build_map, extend_map
from aceg_ros.methods.database_extender import table_of

OPTIONS = MappingOptions(device="cpu", trust_poses=True)


def dark(frame: Frame) -> Frame:
    """The frame by night: a quarter of the contrast, and noise."""
    rng = np.random.default_rng(0)
    grey = cv2.GaussianBlur(frame.image, (3, 3), 0.8)
    return replace(frame, image=np.clip(10 + 0.2 * grey + rng.normal(0, 2, grey.shape), 0, 255).astype(np.uint8))


def without_board(frames: list[Frame]) -> list[Frame]:
    """What the camera sees from the same poses once the board is away."""
    wall = two_walls.pattern(0, 14.0, 8.0)
    none = np.zeros((1, 1, 3), np.uint8)         # a centimetre
    return [replace(frame, image=two_walls.render(frame.map_from_camera, wall, none, 0, depth=False).image)
            for frame in frames]


@pytest.fixture(scope="module")
def recording() -> list[Frame]:
    return two_walls.frames(two_walls.drive(24))


@pytest.fixture(scope="module")
def first_map(recording) -> SceneMap:
    return build_map("ace_g", OPTIONS, recording[::2], MappingBudget.start(300.0))[0]


@pytest.fixture(scope="module")
def extended(first_map, recording) -> SceneMap:
    return extend_map(first_map, OPTIONS, [dark(frame) for frame in recording[1::2]], MappingBudget.start(300.0))[0]


def test_new_observations_stand_beside_the_old_ones_of_the_same_landmarks(first_map, extended):
    before, after = table_of(first_map), table_of(extended)
    assert set(before.visits) == {0} and set(after.visits) == {0, 1}
    assert (after.visits == 0).sum() == len(before.poses) and (after.visits == 1).sum() > 5
    of_both = set(after.landmarks[after.visits[after.keyframes] == 0]) \
        & set(after.landmarks[after.visits[after.keyframes] == 1])
    assert len(of_both) > 0.15 * len(before.points)
    assert np.allclose(after.points[sorted(of_both)][:5], before.points[sorted(of_both)][:5], atol=1e-6)
    assert first_map.statistics.frames == 12 and extended.statistics.frames == 24
    assert len(extended.trajectory) == 24


def test_a_visit_that_shows_nothing_new_adds_little(first_map, recording):
    poses = two_walls.drive(24)[::2].copy()
    poses[:, :3, 3] += np.random.default_rng(0).normal(0, 0.02, (12, 3))
    again = extend_map(first_map, OPTIONS, two_walls.frames(poses), MappingBudget.start(300.0))[0]
    before, after = table_of(first_map), table_of(again)
    assert len(after) < 1.6 * len(before), "the images alone would double it"
    assert (after.missed > 0).mean() < 0.05


def test_what_is_gone_is_dropped_after_enough_visits(first_map, recording):
    """The board is taken away. Its landmarks are dropped at the second visit that misses them; others stay."""
    changed = without_board(recording[1::2])
    once = extend_map(first_map, OPTIONS, changed, MappingBudget.start(300.0), fade_after=2)[0]
    twice = extend_map(once, OPTIONS, changed, MappingBudget.start(300.0), fade_after=2)[0]

    def counts(scene_map: SceneMap) -> tuple[int, int]:
        table = table_of(scene_map)
        old = table.visits[table.keyframes] == 0
        on_board = table.points[table.landmarks[old], 1] < 0.5 * (two_walls.WALL_M + two_walls.BOARD_M)
        return int(on_board.sum()), int((~on_board).sum())

    assert counts(once)[0] == counts(first_map)[0] > 100
    assert counts(twice)[0] < 0.4 * counts(first_map)[0]
    assert counts(twice)[1] > 0.8 * counts(first_map)[1]


def test_the_map_is_bounded(extended):
    table = table_of(extended)
    limit = len(table) // 2
    kept = select_keyframes(table, KeyframeChoice(count=limit, known=np.ones(len(table.poses), bool)))
    assert 0.6 * limit < kept.sum() <= limit
    assert set(table.visits[table.keyframes[kept]]) == {0, 1}


def test_tables_are_joined_and_cut(extended):
    table = table_of(extended)
    both = join([table, table])
    assert len(both) == 2 * len(table) and both.landmarks.max() == 2 * len(table.points) - 1
    half = both.subset(both.keyframes < len(table.poses))
    assert isinstance(half, ObservationTable)
    assert np.array_equal(half.points[half.landmarks], table.points[table.landmarks])
    assert np.array_equal(half.keyframes, table.keyframes) and half.descriptors.equal(table.descriptors)


def test_the_command_extends_the_file_and_keeps_it_if_it_fails(first_map, recording, tmp_path, capsys, monkeypatch):
    first_map.save(tmp_path / "a.map")
    content = (tmp_path / "a.map").read_bytes()
    write_ace_scene(tmp_path / "night", [dark(frame) for frame in recording[1::2]])
    extend = ["extend", str(tmp_path / "a.map"), str(tmp_path / "night"), "--trust-poses"]
    assert main([*extend, "-o", str(tmp_path / "b.map")]) == 0
    assert "24 frames" in capsys.readouterr().out
    assert (tmp_path / "a.map").read_bytes() == content
    assert SceneMap.load(tmp_path / "b.map").statistics.frames == 24

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("aceg_ros.maps.scene_map.save_file", interrupted)
        assert main(extend) == 130
    assert (tmp_path / "a.map").read_bytes() == content
    assert {path.name for path in tmp_path.iterdir()} == {"a.map", "b.map", "night"}
    assert main(extend) == 0
    assert SceneMap.load(tmp_path / "a.map").statistics.frames == 24


def test_maps_without_a_database_are_refused(first_map, recording):
    other = replace(first_map, method="ace")
    with pytest.raises(UserError, match="cannot grow: map all recordings together"):
        extend_map(other, OPTIONS, recording, MappingBudget.start(300.0))
    sections = {name: section for name, section in first_map.sections.items() if name != SECTION}
    with pytest.raises(UserError, match="Only a map with a keyframe database"):
        extend_map(replace(first_map, sections=sections), OPTIONS, recording, MappingBudget.start(300.0))
