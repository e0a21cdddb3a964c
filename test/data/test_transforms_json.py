# SPDX-License-Identifier: Apache-2.0
"""transforms.json: cameras and poses read back, damage named with its file."""

import json
from pathlib import Path

import datasets_fixtures as write
import numpy as np
import pytest
from datasets_fixtures import CAMERA, assert_is_recording

from aceg_ros.camera import Camera
from aceg_ros.datasets import open_scene
from aceg_ros.errors import UserError

INTRINSICS = {"fl_x": 60.0, "fl_y": 62.0, "cx": 31.0, "cy": 22.75, "w": 64, "h": 48}


@pytest.mark.parametrize("suffix_in_json", [True, False])
@pytest.mark.parametrize(("intrinsics", "expected"), [
    (INTRINSICS, CAMERA),
    ({**INTRINSICS, "camera_model": "OPENCV", "k1": -0.1, "k2": 0.02, "p1": 1e-3, "p2": -2e-3},
     Camera(width=64, height=48, fx=60.0, fy=62.0, cx=30.5, cy=22.25, model="plumb_bob",
            distortion=(-0.1, 0.02, 1e-3, -2e-3, 0.0))),
    ({**INTRINSICS, "camera_model": "OPENCV_FISHEYE", "k1": 0.1, "k2": 0.02, "k3": 1e-3, "k4": -2e-3},
     Camera(width=64, height=48, fx=60.0, fy=62.0, cx=30.5, cy=22.25, model="equidistant",
            distortion=(0.1, 0.02, 1e-3, -2e-3))),
    ({"camera_angle_x": 2 * np.arctan(32 / 50)}, Camera(width=64, height=48, fx=50.0, fy=50.0, cx=31.5, cy=23.5)),
])
def test_transforms(tmp_path, recording, intrinsics, expected, suffix_in_json):
    write.write_transforms(tmp_path, recording, intrinsics, suffix_in_json)
    for path in (tmp_path, tmp_path / "transforms.json"):
        scene = open_scene(path)
        frames = assert_is_recording(scene, recording)
        assert scene.format == "transforms.json"
        for frame in frames:
            assert (frame.camera.model, frame.camera.distortion) == (expected.model, expected.distortion)
            np.testing.assert_allclose(frame.camera.K, expected.K, atol=1e-9)


def edit_transforms(path: Path, index: int, **values) -> None:
    content = json.loads((path / "transforms.json").read_text())
    frame = next(frame for frame in content["frames"] if frame["file_path"] == f"./images/{index}.png")
    frame.update(values)
    (path / "transforms.json").write_text(json.dumps(content))


def test_transforms_depth(tmp_path, recording):
    write.write_transforms(tmp_path, recording, INTRINSICS)
    for index, depth in enumerate(recording.depths_mm):
        write.save_png(tmp_path / "depth" / f"{index}.png", depth)
    for index in (0, 1, 4):
        edit_transforms(tmp_path, index, depth_file_path=f"depth/{index}.png")
    edit_transforms(tmp_path, 1, depth_unit_scale_factor=0.0002)
    edit_transforms(tmp_path, 2, depth_file_path="C:\\data\\depth\\2.png")
    edit_transforms(tmp_path, 3, depth_file_path="depth/none.png")
    edit_transforms(tmp_path, 4, depth_unit_scale_factor="long")
    frames = list(open_scene(tmp_path))
    known_m = np.where(recording.depths_mm < 65535, recording.depths_mm, 0) / 1000
    for index, metres in ((0, known_m[0]), (1, 0.2 * known_m[1]), (2, known_m[2])):
        np.testing.assert_allclose(frames[index].depth_m, metres, rtol=1e-6)
        assert not frames[index].depth_problem
    assert [frame.depth_m is None for frame in frames[3:]] == [True] * (len(frames) - 3)
    assert "none.png is missing" in frames[3].depth_problem
    assert "depth_unit_scale_factor" in frames[4].depth_problem and "'long'" in frames[4].depth_problem
    assert not any(frame.depth_problem for frame in frames[5:])


