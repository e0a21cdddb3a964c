# SPDX-License-Identifier: Apache-2.0
"""Mapping on a robot with several cameras: what is recorded, and localizing with all of them in the new map."""

from __future__ import annotations

import numpy as np
import pytest
from rig_robot import RigRobot
from robot import Observer
from ros_graph import output
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from aceg_ros.camera import Frame
from aceg_ros.datasets import open_scene
from aceg_ros.geometry import pose_error
from aceg_ros.rig import Rig, RigFrame
from aceg_ros.ros.common.messages import pose_from_message
from aceg_ros.synthetic.rig_sessions import planar_pose, rig_sessions
from aceg_ros.synthetic.textures import make_atlas, paint_tiles

NAMES = ("front", "left", "rear", "right")
LOCALIZER = "aceg_ros.ros.localizer_node"


@pytest.fixture(scope="module")
def drive() -> list[RigFrame]:
    """A loop of a robot with four cameras in a rendered room."""
    return list(rig_sessions(3, make_atlas(paint_tiles(120, 3)), mapping=20, query=1).mapping())


@pytest.fixture
def start(graph, tmp_path):
    def start_node(moments, *, depth=False, **parameters):
        process = graph.start(
            LOCALIZER, data_folder=str(tmp_path / "data"), mapping_budget=60.0, mapping_use_depth=depth,
            base_frame="base_link", cameras=list(moments[0].rig.rig_from_camera), **parameters)
        robot, seen = RigRobot(graph, moments, depth), Observer(graph)
        assert graph.spin_until(lambda: robot.connected() or process.poll() is not None), output(process)
        assert process.poll() is None, output(process)
        graph.spin(1.0)             # TF
        return process, robot, seen
    return start_node


def test_a_rig_maps_and_localizes_in_its_map(start, graph, drive, tmp_path):
    process, robot, seen = start(drive, mapping_min_interval=0.5)
    sheets: list[Image] = []
    graph.node.create_subscription(Image, "/localizer/debug_image", sheets.append, 5)
    seen.call("start_mapping")
    robot.show(len(drive), 0.7)
    seen.call("stop_mapping")
    assert graph.spin_until(lambda: seen.mapping[-1][2]["state"] == "idle", 200)
    assert seen.mapping[-1][1].startswith("Mapped: localizing in "), seen.mapping[-1]

    (recording,) = (tmp_path / "data" / "recordings").iterdir()
    shown = [frame.map_from_camera for moment in drive for frame in moment.posed_frames()]
    recorded = [frame.map_from_camera for frame in open_scene(recording)]
    assert len(recorded) > 0.8 * len(shown), "all cameras have keyframes of each moment"
    assert all(min(np.abs(pose - true).max() for true in shown) < 1e-4 for pose in recorded)

    before = len(seen.poses)
    robot.show(5, 1.0)
    assert graph.spin_until(lambda: len(seen.poses) >= before + 3 and len(sheets) > 0, 60), output(process)
    true = [moment.map_from_rig for moment in drive[:5]]
    poses = [pose_from_message(message[-1].pose.pose) for message in list(seen.poses.values())[before:]]
    assert all(min(pose_error(pose, each)[0] for each in true) < 0.03 for pose in poses)
    height, width = drive[0].frames["front"].image.shape[:2]
    assert (sheets[-1].height, sheets[-1].width) == (2 * height, 2 * width)
    rgb = np.frombuffer(bytes(sheets[-1].data), np.uint8).reshape(2 * height, 2 * width, 3).astype(int)
    greens = [(rgb[y:y + height, x:x + width] == (60, 220, 90)).all(-1).sum() for y in (0, height) for x in (0, width)]
    assert sum(green > 100 for green in greens) >= 3, greens


def test_a_robot_with_several_cameras_that_only_stands_is_told_so(start, drive):
    """The cameras are apart, but each sees the same again and again."""
    _, robot, seen = start(drive[:1], mapping_min_distance=0.0, mapping_min_interval=0.0)
    seen.call("start_mapping")
    robot.show(6, 0.3)
    response = seen.graph.call(Trigger, "/localizer/stop_mapping")
    assert not response.success and "only rotated" in response.message
    seen.call("cancel_mapping")


def test_depth_belongs_to_the_camera_whose_topic_it_comes_on(start, drive, tmp_path):
    _, robot, seen = start(drive, depth=True)
    seen.call("start_mapping")
    robot.show(4, 1.2)              # each image without depth waits for it
    seen.call("cancel_mapping")
    (recording,) = (tmp_path / "data" / "recordings").iterdir()
    frames = list(open_scene(recording))
    fronts = [moment.frames["front"].map_from_camera for moment in drive]

    def is_front(frame: Frame) -> bool:
        return min(np.abs(frame.map_from_camera - front).max() for front in fronts) < 1e-4
    assert len(frames) >= 12 and sum(is_front(frame) for frame in frames) >= 3
    assert all((frame.depth_m is not None) == is_front(frame) for frame in frames)


def test_localized_poses_of_all_cameras_become_keyframes(start, graph, drive, rendered_map, rendered_scene, tmp_path):
    """Two cameras that see the same extend the map in use, with no poses but those that the node estimates."""
    frames = list(open_scene(rendered_scene / "mapping"))[:12]
    mount = planar_pose(0.3, 0.0, 0.0)
    rig = Rig(rig_from_camera={"front": mount, "second": mount})
    moments = [RigFrame(rig=rig, frames={"front": frame, "second": frame}, map_from_rig=np.eye(4)) for frame in frames]
    _, robot, seen = start(moments, mapping_pose_source="localization", map_path=str(rendered_map),
                           mapping_pose_timeout=5.0)
    assert graph.spin_until(lambda: bool(seen.node_statuses) and seen.is_active)
    seen.call("start_mapping")
    robot.show(8, 1.0)
    seen.call("cancel_mapping")
    (recording,) = (tmp_path / "data" / "recordings").iterdir()
    recorded = [frame.map_from_camera for frame in open_scene(recording)]
    assert len(recorded) >= 8 and len(recorded) % 2 == 0
    assert all(min(pose_error(pose, frame.map_from_camera)[0] for frame in frames) < 0.1 for pose in recorded)
