# SPDX-License-Identifier: Apache-2.0
"""Two maps become one: with a transform that is given, or found; and when they have too little in common."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import two_walls

from aceg_ros.camera import Frame
from aceg_ros.cli import main
from aceg_ros.cli.merge import read_transform
from aceg_ros.errors import UserError
from aceg_ros.geometry import invert, look_at, pose_error, rotation_to_quaternion
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.build_map import build_map
from aceg_ros.methods.database_extender import table_of
from aceg_ros.methods.merge_maps import merge_maps
from aceg_ros.methods.registry import make_localizer

OPTIONS = MappingOptions(device="cpu", trust_poses=True)
A_FROM_B = look_at((3.0, -2.0, 0.5), (4.0, 1.0, 0.7))


def wing(x: np.ndarray) -> list[Frame]:
    """Images of the part of the wall around these places along x."""
    poses = [look_at((at, 0.25 * np.sin(3.0 * at), 0.3 * np.cos(5.0 * at)), (at, two_walls.WALL_M, 0.2 * np.sin(at)),
                     up=(0, 0, 1.0)) for at in x]
    return two_walls.frames(np.array(poses))


def in_frame_b(frames: list[Frame]) -> list[Frame]:
    return [replace(frame, map_from_camera=invert(A_FROM_B) @ frame.map_from_camera) for frame in frames]


@pytest.fixture(scope="module")
def wings() -> tuple[SceneMap, SceneMap]:
    """Maps of the wall from -4 to 1 m, and from -0.2 to 4 m in another frame."""
    left = build_map("ace_g", OPTIONS, wing(np.linspace(-4.0, 1.0, 14)), MappingBudget.start(300.0))[0]
    right = build_map("ace_g", OPTIONS, in_frame_b(wing(np.linspace(-0.2, 4.0, 12))), MappingBudget.start(300.0))[0]
    return left, right


def test_the_transform_is_found_and_both_wings_are_localized_in(wings):
    merged, found = merge_maps(*wings, None, budget=MappingBudget.start(300.0))
    distance, angle_deg = pose_error(found.a_from_b, A_FROM_B)
    assert found.agreeing >= 3 and distance < 0.06 and angle_deg < 0.6
    localizer = make_localizer(merged, "cpu")
    for frame in wing(np.array([-3.1, -1.3, 0.4, 2.2, 3.3])):
        estimate = localizer.localize(replace(frame, map_from_camera=None))
        assert estimate.map_from_camera is not None, estimate.message
        assert pose_error(estimate.map_from_camera, frame.map_from_camera)[0] < 0.1
    assert len(merged.trajectory) == 26 == merged.statistics.frames


def test_landmarks_of_both_become_one(wings):
    tables = [table_of(each) for each in wings]
    merged = table_of(merge_maps(*wings, A_FROM_B, budget=MappingBudget.start(300.0))[0])
    assert set(merged.visits) == {0, 1}
    both = set(merged.landmarks[merged.visits[merged.keyframes] == 0]) \
        & set(merged.landmarks[merged.visits[merged.keyframes] == 1])
    assert len(both) > 100
    assert len(merged.points) < sum(len(table.points) for table in tables) - 100
    seen = np.column_stack([merged.keyframes, merged.landmarks])
    assert len(np.unique(seen, axis=0)) == len(seen), "a keyframe sees a landmark once"


def test_three_common_keyframes_are_enough_and_two_are_not():
    """Two wings that were both seen from one doorway, and nowhere else."""
    doorway, beyond = np.array([-2.4, -2.0, -1.6]), np.linspace(3.5, 5.0, 6)
    left = build_map("ace_g", OPTIONS, wing(np.r_[np.linspace(-5.0, -2.8, 6), doorway]), MappingBudget.start(300.0))[0]

    def right(common: np.ndarray) -> SceneMap:
        frames = in_frame_b(wing(np.r_[common + 0.04, beyond]))
        return build_map("ace_g", OPTIONS, frames, MappingBudget.start(300.0))[0]

    merged, found = merge_maps(left, right(doorway), None, budget=MappingBudget.start(300.0))
    distance, angle_deg = pose_error(found.a_from_b, A_FROM_B)
    assert found.agreeing == 3 and distance < 0.06 and angle_deg < 0.6, (found.agreeing, distance, angle_deg)
    localizer = make_localizer(merged, "cpu")
    for frame in wing(np.array([-4.3, -1.8, 3.9, 4.6])):
        estimate = localizer.localize(replace(frame, map_from_camera=None))
        assert estimate.map_from_camera is not None, estimate.message
        assert pose_error(estimate.map_from_camera, frame.map_from_camera)[0] < 0.15
    with pytest.raises(UserError, match="too little in common"):
        merge_maps(left, right(doorway[1:]), None, budget=MappingBudget.start(300.0))


def test_maps_with_nothing_in_common_are_refused(wings, tmp_path, capsys):
    far = build_map("ace_g", OPTIONS, in_frame_b(wing(np.linspace(3.4, 5.2, 8))), MappingBudget.start(300.0))[0]
    left = build_map("ace_g", OPTIONS, wing(np.linspace(-5.0, -3.2, 8)), MappingBudget.start(300.0))[0]
    left.save(tmp_path / "a.map")
    far.save(tmp_path / "b.map")
    merge = ["merge", str(tmp_path / "a.map"), str(tmp_path / "b.map"), "-o", str(tmp_path / "c.map")]
    assert main(merge) == 2
    assert "too little in common: 0 of 8 keyframes" in capsys.readouterr().err
    assert not (tmp_path / "c.map").exists()
    numbers = [f"{value:.9f}" for value in (*A_FROM_B[:3, 3], *rotation_to_quaternion(A_FROM_B[:3, :3]))]
    assert main([*merge, "--transform", *numbers]) == 0
    assert "as given" in capsys.readouterr().out
    assert len(table_of(SceneMap.load(tmp_path / "c.map")).poses) == 16


def test_transforms_are_numbers_or_a_file(tmp_path):
    np.savetxt(tmp_path / "matrix.txt", A_FROM_B)
    assert np.allclose(read_transform([str(tmp_path / "matrix.txt")]), A_FROM_B)
    assert np.allclose(read_transform(["1", "-2", "3", "0", "0", "0", "2"])[:3, 3], (1, -2, 3))
    for wrong, says in (("1 2 3", "no rigid one"), ("1 2 3 0 0 0 0", "no rigid one"), ("a b", "cannot be read"),
                        ("nowhere.txt", "no file nowhere.txt")):
        with pytest.raises(UserError, match=says):
            read_transform(wrong.split())