def test_transforms_intrinsics_of_a_frame_override(tmp_path, recording):
    write.write_transforms(tmp_path, recording, INTRINSICS)
    edit_transforms(tmp_path, 4, fl_x=70.0, cx=33.0)
    cameras = [frame.camera for frame in open_scene(tmp_path)]
    assert cameras.pop(4) == Camera(width=64, height=48, fx=70.0, fy=62.0, cx=32.5, cy=22.25)
    assert set(cameras) == {CAMERA}


@pytest.mark.parametrize(("values", "part"), [
    ({"transform_matrix": [[float("nan")] * 4] * 4}, "not finite"),
    ({"transform_matrix": [[1, 0], [0, 1, 2]]}, "transform_matrix"),
    ({"transform_matrix": "none"}, "transform_matrix"),
    ({"transform_matrix": np.diag([1, 1, -1, 1]).tolist()}, "not a rigid transform"),
    ({"fl_x": 0}, "not usable"), ({"fl_x": "long"}, "not numbers"), ({"fl_x": None}, "not numbers"),
    ({"camera_model": "EQUIRECTANGULAR"}, "EQUIRECTANGULAR"), ({"k4": 0.1}, "k4"), ({"w": 48, "h": 64}, "48x64"),
])
def test_transforms_broken_frame_is_named(tmp_path, recording, values, part):
    write.write_transforms(tmp_path, recording, INTRINSICS)
    edit_transforms(tmp_path, 4, **values)
    scene = open_scene(tmp_path)
    assert len(list(scene)) == 11
    reason = scene.skipped[0].reason
    assert part in reason and "images/4.png" in reason and "transforms.json" in reason


