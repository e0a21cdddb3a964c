# SPDX-License-Identifier: Apache-2.0
"""Poses from TF and from topics: of the right robot, and the true reason where there is none."""

from dataclasses import replace

import numpy as np
import pytest
from bag_writer import BASE_FROM_CAMERA, BagStyle, write_bag

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets import BagOptions, open_scene
from aceg_ros.datasets.bag.transform_tree import TransformTree
from aceg_ros.errors import UserError

CAMERA = Camera(width=32, height=24, fx=30.0, fy=30.0, cx=15.5, cy=11.5)
TF = BagOptions(tf=("map", ""))
START_NS = 1_700_000_000 * 10**9


def pose(x: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = x, 0.0, 1.0
    return matrix


FRAMES = [Frame(image=np.full((24, 32, 3), 20 * index, np.uint8), camera=CAMERA, stamp_s=0.1 * index,
                map_from_camera=pose(index)) for index in range(6)]


def other_robot(tf: str, static: bool = True):
    """A second robot with frames of the same names, which is somewhere else."""
    def messages(writer):
        for index in range(6):
            stamp_ns = START_NS + index * 10**8
            yield tf, stamp_ns, writer.transform(stamp_ns, "map", "base_link", pose(100.0))
        if static:
            yield f"{tf}_static", START_NS, writer.transform(START_NS, "base_link", "cam", BASE_FROM_CAMERA)
    return messages


def positions(bag, options=TF) -> list[float]:
    return [float(frame.map_from_camera[0, 3]) for frame in open_scene(bag, bag_options=options)]


OWN = [pytest.approx(float(index)) for index in range(6)]


@pytest.mark.parametrize(("camera", "own", "other"), [
    ("/robot1/camera", "/robot1/tf", "/robot2/tf"), ("/robot1/camera", "/robot1/tf", "/tf"),
    ("/robot1/camera", "/tf", "/robot2/tf"), ("/camera", "/tf", "/robot1/tf"), ("/a/b/camera", "/a/tf", "/b/tf")])
def test_the_transforms_are_those_of_the_cameras_namespace(tmp_path, camera, own, other):
    style = BagStyle(poses="tf", camera=camera, tf=own, extra=other_robot(other))
    assert positions(write_bag(tmp_path / "bag", FRAMES, style)) == OWN


def test_transforms_that_nothing_chooses_are_asked_for(tmp_path):
    bag = write_bag(tmp_path / "bag", FRAMES, BagStyle(poses="tf", tf="/robot1/tf", extra=other_robot("/robot2/tf")))
    with pytest.raises(UserError, match="tf_topic.*/robot1/tf, /robot2/tf"):
        open_scene(bag, bag_options=TF)
    assert positions(bag, replace(TF, tf_topic="/robot1/tf")) == OWN
    assert positions(bag, replace(TF, tf_topic="/robot2/tf"))[0] > 90
    with pytest.raises(UserError, match="no topic /robot3/tf"):
        open_scene(bag, bag_options=replace(TF, tf_topic="/robot3/tf"))
    with pytest.raises(UserError, match="is of type sensor_msgs"):
        open_scene(bag, bag_options=replace(TF, tf_topic="/camera/image"))


def test_transforms_of_two_robots_are_never_mixed(tmp_path):
    """The static ones of another robot do not stand in; those around the namespace do. Without TF, nothing is asked."""
    def static(topic):
        return lambda writer: [(topic, START_NS, writer.transform(START_NS, "base_link", "cam", BASE_FROM_CAMERA))]

    moving = other_robot("/robot1/tf", static=False)
    apart = BagStyle(camera="/robot1/camera", tf="/x/tf", extra=lambda w: [*moving(w), *static("/robot2/tf_static")(w)])
    scene = open_scene(write_bag(tmp_path / "apart", FRAMES, apart), bag_options=TF)
    with pytest.raises(UserError, match="'cam'.*transforms of /robot1/tf, not .* /robot2/tf_static, /x/tf_static"):
        list(scene)
    around = BagStyle(camera="/robot1/camera", tf="/x/tf", extra=lambda w: [*moving(w), *static("/tf_static")(w)])
    assert positions(write_bag(tmp_path / "around", FRAMES, around))[0] > 90
    unneeded = BagStyle(tf="/robot1/tf", extra=other_robot("/robot2/tf"))
    assert positions(write_bag(tmp_path / "unneeded", FRAMES, unneeded), None) == OWN


@pytest.mark.parametrize("poses", ["pose", "tf"])
def test_a_gap_is_told_with_when_and_how_long(tmp_path, poses):
    frames = [replace(frame, stamp_s=frame.stamp_s + (5.0 if index > 2 else 0.0)) for index, frame in enumerate(FRAMES)]
    frames.insert(3, replace(frames[2], stamp_s=2.5, map_from_camera=None))
    frames += [replace(frames[0], stamp_s=9.0, map_from_camera=None)]
    bag = write_bag(tmp_path / "bag", frames, BagStyle(poses=poses))
    scene = open_scene(bag, bag_options=TF if poses == "tf" else None)
    assert len(list(scene)) == 6
    gap, late = (skipped.reason for skipped in scene.skipped)
    assert "a gap of 5.100 s, from 1700000000.200 to 1700000005.300 s" in gap
    assert "the last is 3.500 s earlier" in late
    if poses == "tf":
        assert "not connected at 1700000002.500 s: of the transforms of 'base_link' in 'map'" in gap


def test_images_without_stamps_get_no_pose(tmp_path):
    """Also where poses have a stamp of zero too, which would give all images the same one."""
    zero = lambda writer: [("/truth", START_NS, replace_stamp(writer.pose_topic(0, pose(3.0))[2]))]  # noqa: E731
    for name, extra in (("images", lambda writer: ()), ("all", zero)):
        bag = write_bag(tmp_path / name, FRAMES, BagStyle(stamped=False, extra=extra))
        with pytest.raises(UserError, match="stamps of all images are zero"):
            list(open_scene(bag))
        assert len(list(open_scene(bag, bag_options=BagOptions(posed=False)))) == 6


def replace_stamp(message):
    message.header.stamp.sec = message.header.stamp.nanosec = 0
    return message


def test_a_simulation_may_begin_at_zero(tmp_path):
    assert positions(write_bag(tmp_path / "bag", FRAMES, BagStyle(first_s=0.0, poses="tf"))) == OWN


def test_frames_that_are_not_connected_are_named_with_what_they_are_connected_to():
    tree = TransformTree()
    tree.add("odom", "base_link", 0, np.eye(4), static=True)
    tree.add("base_link", "cam", 0, np.eye(4), static=True)
    tree.add("map", "marker", 0, np.eye(4), static=True)
    with pytest.raises(UserError, match="not connected .*'cam' is connected to 'base_link', 'odom'.* 'map' is connected"
                                        " to no parent"):
        tree.lookup("map", "cam", 5)
    with pytest.raises(UserError, match="names the frame 'camera': the frames are 'base_link', 'cam', 'map'"):
        tree.lookup("map", "camera", 5)


def test_two_parents_and_transforms_without_stamps_are_named():
    tree = TransformTree()
    tree.add("map", "cam", 0, np.eye(4))
    with pytest.raises(UserError, match="'cam' in 'map', all have a stamp of zero"):
        tree.lookup("map", "cam", 5 * 10**9)
    tree.add("map", "cam", 4 * 10**9, np.eye(4))
    tree.add("odom", "cam", 5 * 10**9, np.eye(4))
    with pytest.raises(UserError, match="two parents, 'map', 'odom'"):
        tree.lookup("map", "cam", 4_500_000_000)
    assert "0.500 s" not in tree.missing("cam", 4_500_000_000)
