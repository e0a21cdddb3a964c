# SPDX-License-Identifier: Apache-2.0
"""The demo: what it guarantees if something fails, and one small run of all of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from rosbags.highlevel import AnyReader

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets import open_scene, write_ace_scene
from aceg_ros.demo.processes import Processes
from aceg_ros.demo.report import project_cloud
from aceg_ros.demo.run import run_demo
from aceg_ros.errors import UserError
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.registry import make_localizer
from aceg_ros.synthetic.demo_room import demo_world, mapping_path

pytestmark = pytest.mark.ros

PLAYER = "aceg_ros.ros.scene_player"


def flat_scene(path, count: int = 6) -> None:
    camera = Camera(width=64, height=48, fx=60.0, fy=60.0, cx=31.5, cy=23.5)
    write_ace_scene(path, [Frame(image=np.full((48, 64, 3), 128, np.uint8), camera=camera,
                                 map_from_camera=np.eye(4))] * count)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_scene_without_query_is_rejected_before_anything_starts(tmp_path):
    flat_scene(tmp_path / "scene" / "mapping")
    with pytest.raises(UserError, match=r"has no query/"):
        run_demo(tmp_path / "out", tmp_path / "scene")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").touch()
    flat_scene(tmp_path / "scene" / "mapping")
    flat_scene(tmp_path / "scene" / "query")
    with pytest.raises(UserError, match="contains other files"):
        run_demo(tmp_path / "photos", tmp_path / "scene")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["holiday.jpg"]


def test_a_failure_keeps_the_old_results_and_leaves_nothing_behind(tmp_path, monkeypatch):
    """Images of one colour cannot be mapped: the failure comes after the drive was recorded."""
    flat_scene(tmp_path / "scene" / "mapping")
    flat_scene(tmp_path / "scene" / "query")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text("{}")
    started = []
    start = Processes.start
    monkeypatch.setattr(Processes, "start", lambda *args: started.append(start(*args)) or started[-1])
    with pytest.raises(UserError):
        run_demo(tmp_path / "out", tmp_path / "scene", budget_s=20.0)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scene"]
    assert len(started) == 3 and not any(alive(process.popen.pid) for process in started)


def test_what_a_failed_process_said_is_the_error(tmp_path):
    with Processes(tmp_path / "logs") as processes:
        player = processes.start(PLAYER, {"scene": "/absent"})
        with pytest.raises(UserError, match=r"scene_player failed: Scene /absent does not exist"):
            processes.wait_for_end(player)


def test_a_bystander_that_dies_is_noticed(tmp_path):
    flat_scene(tmp_path / "scene")
    with Processes(tmp_path / "logs") as processes:
        bystander = processes.start(PLAYER, {"scene": "/absent"})
        player = processes.start(PLAYER, {"scene": tmp_path / "scene", "wait_for_subscribers": 9})
        with pytest.raises(UserError, match="/absent"):
            processes.wait_for_end(player)
    assert not alive(bystander.popen.pid) and not alive(player.popen.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_killing_the_demo_ends_its_processes(tmp_path):
    flat_scene(tmp_path / "scene")
    script = ("import sys, time; from pathlib import Path; from aceg_ros.demo.processes import Processes\n"
              f"with Processes(Path('{tmp_path}/logs')) as processes:\n"
              f"    player = processes.start('{PLAYER}', {{'scene': '{tmp_path}/scene', 'wait_for_subscribers': 9}})\n"
              "    processes.wait_for_line(player, 'Playing')\n"
              "    print(player.popen.pid, flush=True)\n"
              "    time.sleep(60)\n")
    demo = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    lines = [demo.stdout.readline() for _ in range(2)]
    pid = int(lines[-1])
    assert alive(pid)
    demo.send_signal(signal.SIGKILL)
    demo.wait()
    deadline = time.monotonic() + 30
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    if alive(pid):
        os.kill(pid, signal.SIGKILL)
        pytest.fail("the player outlived the demo that started it")


def test_the_overlay_puts_map_points_on_their_pixels():
    """Points of a rendered image, projected with its exact pose, have the colours of the pixels they land on."""
    world = demo_world(Camera(width=160, height=120, fx=130.0, fy=131.0, cx=79.0, cy=61.0))
    pose = mapping_path(8, world.room)[3]
    frame = world.render_frame(pose)
    columns, rows = np.meshgrid(np.arange(160), np.arange(120))
    rays = np.stack([(columns - 79.0) / 130.0, (rows - 61.0) / 131.0, np.ones(rows.shape)], -1)
    points = ((rays * frame.depth_m[..., None]) @ pose[:3, :3].T + pose[:3, 3]).reshape(-1, 3)
    behind = pose[:3, 3] - 2.0 * pose[:3, 2]
    pixels, colours = project_cloud(np.vstack([points, behind]), np.vstack([frame.image.reshape(-1, 3), [0, 0, 0]]),
                                    pose, world.camera, cell_px=4)
    assert len(pixels) == 40 * 30
    at = np.round(pixels).astype(int)
    np.testing.assert_allclose(pixels, at, atol=1e-3)
    np.testing.assert_array_equal(colours, frame.image[at[:, 1], at[:, 0]])


def test_small_demo_from_drive_to_report(tmp_path):
    """The whole demo in little time and with few images; the node's results are the localizer's own."""
    out = tmp_path / "out"
    statistics = run_demo(out, budget_s=25.0, sim_frames=(24, 5))
    assert statistics["frames"] == 5
    assert statistics["answered"] + sum(statistics["unanswered"].values()) == 5
    assert "lost" not in statistics["unanswered"]
    assert statistics["localized"] + sum(statistics["refused"].values()) == statistics["answered"] > 0

    assert len(open_scene(out / "recording")) == 24
    assert statistics["mapping"]["frames"] == 24
    assert Image.open(out / "trajectory.png").size > (400, 400)
    assert (out / "report.txt").read_text()

    localizer = make_localizer(SceneMap.load(out / "scene.map"))
    with AnyReader([out / "bag"]) as reader:
        messages = [(connection.topic, reader.deserialize(data, connection.msgtype))
                    for connection, _, data in reader.messages()]

    def stamped(topic):
        return {(m.header.stamp.sec, m.header.stamp.nanosec): m for name, m in messages if name == topic}

    images, poses = stamped("/image"), stamped("/localizer/pose")
    statuses = {stamp: {pair.key: pair.value for pair in m.status[0].values}
                for stamp, m in stamped("/localizer/status").items() if stamp in images}
    answers = {stamp: values["status"] for stamp, values in statuses.items() if values["status"] != "replaced"}
    assert len(images) == 29 and len(answers) == statistics["answered"]
    camera = demo_world().camera
    for stamp, answer in answers.items():
        estimate = localizer.localize(Frame(image=images[stamp].data.reshape(480, 640, 3).copy(), camera=camera))
        assert answer == estimate.status.value
        assert (stamp in poses) == estimate.accepted
        if estimate.accepted:
            position = poses[stamp].pose.pose.position
            np.testing.assert_allclose([position.x, position.y, position.z], estimate.map_from_camera[:3, 3], atol=1e-6)
