# SPDX-License-Identifier: Apache-2.0
"""TUM RGB-D: poses interpolated at the stamps, the nearest depth, damaged samples."""

import json

import datasets_fixtures as write
import numpy as np
import pytest
from datasets_fixtures import assert_is_recording, make_recording

from aceg_ros.datasets import open_scene
from aceg_ros.datasets.tum_rgbd import FREIBURG
from aceg_ros.errors import UserError
from aceg_ros.geometry import interpolate_poses


def test_tum(tmp_path):
    recording = make_recording(6, 640, 480)
    path = tmp_path / "rgbd_dataset_freiburg1_rpy"
    stamps_s = write.write_tum(path, recording)
    scene = open_scene(path)
    frames = assert_is_recording(scene, recording)
    assert scene.format == "TUM RGB-D"
    assert [frame.stamp_s for frame in frames] == stamps_s.tolist()
    assert {frame.camera for frame in frames} == {FREIBURG["1"]}
    np.testing.assert_allclose(frames[2].depth_m[5:], recording.depths_mm[2, 5:] / 5000, atol=1e-6)


def test_tum_poses_are_interpolated_and_gaps_rejected(tmp_path):
    recording = make_recording(4)
    path = tmp_path / "fr3_office"
    stamps_s = write.write_tum(path, recording)
    samples = [stamps_s[0] + 0.01, stamps_s[0] - 0.03,        # around image 0, out of order
               stamps_s[1] - 0.2, stamps_s[1] + 0.2,           # a gap around image 1
               stamps_s[2]]                                    # image 2 exactly; nothing after image 3
    (path / "groundtruth.txt").write_text("".join(map(write.tum_line, samples, [*recording.poses, recording.poses[0]])))
    (path / "camera.json").write_text(json.dumps(
        {"width": 64, "height": 48, "fx": 60, "fy": 60, "cx": 31, "cy": 23}))
    scene = open_scene(path)
    frames = list(scene)
    assert [frame.stamp_s for frame in frames] == [stamps_s[0], stamps_s[2]]
    expected = interpolate_poses(0.03, np.array([0.0, 0.04]), recording.poses[[1, 0]])
    np.testing.assert_allclose(frames[0].map_from_camera, expected, atol=1e-5)
    np.testing.assert_allclose(frames[1].map_from_camera, recording.poses[0], atol=1e-12)
    assert all("groundtruth.txt" in skipped.reason for skipped in scene.skipped) and len(scene.skipped) == 2


@pytest.mark.parametrize("values", ["nan 0 0 0 0 0 1", "0 0 0 0 0 0 0", "0 0 0 nan 0 0 1", "0 0 0 x 0 0 1", "0 0"])
def test_tum_damaged_sample_spoils_only_its_frame(tmp_path, values):
    recording = make_recording(4, 640, 480)
    path = tmp_path / "freiburg2"
    stamps_s = write.write_tum(path, recording)
    lines = (path / "groundtruth.txt").read_text().splitlines()
    lines[2] = f"{stamps_s[1]:.6f} {values}"
    (path / "groundtruth.txt").write_text("\n".join(lines))
    scene = open_scene(path)
    assert [frame.stamp_s for frame in scene] == stamps_s[[0, 2, 3]].tolist()
    assert str(path / "groundtruth.txt") in scene.skipped[0].reason


def test_tum_depth_is_the_nearest_in_time(tmp_path):
    recording = make_recording(3, 640, 480)
    path = tmp_path / "freiburg3"
    stamps_s = write.write_tum(path, recording)
    files = [f"depth/{stamp_s:.6f}.png" for stamp_s in stamps_s]
    (path / "depth.txt").write_text(f"{stamps_s[0] - 0.019:.6f} {files[0]}\n{stamps_s[0] + 0.004:.6f} {files[1]}\n"
                                    f"{stamps_s[2] - 0.03:.6f} {files[2]}\n")
    frames = list(open_scene(path))
    np.testing.assert_allclose(frames[0].depth_m[5:], recording.depths_mm[1, 5:] / 5000, atol=1e-6)
    assert frames[1].depth_m is None and frames[2].depth_m is None


def test_tum_depth_of_another_size(tmp_path):
    recording = make_recording(3, 640, 480)
    path = tmp_path / "freiburg3"
    stamps_s = write.write_tum(path, recording)
    for stamp_s, shape in zip(stamps_s, ((192, 256), (480, 640), (180, 256)), strict=True):
        write.save_png(path / "depth" / f"{stamp_s:.6f}.png", np.full(shape, 10000, np.uint16))
    frames = assert_is_recording(open_scene(path), recording)
    assert [frame.depth_m is None for frame in frames] == [False, False, True]
    assert frames[0].depth_m.shape == (480, 640) and (frames[0].depth_m == 2.0).all()
    assert "256x180 pixels" in frames[2].depth_problem


def test_tum_unknown_camera_and_bad_list(tmp_path):
    recording = make_recording(2)
    write.write_tum(tmp_path / "office", recording)
    with pytest.raises(UserError, match=r"camera of .*office is not known"):
        list(open_scene(tmp_path / "office"))
    (tmp_path / "office" / "rgb.txt").write_text("yesterday rgb/1.png\n")
    with pytest.raises(UserError, match=r"Line 1 of .*rgb\.txt"):
        open_scene(tmp_path / "office")
