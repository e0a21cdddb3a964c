# SPDX-License-Identifier: Apache-2.0
"""The predicted coverage of a map: which landmarks an image finds, the grid, the page and the message."""

from __future__ import annotations

import numpy as np
import pytest
from keyframe_world import CAMERA, LANDMARKS, World

from aceg_ros.cli import main
from aceg_ros.evaluation.coverage_page import describe_summary, summary
from aceg_ros.geometry import look_at
from aceg_ros.maps.coverage import LandmarkVisibility, chance_of_pose, compute_coverage, coverage_of_map, grid_axes
from aceg_ros.maps.scene_map import SceneMap


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_landmarks_are_found_from_where_they_were_seen(world):
    visibility = LandmarkVisibility(world.database())
    at_keyframe = visibility.expected_inliers(world.pose(0), CAMERA)
    seen = len(world.keypoints(world.pose(0))[0])
    assert 0.6 * seen < at_keyframe < 1.4 * seen
    beside = visibility.expected_inliers(world.pose(0, 1.5), CAMERA)
    far = visibility.expected_inliers(look_at((0, -30, 0), (0, 4, 0)), CAMERA)
    assert at_keyframe > beside > 10 * far
    wall = slice(0, LANDMARKS)
    assert np.median(visibility.probabilities(np.zeros(3))[wall]) > 0.8
    assert visibility.probabilities(np.array([0.0, 8.0, 0.0]))[wall].max() < 0.1        # from its other side
    assert float(chance_of_pose(at_keyframe)) > 0.6 > float(chance_of_pose(far))


def test_the_chance_rises_with_the_landmarks():
    chances = chance_of_pose(np.array([0.0, 20.0, 100.0, 400.0, 2000.0]))
    assert (np.diff(chances) > 0).all() and chances[0] < 0.01 and chances[-1] > 0.95


def test_the_grid_is_level_around_the_keyframes(world):
    database = world.database()
    grid = compute_coverage(database, CAMERA, resolution_m=0.5, headings=4)
    rows, columns, headings = grid.chances.shape
    assert headings == 4 and grid.extent == (pytest.approx(0.5 * columns), pytest.approx(0.5 * rows))
    assert grid.map_from_grid[:3, :3] == pytest.approx(np.eye(3), abs=1e-9)
    path = grid.to_grid(database.pose_array[:, :3, 3])
    assert (path[:, :2] > 0).all() and (path[:, 0] < grid.extent[0]).all() and (path[:, 1] < grid.extent[1]).all()
    middle = grid.chances[rows // 2, columns // 2]
    assert middle.min() > 0.3                                       # all four walls were seen from there
    assert compute_coverage(database, CAMERA, resolution_m=0.001).chances.size <= 8 * 2200


def test_up_is_an_axis_of_the_map_if_it_is_near_one():
    tilted = np.stack([look_at((0, 0, 0), (np.cos(a), np.sin(a), 0.2)) for a in np.arange(8.0)])
    assert grid_axes(tilted)[:, 2] == pytest.approx((0, 0, 1))
    lying = np.stack([look_at((0, 0, 0), (np.cos(a), 0.1, np.sin(a)), up=(0, -1, 0)) for a in np.arange(8.0)])
    axes = grid_axes(lying)
    assert axes[:, 2] == pytest.approx((0, -1, 0)) and np.linalg.det(axes) == pytest.approx(1)


def test_the_page_of_a_map(rendered_map, tmp_path, capsys):
    page = tmp_path / "coverage.html"
    assert main(["coverage", str(rendered_map), "-o", str(page), "--resolution", "1.0", "--headings", "4"]) == 0
    out = capsys.readouterr().out
    assert "Along the mapped path" in out and page.read_text().count("data:image/png") == 2
    assert main(["coverage", str(rendered_map), "--resolution", "-1"]) == 2
    scene_map = SceneMap.load(rendered_map)
    grid = coverage_of_map(scene_map, resolution_m=1.0, headings=4)
    found = summary(grid, scene_map)
    # The drive sweeps over one end of the room: there it works, and not in all directions.
    assert found["best_heading"] > 0.8 > found["mean"] and found["every_heading"] < 0.5
    assert f"{found['mean']:.0%}" in describe_summary(found, 4)
    messages = pytest.importorskip("aceg_ros.ros.common.messages", reason="needs ROS 2")
    from std_msgs.msg import Header

    message = messages.coverage_message(grid, Header(frame_id="map"))
    assert message.info.width * message.info.height == len(message.data) and max(message.data) <= 100
    assert message.data[0] == round(100 * grid.chances[0, 0].mean())
