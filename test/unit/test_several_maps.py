# SPDX-License-Identifier: Apache-2.0
"""One of several maps: found from one image, kept while it works, and left when the robot is elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import two_walls

from aceg_ros.camera import Frame
from aceg_ros.errors import UserError
from aceg_ros.estimate import PoseEstimate, Status
from aceg_ros.geometry import look_at, pose_error
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.maps.map_folder import ListedMap, list_maps
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.build_map import build_map
from aceg_ros.methods.several_maps import CHECK_EVERY, MapMember, SeveralMapsLocalizer

UP = look_at((0.0, 0.0, 3.0), (1.0, 1.0, 3.0))
IMAGE = two_walls.frames(two_walls.drive(1))[0]


@dataclass
class FakeLocalizer:
    """Accepts with this number of inliers; none: rejects. calls: how often it localized."""

    inliers: int
    similarity: float = 0.5
    calls: list[int] = field(default_factory=list)

    def extract(self, frame: Frame) -> object:
        return object()

    def greatest_similarity(self, query: object) -> float:
        return self.similarity

    def localize_keypoints(self, query: object) -> PoseEstimate:
        self.calls.append(self.inliers)
        if not self.inliers:
            return PoseEstimate(status=Status.NO_CONSENSUS, message="nothing")
        return PoseEstimate(status=Status.ACCEPTED, message="found", map_from_camera=np.eye(4),
                            covariance=np.diag([1.0, 4, 9, 1, 1, 1]), inliers=self.inliers)


def several(*fakes: FakeLocalizer, known: bool = False) -> SeveralMapsLocalizer:
    return SeveralMapsLocalizer([MapMember(
        listed=ListedMap(path=Path(f"floor_{number}.map"), frame="" if known else f"floor_{number}",
                         common_from_map=UP if known else None), localizer=fake) for number, fake in enumerate(fakes)])


def test_the_map_is_found_and_kept_while_it_works():
    fakes = FakeLocalizer(0, 0.3), FakeLocalizer(0, 0.7), FakeLocalizer(90, 0.6)
    localizer = several(*fakes)
    estimate = localizer.localize(IMAGE)
    assert (estimate.map_name, estimate.map_frame, localizer.present) == ("floor_2", "floor_2", "floor_2")
    assert "in map floor_2" in estimate.message
    for _ in range(CHECK_EVERY - 1):
        assert localizer.localize(IMAGE).accepted
    assert (len(fakes[0].calls), len(fakes[1].calls)) == (0, 1), "only the present map is asked"


def test_the_elevator_moved_the_robot():
    fakes = FakeLocalizer(90, 0.6), FakeLocalizer(0, 0.5), FakeLocalizer(0, 0.4)
    localizer = several(*fakes)
    assert localizer.localize(IMAGE).map_name == "floor_0"
    fakes[0].inliers, fakes[1].inliers, fakes[1].similarity = 0, 80, 0.9
    assert localizer.localize(IMAGE).map_name == "floor_1"
    fakes[1].inliers = 0
    rejected = localizer.localize(IMAGE)
    assert not rejected.accepted and "in map floor_1" in rejected.message


def test_floors_that_look_alike_are_ambiguous_unless_the_robot_was_on_one():
    fakes = FakeLocalizer(90), FakeLocalizer(80)
    localizer = several(*fakes)
    estimate = localizer.localize(IMAGE)
    assert estimate.status is Status.AMBIGUOUS_POSE and "floor_0 and floor_1" in estimate.message
    fakes[1].inliers = 0
    assert localizer.localize(IMAGE).map_name == "floor_0"
    fakes[1].inliers = 100
    names = [localizer.localize(IMAGE).map_name for _ in range(2 * CHECK_EVERY)]
    assert set(names) == {"floor_0"}
    fakes[1].inliers = 300
    names = [localizer.localize(IMAGE).map_name for _ in range(CHECK_EVERY + 1)]
    assert names[-1] == "floor_1", "another map explains the image far better"


def test_poses_and_covariances_are_in_the_common_frame_if_it_is_known():
    estimate = several(FakeLocalizer(90), known=True).localize(IMAGE)
    assert estimate.map_frame == "" and np.allclose(estimate.map_from_camera, UP)
    expected = UP[:3, :3] @ np.diag([1.0, 4, 9]) @ UP[:3, :3].T
    assert np.allclose(estimate.covariance[:3, :3], expected)


def test_folders_are_listed(tmp_path):
    with pytest.raises(UserError, match="neither maps.yaml nor maps"):
        list_maps(tmp_path)
    (tmp_path / "b.map").touch()
    (tmp_path / "a.map").touch()
    assert [(each.name, each.frame) for each in list_maps(tmp_path)] == [("a", "a"), ("b", "b")]
    index = tmp_path / "maps.yaml"
    index.write_text("maps:\n- {file: a.map, transform: [1, 2, 3, 0, 0, 0, 2]}\n"
                     "- {file: b.map, transform: [0, 0, 0, 0, 0, 1, 0]}\n")
    a, b = list_maps(tmp_path)
    assert a.frame == "" and np.allclose(a.common_from_map[:3, 3], (1, 2, 3)) and b.common_from_map[0, 0] == -1
    for text, says in (("maps: []", "no list"), ("maps: [a.map]", "not a mapping"), ("maps: [", "cannot be read"),
                       ("maps: [{file: a.map, transform: [1, 2]}]", "must be x y z"),
                       ("maps: [{file: a.map, transform: [0, 0, 0, 0, 0, 0, 0]}]", "must be x y z"),
                       ("maps: [{file: a.map}, {file: a.map}]", "twice"),
                       ("maps: [{file: a.map, transform: [0, 0, 0, 0, 0, 0, 1]}, {file: b.map}]", "for 1 of 2 maps")):
        index.write_text(text)
        with pytest.raises(UserError, match=says):
            list_maps(tmp_path)


def test_real_maps_of_two_floors(tmp_path):
    """Two different patterns; each image is localized on its floor, and one of neither is rejected."""
    ground, first, unknown = (two_walls.frames(two_walls.drive(16), seed=seed) for seed in (0, 10, 20))
    for name, recording in (("ground", ground), ("first", first)):
        build_map("ace_g", MappingOptions(device="cpu", trust_poses=True), recording[::2],
                  MappingBudget.start(300.0))[0].save(tmp_path / f"{name}.map")
    localizer = SeveralMapsLocalizer.load(tmp_path, device="cpu")
    for recording, name in ((ground, "ground"), (first, "first"), (ground, "ground")):
        for frame in recording[5:10:2]:
            estimate = localizer.localize(replace(frame, map_from_camera=None))
            if estimate.accepted:
                assert estimate.map_name == name
                assert pose_error(estimate.map_from_camera, frame.map_from_camera)[0] < 0.1
        assert localizer.present == name
    assert not any(localizer.localize(replace(frame, map_from_camera=None)).accepted for frame in unknown[5:10:2])
