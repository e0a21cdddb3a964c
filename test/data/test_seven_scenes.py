# SPDX-License-Identifier: Apache-2.0
"""7-Scenes: sequences, splits, the cameras of colour and depth."""

import datasets_fixtures as write
import numpy as np
import pytest
from datasets_fixtures import assert_is_recording, make_recording

from aceg_ros.camera import Camera
from aceg_ros.datasets import open_scene
from aceg_ros.errors import UserError


def test_seven_scenes_sequence(tmp_path, recording):
    write.write_seven_scenes(tmp_path / "seq-03", recording)
    scene = open_scene(tmp_path / "seq-03")
    frames = assert_is_recording(scene, recording)
    assert scene.format == "7-Scenes"
    full = Camera(width=640, height=480, fx=525.0, fy=525.0, cx=320.0, cy=240.0)
    assert {frame.camera for frame in frames} == {full.resized(64, 48)}


def test_seven_scenes_depth_is_moved_to_the_colour_camera(tmp_path):
    recording = make_recording(1, 640, 480)
    write.write_seven_scenes(tmp_path, recording)
    depth_m = open_scene(tmp_path).frame(0).depth_m
    # Colour pixel 320 + 105 looks along x/z = 105/525 = 0.2, which the depth camera has at pixel 320 + 0.2 * 585 = 437.
    assert depth_m[240 + 35, 320 + 105] == pytest.approx(recording.depths_mm[0, 240 + 39, 320 + 117] / 1000)
    assert depth_m[240, 320] == pytest.approx(recording.depths_mm[0, 240, 320] / 1000)
    assert depth_m[0, 0] == 0            # the depth camera, of longer focal length, does not see the corner


@pytest.mark.parametrize(("name", "focal", "expected"), [
    ("camera-intrinsics.txt", 530.0, 530.0), ("color-intrinsics.txt", 585.0, 585.0),
    ("camera-intrinsics.txt", 585.0, 52.5),         # the depth camera's file; colour at a tenth of 640x480
])
def test_seven_scenes_calibration_file(tmp_path, recording, name, focal, expected):
    write.write_seven_scenes(tmp_path, recording)
    write.save_matrix(tmp_path / name, np.array([[focal, 0, 30], [0, focal, 20], [0, 0, 1]]))
    assert open_scene(tmp_path).frame(0).camera.fx == pytest.approx(expected)


def test_seven_scenes_splits(tmp_path):
    parts = {number: make_recording(2, seed=number) for number in (1, 2, 10)}
    for number, part in parts.items():
        write.write_seven_scenes(tmp_path / f"seq-{number:02d}", part)

    def sequences(path):
        return [frame.name.split("/")[0] for frame in open_scene(path)]

    assert sequences(tmp_path) == 2 * ["seq-01"] + 2 * ["seq-02"] + 2 * ["seq-10"]
    (tmp_path / "TrainSplit.txt").write_text("sequence1\nsequence10\n")
    (tmp_path / "TestSplit.txt").write_text("sequence2\n")
    assert sequences(tmp_path) == 2 * ["seq-01"] + 2 * ["seq-10"]
    assert sequences(tmp_path / "TestSplit.txt") == 2 * ["seq-02"]
    (tmp_path / "TrainSplit.txt").write_text("sequence5\n")
    with pytest.raises(UserError, match="seq-05"):
        open_scene(tmp_path)


def test_seven_scenes_broken_pose_is_named(tmp_path, recording):
    write.write_seven_scenes(tmp_path, recording)
    (tmp_path / "frame-000003.pose.txt").write_text("-1.#IND " * 16)
    scene = open_scene(tmp_path)
    assert len(list(scene)) == 11 and "frame-000003.pose.txt" in scene.skipped[0].reason
