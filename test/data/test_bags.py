# SPDX-License-Identifier: Apache-2.0
"""Bags as scenes: every storage, pose source and image kind gives the frames that were written."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from bag_writer import BagStyle, write_bag
from rosbags.typesys import Stores

from aceg_ros.camera import Camera, Frame
from aceg_ros.cli import main
from aceg_ros.datasets import BagOptions, open_scene
from aceg_ros.errors import UserError
from aceg_ros.geometry import look_at

CAMERA = Camera(width=96, height=64, fx=90.0, fy=91.0, cx=47.0, cy=31.0)
TF, ODOMETRY = BagOptions(tf=("map", "")), BagOptions(pose_topic="/truth")


def drive(count=12) -> list[Frame]:
    rng = np.random.default_rng(0)
    frames = []
    for index in range(count):
        position = np.array([0.1 * index, 0.02 * index, 1.5])
        frames.append(Frame(image=rng.integers(0, 255, (64, 96, 3), np.uint8), camera=CAMERA, stamp_s=0.1 * index,
                            map_from_camera=look_at(position, position + np.array([1.0, 0.1 * index, -0.1]))))
    return frames


def bag_name(style: BagStyle) -> str:
    return "drive.bag" if style.storage == "ros1" else "drive"


@pytest.mark.parametrize(("style", "options"), [
    (BagStyle(), None), (BagStyle(storage="sqlite3"), None), (BagStyle(storage="ros1"), None),
    (BagStyle(store=Stores.ROS2_JAZZY), None),
    (BagStyle(store=Stores.ROS2_LYRICAL), None), (BagStyle(store=Stores.ROS2_KILTED, storage="sqlite3"), None),
    (BagStyle(compressed=True), None), (BagStyle(storage="ros1", compressed=True), None),
    (BagStyle(encoding="bgr8"), None), (BagStyle(poses="pose_with_covariance"), None),
    (BagStyle(poses="odometry"), ODOMETRY), (BagStyle(poses="tf"), TF), (BagStyle(poses="tf", storage="ros1"), TF),
    (BagStyle(poses="tf"), BagOptions(tf=("/map", "/cam")))])
def test_every_kind_gives_the_frames_that_were_written(tmp_path, style, options):
    frames = drive()
    scene = open_scene(write_bag(tmp_path / bag_name(style), frames, style), bag_options=options)
    assert scene.format == "ROS bag" and len(scene) == len(frames)
    for _ in range(2):          # it can be played again
        read = list(scene)
        assert len(read) == len(frames) and not scene.skipped
        for frame, true in zip(read, frames, strict=True):
            np.testing.assert_array_equal(frame.image, true.image)
            np.testing.assert_allclose(frame.map_from_camera, true.map_from_camera, atol=1e-9)
            assert frame.camera == CAMERA
            assert frame.stamp_s == pytest.approx(style.first_s + true.stamp_s, abs=1e-6)


@pytest.mark.parametrize("poses", ["pose", "tf"])
def test_poses_are_interpolated_at_the_stamp_and_never_invented(tmp_path, poses):
    frames = drive()
    bag = write_bag(tmp_path / "bag", frames, BagStyle(poses=poses, pose_offset_s=0.03))
    scene = open_scene(bag, bag_options=TF if poses == "tf" else None)
    read = list(scene)
    assert len(scene) == 12 and len(read) == 11, "before the first pose there is none"
    (skipped,) = scene.skipped
    assert "no pose around its stamp" in skipped.reason or "not connected" in skipped.reason
    for frame, before, after in zip(read, frames[:-1], frames[1:], strict=True):
        expected = 0.3 * before.map_from_camera[:3, 3] + 0.7 * after.map_from_camera[:3, 3]
        np.testing.assert_allclose(frame.map_from_camera[:3, 3], expected, atol=2e-3)


def test_the_first_message_of_a_bag_may_be_an_image(tmp_path):
    """At times since 1970, doubles are 256 ns apart: none of these beginnings may round the first image away."""
    for index in range(8):
        style = BagStyle(first_s=1_700_000_000.0 + index, image_first=True)
        frames = [replace(frame, stamp_s=frame.stamp_s + 1e-9 * (37 * index + 11)) for frame in drive(3)]
        bag = write_bag(tmp_path / str(index), frames, style)
        assert len(open_scene(bag)) == 3


def test_a_bag_without_poses_can_be_played(tmp_path):
    bag = write_bag(tmp_path / "bag", [replace(frame, map_from_camera=None) for frame in drive()])
    frames = list(open_scene(bag, bag_options=BagOptions(posed=False)))
    assert len(frames) == 12 and all(frame.map_from_camera is None for frame in frames)


def test_a_bag_with_a_hole_in_it_is_one_sentence(tmp_path):
    bag = write_bag(tmp_path / "bag", drive())
    file = next(path for path in bag.iterdir() if path.suffix == ".mcap")
    content = bytearray(file.read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(40):
        broken, start = bytearray(content), int(rng.integers(8, len(content) - 3000))
        broken[start:start + 3000] = rng.bytes(3000)
        file.write_bytes(broken)
        try:
            assert len(list(open_scene(bag))) <= 12
        except UserError as error:
            assert str(error).endswith(".")


def test_a_gap_in_the_poses_is_not_bridged(tmp_path):
    frames = [replace(frame, stamp_s=frame.stamp_s + (5.0 if index > 5 else 0.0)) for index, frame in
              enumerate(drive())]
    frames.insert(6, replace(frames[5], stamp_s=2.5, map_from_camera=None))
    scene = open_scene(write_bag(tmp_path / "bag", frames))
    assert len(list(scene)) == 12 and len(scene.skipped) == 1


def test_times_and_every_nth_frame(tmp_path):
    bag = write_bag(tmp_path / "bag", drive())
    stamps = [frame.stamp_s - 1.7e9 for frame in open_scene(bag, 2, BagOptions(start_s=0.25, end_s=0.95))]
    assert stamps == pytest.approx([0.3, 0.5, 0.7, 0.9], abs=1e-6)


@pytest.mark.parametrize(("options", "word"), [
    (BagOptions(image="/nothing"), "/camera/image"), (BagOptions(image="/truth"), "PoseStamped"),
    (BagOptions(camera_info="/tf_static"), "TFMessage"), (BagOptions(pose_topic="/camera/image"), "Image"),
    (BagOptions(start_s=100.0), "lists no frames")])
def test_wrong_names_are_answered_with_the_right_ones(tmp_path, options, word):
    bag = write_bag(tmp_path / "bag", drive())
    with pytest.raises(UserError, match=word):
        open_scene(bag, bag_options=options)


def test_what_is_missing_is_said(tmp_path):
    without_poses = write_bag(tmp_path / "bag", [replace(frame, map_from_camera=None) for frame in drive()])
    with pytest.raises(UserError, match="by the option pose_topic"):
        open_scene(without_poses)
    unknown_frame = open_scene(write_bag(tmp_path / "tf", drive(), BagStyle(poses="tf")),
                               bag_options=BagOptions(tf=("world", "")))
    with pytest.raises(UserError, match="'world'"):
        list(unknown_frame)
    with pytest.raises(UserError, match="not a ROS bag"):
        (tmp_path / "colmap").mkdir()
        (tmp_path / "colmap" / "transforms.json").write_text('{"frames": [{}]}')
        open_scene(tmp_path / "colmap", bag_options=TF)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3", "ros1"])
def test_damaged_bags_are_one_sentence(tmp_path, storage):
    bag = write_bag(tmp_path / bag_name(BagStyle(storage)), drive(), BagStyle(storage))
    file = bag if bag.is_file() else next(p for p in bag.iterdir() if p.suffix in (".mcap", ".db3"))
    for length in (0, 10, file.stat().st_size // 2):
        copy = tmp_path / f"{length}_{bag.name}"
        shutil.copytree(bag, copy) if bag.is_dir() else shutil.copy(bag, copy)
        target = copy / file.name if copy.is_dir() else copy
        target.write_bytes(file.read_bytes()[:length])
        try:
            frames = list(open_scene(copy))
        except UserError as error:
            assert str(copy) in str(error) or "usable" in str(error)
        else:
            assert len(frames) < 12


def test_localization_in_a_bag_is_that_of_the_folder(rendered_map, rendered_scene, tmp_path):
    """Raw and compressed (PNG), from the command line: the same statistics to the last digit."""
    import json
    frames = list(open_scene(rendered_scene / "query"))
    assert main(["evaluate", str(rendered_map), str(rendered_scene / "query"), "--json", str(tmp_path / "a.json")]) == 0
    expected = json.loads((tmp_path / "a.json").read_text())
    for style in (BagStyle(), BagStyle(compressed=True, storage="sqlite3", poses="tf")):
        bag = write_bag(tmp_path / f"bag_{style.storage}", frames, style)
        options = ["--tf", "map", "cam"] if style.poses == "tf" else []
        assert main(["evaluate", str(rendered_map), str(bag), "--json", str(tmp_path / "b.json"), *options]) == 0
        statistics = json.loads((tmp_path / "b.json").read_text())
        for key in ("frames", "localized", "refused", "recall"):
            assert statistics[key] == expected[key]
        assert statistics["median_translation_m"] == pytest.approx(expected["median_translation_m"], rel=1e-6)


@pytest.mark.slow
def test_a_map_from_a_bag(rendered_scene, tmp_path, capsys):
    frames = list(open_scene(rendered_scene / "mapping"))
    bag = write_bag(tmp_path / "bag", frames, BagStyle(poses="odometry"))
    assert main(["map", str(bag), "-o", str(tmp_path / "a.map"), "--pose-topic", "/truth"]) == 0
    assert main(["evaluate", str(tmp_path / "a.map"), str(rendered_scene / "query")]) == 0
    assert '"localized": 12' in capsys.readouterr().out
