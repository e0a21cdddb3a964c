# SPDX-License-Identifier: Apache-2.0
"""Mapping on the robot: while localizing, from TF and topics, with depth, and cut off at every stage."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rclpy
from nav_msgs.msg import Odometry
from rclpy.executors import SingleThreadedExecutor
from robot import Observer
from ros_graph import output, stop
from scene_camera import SceneCamera
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from aceg_ros.datasets import open_scene
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.ros.mapping.pose_source import TopicPoses

LOCALIZER = "aceg_ros.ros.localizer_node"


@pytest.fixture
def start(graph, rendered_scene, tmp_path):
    def start_node(source="pose", depth=False, **parameters):
        process = graph.start(LOCALIZER, mapping_pose_source=source, data_folder=str(tmp_path / "data"),
                              mapping_budget=60.0, mapping_use_depth=depth, **parameters)
        camera, seen = SceneCamera(graph, rendered_scene / "mapping", source, depth), Observer(graph)
        assert graph.spin_until(lambda: camera.connected() or process.poll() is not None), output(process)
        assert process.poll() is None, output(process)
        return process, camera, seen
    return start_node


@pytest.fixture
def recordings(tmp_path):
    return tmp_path / "data" / "recordings"


def map_files(tmp_path) -> list[Path]:
    """Everything that lies in the folder of maps, hidden files too."""
    return list((tmp_path / "data" / "maps").glob("*")) + list((tmp_path / "data" / "maps").glob(".*"))


def children(process) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()] + [
        int(pid) for task in Path(f"/proc/{process.pid}/task").iterdir()
        for pid in (task / "children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def test_mapping_while_localizing_and_the_switch_has_no_gap(start, graph, rendered_map, recordings, tmp_path):
    old_map = rendered_map.read_bytes()
    process, camera, seen = start(map_path=str(rendered_map))
    assert graph.spin_until(lambda: "Localizing in" in output(process))
    camera.show(5, 0.3)
    assert seen.poses, "localizing in the old map"
    seen.call("start_mapping")
    before = len(seen.poses)
    camera.show(48)
    assert len(seen.poses) > before + 10, "and while collecting"
    seen.call("stop_mapping")
    stopped_s, before = time.monotonic(), len(seen.poses)
    while seen.mapping[-1][2]["state"] != "idle" and time.monotonic() < stopped_s + 200:
        camera.show(1, 0.3)
    assert seen.mapping[-1][1].startswith("Mapped: localizing in "), seen.mapping[-1]
    assert len(seen.poses) > before + 10, "and while training"
    before = len(seen.poses)
    camera.show(10, 0.3)
    assert len(seen.poses) > before + 5, "and in the new map"
    assert "no_map" not in {status for _, status in seen.outcomes}
    assert rendered_map.read_bytes() == old_map, "the old map is still there"
    (path,) = (tmp_path / "data" / "maps").iterdir()
    assert str(path) in seen.mapping[-1][1] and len(SceneMap.load(path).cloud_xyz) > 500
    (recording,) = recordings.iterdir()
    assert str(path) in (recording / "mapped.json").read_text()
    keyframes = list(open_scene(recording))
    assert len(keyframes) > 20


def test_the_map_in_use_is_extended_by_what_was_localized_in_it(graph, rendered_scene, rendered_map, tmp_path):
    """No poses but those that the node estimates itself; the old map stays as a file."""
    old_map = rendered_map.read_bytes()
    process = graph.start(LOCALIZER, mapping_pose_source="localization", data_folder=str(tmp_path / "data"),
                          mapping_budget=60.0, mapping_extends=True, map_path=str(rendered_map),
                          mapping_pose_timeout=5.0)
    camera, seen = SceneCamera(graph, rendered_scene / "mapping", "pose", False), Observer(graph)
    assert graph.spin_until(lambda: "Localizing in" in output(process))
    assert graph.spin_until(lambda: camera.connected() or process.poll() is not None), output(process)
    camera.show(3, 0.3)
    assert f"to extend {rendered_map}" in seen.call("start_mapping")
    started_s = time.monotonic()
    while int(seen.mapping[-1][2].get("keyframes", 0)) < 8 and time.monotonic() < started_s + 120:
        camera.show(1, 0.5)         # slowly: images that are replaced by newer ones have no pose
    seen.call("stop_mapping")
    stopped_s = time.monotonic()
    while seen.mapping[-1][2]["state"] != "idle" and time.monotonic() < stopped_s + 200:
        camera.show(1, 0.3)
    assert seen.mapping[-1][1].startswith("Mapped: localizing in "), seen.mapping[-1]
    assert rendered_map.read_bytes() == old_map
    (path,) = (tmp_path / "data" / "maps").iterdir()
    (recording,) = (tmp_path / "data" / "recordings").iterdir()
    keyframes = list(open_scene(recording))
    assert SceneMap.load(path).statistics.frames == SceneMap.load(rendered_map).statistics.frames + len(keyframes)
    shown = [frame.map_from_camera for frame in open_scene(rendered_scene / "mapping")]
    assert all(min(np.abs(frame.map_from_camera - true).max() for true in shown) < 0.2 for frame in keyframes)


@pytest.mark.parametrize("source", ["tf", "odometry"])
def test_poses_from_tf_and_odometry_and_measured_depth(start, recordings, rendered_scene, source):
    """What is recorded is what was shown, in the frame of the camera."""
    _, camera, seen = start(source, depth=True)
    seen.call("start_mapping")
    camera.show(12, 0.25)
    assert str(recordings) in seen.call("cancel_mapping")
    (recording,) = recordings.iterdir()
    recorded, shown = list(open_scene(recording)), list(open_scene(rendered_scene / "mapping"))
    assert len(recorded) >= 8
    for frame in recorded:
        errors = [np.abs(frame.map_from_camera - true.map_from_camera).max() for true in shown]
        true = shown[int(np.argmin(errors))]
        assert min(errors) < 1e-4
        assert np.abs(frame.image.astype(int) - true.image).mean() < 6           # JPEG
        known = (frame.depth_m > 0) & (true.depth_m > 0)
        assert known.mean() > 0.9
        np.testing.assert_allclose(frame.depth_m[known], true.depth_m[known], atol=1e-3)


def test_poses_in_another_frame_than_the_map_are_told(monkeypatch):
    said: list[str] = []
    rclpy.init()
    try:
        node = rclpy.create_node("localizer")
        monkeypatch.setattr(node, "get_logger", lambda: SimpleNamespace(warning=said.append))
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        TopicPoses(node, None, "odometry", map_frame="/map", child_frame="")
        publisher = node.create_publisher(Odometry, "mapping_pose", 10)
        for frame in ("map", "/map", "odom", "odom", "map", ""):
            publisher.publish(Odometry(header=Header(frame_id=frame), child_frame_id="base_link"))
        deadline_s = time.monotonic() + 10.0
        while len(said) < 2 and time.monotonic() < deadline_s:
            executor.spin_once(timeout_sec=0.05)
        node.destroy_node()
    finally:
        rclpy.shutdown()
    assert len(said) == 2
    assert "/mapping_pose are in the frame 'odom', and map_frame is 'map'" in said[0]
    assert "without a frame_id" in said[1]


def test_every_image_can_be_a_keyframe(start):
    _, camera, seen = start(mapping_min_distance=0.0, mapping_min_interval=0.0, mapping_min_sharpness=0.0)
    seen.call("start_mapping")
    camera.show(12, 0.25)
    seen.call("cancel_mapping")
    assert "12 keyframes" in seen.mapping[-1][1], seen.mapping[-1]


def test_a_camera_that_only_turns_is_told_so(start):
    _, camera, seen = start()
    still = [frame.map_from_camera.copy() for frame in camera.frames]
    for frame, pose in zip(camera.frames, still, strict=True):
        pose[:3, 3] = still[0][:3, 3]
        frame.map_from_camera[:] = pose
    seen.call("start_mapping")
    camera.show(20)
    response = seen.graph.call(Trigger, "/localizer/stop_mapping")
    assert not response.success and "only rotated" in response.message
    assert seen.mapping[-1][2]["state"] == "collecting", "the drive goes on"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_cut_off_while_collecting_nothing_is_lost(start, graph, recordings, number):
    process, camera, seen = start()
    seen.call("start_mapping")
    camera.show(20)
    assert graph.spin_until(lambda: "keyframes" in seen.mapping[-1][2])
    code = stop(process, number)
    assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    (recording,) = recordings.iterdir()
    scene = open_scene(recording)
    frames = list(scene)
    assert len(frames) >= 10 and not scene.skipped
    process, _, _ = start()         # and the next one says what lies there
    assert graph.spin_until(lambda: "never mapped" in output(process))
    assert f"aceg map {recording}" in output(process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_cut_off_while_training_leaves_no_half_map_and_no_orphan(start, graph, recordings, tmp_path, number):
    process, camera, seen = start()
    seen.call("start_mapping")
    camera.show(30)
    seen.call("stop_mapping")
    assert graph.spin_until(lambda: any("progress" in values for _, _, values in seen.mapping), 60)
    trainings = children(process)
    assert trainings
    assert stop(process, number) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in trainings) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(is_running(pid) for pid in trainings)
    assert not map_files(tmp_path)
    (recording,) = recordings.iterdir()
    assert len(list(open_scene(recording))) >= 15


def test_a_cancelled_training_ends_at_once_and_mapping_can_begin_again(start, graph, tmp_path):
    process, camera, seen = start()
    seen.call("start_mapping")
    camera.show(30)
    seen.call("stop_mapping")
    response = graph.call(Trigger, "/localizer/start_mapping")
    assert not response.success and "being trained" in response.message
    assert graph.spin_until(lambda: any("progress" in values for _, _, values in seen.mapping), 60)
    assert "cancelled" in seen.call("cancel_mapping")
    assert graph.spin_until(lambda: seen.mapping[-1][2]["state"] == "idle", 5)
    assert not children(process) and not map_files(tmp_path)
    seen.call("start_mapping")


def test_a_folder_that_cannot_be_written_is_said(start, tmp_path):
    _, _, seen = start()
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "recordings").write_text("in the way")
    response = seen.graph.call(Trigger, "/localizer/start_mapping")
    assert not response.success and "cannot be made" in response.message


def test_fifty_maps_leave_no_memory_behind(start, rendered_map, tmp_path):
    copy = tmp_path / "copy.map"
    copy.write_bytes(rendered_map.read_bytes())
    process, _, seen = start(map_path=str(rendered_map))

    def megabytes() -> float:
        return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    sizes = []
    for index in range(50):
        assert seen.graph.set_parameter("localizer", "map_path", str(copy if index % 2 == 0 else rendered_map))[0]
        assert seen.call("load_map").startswith("Localizing in ")
        sizes.append(megabytes())
    print([round(size) for size in sizes])
    assert max(sizes[40:]) < max(sizes[5:15]) + 40, sizes
