# SPDX-License-Identifier: Apache-2.0
"""Rigs of cameras in bags: images of one moment, poses of the base, and where the cameras are mounted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bag_writer import BagStyle, Messages, write_bag
from scipy.spatial.transform import Rotation

from aceg_ros.camera import Camera, Frame
from aceg_ros.cli import main
from aceg_ros.datasets.bag.options import BagOptions
from aceg_ros.datasets.bag.rig import RigOptions, camera_names, open_rig
from aceg_ros.errors import UserError
from aceg_ros.geometry import look_at
from aceg_ros.synthetic.demo_room import demo_world, query_path
from aceg_ros.utils.image_sets import ImageSynchronizer

CAMERA = Camera(width=64, height=48, fx=50.0, fy=50.0, cx=31.5, cy=23.5)
BASE_FROM_FRONT = np.array([[0.0, 0, 1, 0.1], [-1, 0, 0, 0], [0, -1, 0, 0.3], [0, 0, 0, 1]])
BASE_FROM_REAR = np.array([[0.0, 0, -1, -0.2], [1, 0, 0, 0], [0, -1, 0, 0.3], [0, 0, 0, 1]])
TOPICS = {"front": "/front/image", "rear": "/rear/image"}
NS = 10**9


def frames(count: int = 4) -> list[Frame]:
    return [Frame(image=np.full((48, 64, 3), 40 * number, np.uint8), camera=CAMERA, stamp_s=0.5 * number,
                  map_from_camera=look_at((0.1 * number, 0.0, 1.0), (3.0, 0.2, 1.0)), name=str(number))
            for number in range(count)]


def rear(lag_s: float = 0.004, missing: tuple[int, ...] = ()):
    """The second camera, whose images come a little later."""
    def extra(messages):
        other = Messages(messages.typestore, BagStyle(camera="/rear"))
        first_ns = int(BagStyle().first_s) * NS
        yield "/tf_static", first_ns, other.transform(first_ns, "base_link", "rear_cam", BASE_FROM_REAR)
        for number, frame in enumerate(frames()):
            stamp_ns = first_ns + round((frame.stamp_s + lag_s) * NS)
            if number in missing:
                continue
            for topic, _, message in (other.camera_info(CAMERA, stamp_ns), other.image(frame.image + 1, stamp_ns)):
                message.header.frame_id = "rear_cam"
                yield topic, stamp_ns, message
    return extra


@pytest.mark.parametrize(("poses", "options"), [("tf", BagOptions(tf=("map", ""))),
                                                ("odometry", BagOptions(pose_topic="/truth"))])
def test_a_rig_is_read_with_the_poses_of_its_base(tmp_path, poses, options):
    bag = write_bag(tmp_path / "rig", frames(), BagStyle(camera="/front", poses=poses, extra=rear()))
    *moments, last = open_rig(bag, RigOptions(topics=TOPICS, base="base_link"), bag_options=options)
    assert len(moments) == 3 and list(last.frames) == ["front"]     # no pose is known for the last image of the rear
    for number, moment in enumerate(moments):
        assert list(moment.frames) == ["front", "rear"]
        front = frames()[number].map_from_camera
        assert moment.map_from_rig @ BASE_FROM_FRONT == pytest.approx(front, abs=1e-6)
        assert moment.rig.rig_from_camera["rear"] == pytest.approx(BASE_FROM_REAR, abs=1e-6)
        posed = {frame.name.split("_")[1]: frame.map_from_camera for frame in moment.posed_frames()}
        assert posed["front"] == pytest.approx(front, abs=1e-6)
        assert int(moment.frames["rear"].image[0, 0, 0]) == 40 * number + 1


def test_images_that_are_missing_or_too_late_are_left_out(tmp_path):
    bag = write_bag(tmp_path / "rig", frames(), BagStyle(camera="/front", poses="tf", extra=rear(missing=(1,))))
    rig = RigOptions(topics=TOPICS, base="base_link", tolerance_s=0.01)
    scene = open_rig(bag, rig, bag_options=BagOptions(tf=("map", "")))
    assert [sorted(moment.frames) for moment in scene] == [["front", "rear"], ["front"], ["front", "rear"], ["front"]]
    assert len(scene.skipped) == 1 and "rear" in scene.skipped[0].name
    assert len(list(scene.images())) == 6
    late = open_rig(write_bag(tmp_path / "late", frames(), BagStyle(camera="/front", poses="tf", extra=rear(0.1))),
                    rig, bag_options=BagOptions(tf=("map", "")))
    assert all(len(moment.frames) == 1 for moment in late)


def test_a_rig_needs_a_bag_and_its_frame(tmp_path):
    with pytest.raises(UserError, match="not a ROS bag"):
        open_rig(tmp_path, RigOptions(topics=TOPICS, base="base_link"))
    bag = write_bag(tmp_path / "rig", frames(), BagStyle(camera="/front", poses="tf", extra=rear()))
    scene = open_rig(bag, RigOptions(topics=TOPICS, base="chassis"), bag_options=BagOptions(tf=("map", "")))
    with pytest.raises(UserError, match="chassis"):
        list(scene)


def test_cameras_are_named_by_what_their_topics_do_not_share():
    assert camera_names(["/front/image", "/rear/image"]) == TOPICS
    assert list(camera_names(["/robot/cam_a/rgb/image_raw", "/robot/cam_b/rgb/image_raw"])) == ["cam_a", "cam_b"]
    assert list(camera_names(["/front/image"])) == ["front"]
    assert list(camera_names(["/image", "/front/image"])) == ["/image", "/front/image"]
    with pytest.raises(UserError, match="twice"):
        camera_names(["/image", "/image"])


def test_sets_end_when_they_are_complete_or_too_old():
    synchronizer: ImageSynchronizer[int] = ImageSynchronizer(["a", "b", "c"], 10)
    assert synchronizer.add("a", 100, 1) == [] and synchronizer.add("c", 109, 3) == []
    complete = synchronizer.add("b", 95, 2)
    assert [(one.stamp_ns, one.images) for one in complete] == [(100, {"a": 1, "b": 2, "c": 3})]
    assert synchronizer.add("a", 200, 4) == []
    ended = synchronizer.add("a", 300, 5)
    assert [one.images for one in ended] == [{"a": 4}]
    assert synchronizer.add("b", 205, 6) and not synchronizer.add("c", 302, 7)       # b came after its set had ended
    assert [one.images for one in synchronizer.flush()] == [{"a": 5, "c": 7}]


def test_evaluate_and_map_read_rigs(rendered_map, tmp_path, capsys):
    world = demo_world()
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("y", 25, degrees=True).as_matrix()
    poses = query_path(6, world.room)[:3]
    ahead = [world.render_frame(pose, stamp_s=0.5 * number, name=str(number)) for number, pose in enumerate(poses)]

    def aside(messages):
        other = Messages(messages.typestore, BagStyle(camera="/side"))
        first_ns = int(BagStyle().first_s) * NS
        yield "/tf_static", first_ns, other.transform(first_ns, "cam", "side_cam", turned)
        for frame in ahead:
            stamp_ns = first_ns + round(frame.stamp_s * NS)
            seen = world.render_frame(frame.map_from_camera @ turned)
            for topic, _, message in (other.camera_info(seen.camera, stamp_ns), other.image(seen.image, stamp_ns)):
                message.header.frame_id = "side_cam"
                yield topic, stamp_ns, message

    bag = write_bag(tmp_path / "rig", ahead, BagStyle(camera="/ahead", poses="tf", extra=aside))
    rig = ["--cameras", "/ahead/image", "/side/image", "--base", "base_link", "--tf", "map", ""]
    assert main(["evaluate", str(rendered_map), str(bag), *rig, "--report", str(tmp_path / "report")]) == 0
    statistics = json.loads(capsys.readouterr().out)
    assert statistics["frames"] == statistics["localized"] == 3 and statistics["median_translation_m"] < 0.02
    assert set(statistics["cameras"]) == {"ahead", "side"}
    assert all(camera["images"] == 3 and camera["median_inliers"] > 50 for camera in statistics["cameras"].values())
    assert (tmp_path / "report" / "report.html").exists()
    assert main(["map", str(bag), "-o", str(tmp_path / "rig.map"), *rig, "--budget", "60"]) == 0
    assert "made from 6 images" in capsys.readouterr().out
    assert main(["evaluate", str(rendered_map), str(bag), *rig, "--image", "/ahead/image"]) != 0
    assert "--image" in capsys.readouterr().err


def test_a_camera_that_has_failed_is_not_waited_for():
    synchronizer: ImageSynchronizer[int] = ImageSynchronizer(["a", "b"], 10, patient=False)
    assert synchronizer.add("a", 100, 1) == []
    assert [one.images for one in synchronizer.add("a", 200, 2)] == [{"a": 1}, {"a": 2}]        # a alone is enough now
    assert [one.images for one in synchronizer.add("a", 300, 3)] == [{"a": 3}]
    assert synchronizer.add("b", 305, 4) == []
    assert synchronizer.add("a", 400, 5) == []                                      # b is back, and waited for
    assert [one.images for one in synchronizer.add("b", 404, 6)] == [{"a": 5, "b": 6}]
    assert synchronizer.add("a", 100 - 2 * NS, 7) == [] and synchronizer.add("b", 101 - 2 * NS, 8)  # started again
