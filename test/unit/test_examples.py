# SPDX-License-Identifier: Apache-2.0
"""The examples that are scripts, as somebody starts them, and the script that draws the README's image."""

from __future__ import annotations

import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from bag_writer import BASE_FROM_CAMERA, BagStyle, Messages, write_bag
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from aceg_ros.camera import Camera
from aceg_ros.datasets import load_image
from aceg_ros.geometry import invert, pose_from_quaternion
from aceg_ros.synthetic.demo_room import demo_world, mapping_path
from aceg_ros.visualization.overlay import INLIER

TYPES = get_typestore(Stores.ROS2_KILTED)
ARRAY = "diagnostic_msgs/msg/DiagnosticArray"


CAMERA = Camera(width=320, height=240, fx=262.0, fy=262.0, cx=159.5, cy=119.5)
# The second camera of a robot looks 40 degrees to the right of the first, and is 10 cm aside.
BASE_FROM_SIDE = BASE_FROM_CAMERA @ pose_from_quaternion((0.1, 0.0, 0.0), (0.0, np.sin(0.35), 0.0, np.cos(0.35)))


def run_example(repository: Path, *arguments: str) -> str:
    script = repository / "examples" / arguments[0]
    result = subprocess.run([sys.executable, str(script), *arguments[1:]], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def status_of(name: str, status: str, message: str) -> object:
    """A status message as the node publishes it."""
    types = TYPES.types
    stamp = types["builtin_interfaces/msg/Time"](sec=1, nanosec=0)
    pair = types["diagnostic_msgs/msg/KeyValue"](key="status", value=status)
    entry = types["diagnostic_msgs/msg/DiagnosticStatus"](level=0, name=name, message=message, hardware_id="",
                                                          values=[pair])
    return types[ARRAY](header=types["std_msgs/msg/Header"](stamp=stamp, frame_id=""), status=[entry])


def test_node_status_counts_images_by_their_status(repository, tmp_path):
    told = [("localizer: image", "accepted", "fine"), ("localizer: node", "x", "Localizing."),
            ("localizer: image", "bad_image", "dark"), ("localizer: image", "bad_image", "darker")]
    with Writer(tmp_path / "run", version=Writer.VERSION_LATEST, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/localizer/status", ARRAY, typestore=TYPES)
        for stamp, content in enumerate(told, 1):
            writer.write(connection, stamp, TYPES.serialize_cdr(status_of(*content), ARRAY))
    lines = run_example(repository, "node_status.py", str(tmp_path / "run")).splitlines()
    assert lines == ["2 bad_image, the newest: darker", "1 accepted, the newest: fine"]


def write_rig_bag(path: Path, poses: list[np.ndarray]) -> None:
    """A drive of a robot with two cameras in the demo's room; poses are those of the first camera."""
    world = demo_world(CAMERA)

    def side_camera(messages: Messages):
        other, first_ns = Messages(messages.typestore, BagStyle(camera="/side")), int(BagStyle().first_s) * 10**9
        yield "/tf_static", first_ns, other.transform(first_ns, "base_link", "side_cam", BASE_FROM_SIDE)
        for number, pose in enumerate(poses):
            image = world.render_frame(pose @ invert(BASE_FROM_CAMERA) @ BASE_FROM_SIDE).image
            stamp_ns = first_ns + number * 10**8
            for topic, _, message in (other.camera_info(CAMERA, stamp_ns), other.image(image, stamp_ns)):
                message.header.frame_id = "side_cam"
                yield topic, stamp_ns, message

    frames = [world.render_frame(pose, stamp_s=0.1 * number) for number, pose in enumerate(poses)]
    write_bag(path, frames, BagStyle(camera="/front", poses="tf", extra=side_camera))


@pytest.mark.slow
def test_a_robot_with_two_cameras_is_localized(repository, tmp_path):
    poses = mapping_path(60, demo_world(CAMERA).room)
    write_rig_bag(tmp_path / "mapping", poses[:40:2])
    write_rig_bag(tmp_path / "query", poses[5:25:8])
    told = run_example(repository, "rig.py", str(tmp_path / "mapping"), str(tmp_path / "query"), "map", "base_link",
                       "/front/image", "/side/image").splitlines()
    assert len(told) == 3
    assert all(float(re.search(r"base_link is ([0-9.]+) cm off; inliers: front [1-9]", line)[1]) < 10 for line in told)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pycolmap") is None, reason="needs pycolmap: pip install aceg_ros[colmap]")
def test_a_video_becomes_a_map(repository, tmp_path):
    world = demo_world(CAMERA)
    writer = cv2.VideoWriter(str(tmp_path / "walk.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (320, 240))
    for pose in mapping_path(160, world.room)[:40]:
        writer.write(world.render_frame(pose).image[..., ::-1])
    writer.release()
    told = run_example(repository, "video_to_map.py", *(str(tmp_path / name) for name in ("walk.mp4", "walk", "a.map")))
    assert "images have a pose" in told and (tmp_path / "a.map").stat().st_size > 100_000


@pytest.mark.slow
@pytest.mark.parametrize("where", [(), ("local",)])
def test_a_fleet_is_mapped_and_evaluated(repository, rendered_scene, tmp_path, where):
    if where and importlib.util.find_spec("ray") is None:
        pytest.skip("needs ray: pip install aceg_ros[ray]")
    for robot in ("robot_1", "robot_2"):
        (tmp_path / robot).mkdir()
        for drive in ("mapping", "query"):
            (tmp_path / robot / drive).symlink_to(rendered_scene / drive)
    (tmp_path / "notes").mkdir()
    told = run_example(repository, "fleet.py", str(tmp_path), *where)
    assert told.count(": done") == 2 and "notes" not in told
    again = run_example(repository, "fleet.py", str(tmp_path), *where)
    assert again.count(": done") == 0 and again == told[told.index("|"):]


@pytest.mark.slow
def test_the_readmes_image_can_be_drawn_again(repository, tmp_path):
    """Small, and from fewer images."""
    script = runpy.run_path(str(repository / "scripts" / "draw_map_image.py"))
    script["main"](tmp_path / "drawn.jpg", images=30, scale=0.5)
    drawn = load_image(tmp_path / "drawn.jpg")
    assert drawn.shape == (240, 640, 3)
    inlier = (np.abs(drawn.astype(int) - INLIER).max(axis=2) < 60).mean(axis=0)        # share of each column
    assert inlier[:320].mean() > 0.005 and inlier[320:].mean() > 0.001