def test_transforms_missing_image_and_intrinsics(tmp_path, recording):
    write.write_transforms(tmp_path, recording, INTRINSICS)
    (tmp_path / "images" / "9.png").unlink()
    scene = open_scene(tmp_path)
    assert len(list(scene)) == 11 and "images/9.png is missing" in scene.skipped[0].reason
    write.write_transforms(tmp_path, recording, {"w": 64, "h": 48})
    with pytest.raises(UserError, match="neither fl_x nor camera_angle_x"):
        list(open_scene(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"frames": 3}', '{"frames": [3]}', '{"frames": []}'])
def test_transforms_damaged_file_is_rejected(tmp_path, text):
    (tmp_path / "transforms.json").write_text(text)
    with pytest.raises(UserError, match=str(tmp_path)):
        open_scene(tmp_path)


def rewritten(path, change):
    """transforms.json after change(content)."""
    file = path / "transforms.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content, indent=1))


def focal(frame):
    return frame.camera.fx, frame.camera.fy


@pytest.mark.parametrize(("intrinsics", "expected"), [
    ({"fl_x": 60.0}, (60.0, 60.0)), ({"fl_y": 62.0}, (62.0, 62.0)),
    ({"camera_angle_y": 2 * np.arctan(24 / 50)}, (50.0, 50.0)),
    ({"camera_angle_x": 2 * np.arctan(32 / 50), "camera_angle_y": 2 * np.arctan(24 / 52)}, (50.0, 52.0)),
    ({"fl_x": 60.0, "camera_angle_x": 0.3, "camera_angle_y": 2 * np.arctan(24 / 52)}, (60.0, 52.0)),
    ({"x_fov": np.degrees(2 * np.arctan(32 / 50))}, (50.0, 50.0)),
])
def test_transforms_focal_lengths(tmp_path, recording, intrinsics, expected):
    write.write_transforms(tmp_path, recording, intrinsics)
    for frame in assert_is_recording(open_scene(tmp_path), recording):
        assert focal(frame) == pytest.approx(expected)
        assert (frame.camera.cx, frame.camera.cy) == (31.5, 23.5)


def test_transforms_focal_length_of_a_frame_replaces_that_of_the_file(tmp_path, recording):
    write.write_transforms(tmp_path, recording, INTRINSICS)
    edit_transforms(tmp_path, 4, camera_angle_x=2 * np.arctan(32 / 50))
    frames = list(open_scene(tmp_path))
    assert focal(frames[4]) == pytest.approx((50.0, 62.0)) and focal(frames[3]) == (60.0, 62.0)


def test_transforms_intrinsics_of_every_frame_alone(tmp_path, recording):
    write.write_transforms(tmp_path, recording, {})
    rewritten(tmp_path, lambda content: [frame.update(INTRINSICS, fl_x=60.0 + number)
                                         for number, frame in enumerate(content["frames"])])
    cameras = {frame.camera for frame in assert_is_recording(open_scene(tmp_path), recording)}
    assert len(cameras) == len(recording)


@pytest.mark.parametrize("written", [
    "images\\{}.png", ".\\images\\{}.png", "./..\\{folder}\\images/{}.png", "images\\{}", "images/{}.PNG",
    "images/{}.jpg.png", "C:\\Users\\me\\{folder}\\images\\{}.png",
    "/home/me/{folder}/images/{}.png", "D:/scans/images/{}",
])
def test_transforms_paths_of_other_systems(tmp_path, recording, written):
    write.write_transforms(tmp_path, recording, INTRINSICS)
    if ".jpg" in written:                       # a name that ends like two
        for file in (tmp_path / "images").iterdir():
            file.rename(file.with_name(f"{file.stem}.jpg.png"))
    rewritten(tmp_path, lambda content: [frame.update(file_path=written.format(
        frame["file_path"].split("/")[-1].split(".")[0], folder=tmp_path.name)) for frame in content["frames"]])
    assert_is_recording(open_scene(tmp_path), recording)


def test_transforms_missing_file_of_another_system_is_named(tmp_path, recording):
    write.write_transforms(tmp_path, recording, INTRINSICS)
    edit_transforms(tmp_path, 4, file_path="images\\absent.png")
    scene = open_scene(tmp_path)
    assert len(list(scene)) == 11 and f"{tmp_path}/images/absent.png is missing" in scene.skipped[0].reason


@pytest.mark.parametrize(("encoding", "newline"), [("utf-8-sig", "\r\n"), ("utf-16", "\r\n"), ("utf-8", "\r")])
def test_transforms_text_of_windows(tmp_path, recording, encoding, newline):
    write.write_transforms(tmp_path, recording, INTRINSICS)
    rewritten(tmp_path, lambda content: None)
    file = tmp_path / "transforms.json"
    file.write_text(file.read_text(), encoding=encoding, newline=newline)
    assert_is_recording(open_scene(tmp_path), recording)


def test_transforms_applied_to_the_world_are_in_the_poses(tmp_path, recording):
    write.write_transforms(tmp_path, recording, {**INTRINSICS, "applied_scale": 0.5,
                                                 "applied_transform": [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]]})
    rewritten(tmp_path, lambda content: [frame.update(transform_matrix=frame["transform_matrix"][:3])
                                         for frame in content["frames"]])
    assert_is_recording(open_scene(tmp_path), recording)


@pytest.mark.parametrize("values", [{"camera_angle_x": 0.0}, {"camera_angle_x": -1.0}, {"camera_angle_y": float("nan")},
                                    {"fl_x": 1e400}, {"w": float("inf"), "fl_x": 60}, {"fl_x": [60]}])
def test_transforms_impossible_intrinsics_are_named(tmp_path, recording, values):
    write.write_transforms(tmp_path, recording, values)
    with pytest.raises(UserError, match="no usable frame among 12: Camera of ./images/0.png.*11 more like it"):
        list(open_scene(tmp_path))


@pytest.mark.parametrize("path", ["", "/", "..", "x" * 5000, "1" * 5000 + ".png", "a\0b", None, 7, ["images"]])
def test_transforms_impossible_paths_are_named(tmp_path, recording, path):
    write.write_transforms(tmp_path, recording, INTRINSICS)
    edit_transforms(tmp_path, 4, file_path=path)
    scene = open_scene(tmp_path)
    assert len(list(scene)) == 11 and len(scene.skipped) == 1


@pytest.mark.parametrize("text", [
    "[" * 100_000,
    '{"frames": [{"file_path": "a.png", "transform_matrix": [[1' + "0" * 400 + ", 0, 0, 0]]}]}"])
def test_transforms_impossible_json_is_rejected(tmp_path, text):
    (tmp_path / "transforms.json").write_text(text)
    with pytest.raises(UserError, match="transforms.json"):
        list(open_scene(tmp_path))
