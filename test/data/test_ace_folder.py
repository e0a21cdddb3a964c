# SPDX-License-Identifier: Apache-2.0
"""ACE folders: read back exactly as written; every kind of damage named with its file."""

from pathlib import Path

import datasets_fixtures as write
import numpy as np
import pytest
from datasets_fixtures import CAMERA, assert_is_recording, make_recording
from PIL import Image

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets import open_scene, write_ace_scene
from aceg_ros.errors import UserError


def test_ace_folder(tmp_path, recording):
    write.write_ace(tmp_path, recording, CAMERA, depth=True)
    frames = assert_is_recording(open_scene(tmp_path), recording)
    assert {frame.camera for frame in frames} == {CAMERA}
    assert [frame.name for frame in frames] == [f"{index}.png" for index in range(12)]
    for frame, depth_mm in zip(frames, recording.depths_mm, strict=True):
        known = (depth_mm != 0) & (depth_mm != 65535)
        np.testing.assert_allclose(frame.depth_m[known], depth_mm[known] / 1000.0, atol=1e-6)
        assert not frame.depth_m[~known].any() and frame.depth_m.dtype == np.float32


def test_ace_folder_with_one_focal_length(tmp_path, recording):
    write.write_ace(tmp_path, recording, CAMERA)
    for file in (tmp_path / "calibration").iterdir():
        file.write_text("525.0\n")
    expected = Camera(width=64, height=48, fx=525.0, fy=525.0, cx=31.5, cy=23.5)
    assert {frame.camera for frame in open_scene(tmp_path)} == {expected}


def test_ace_folder_with_names_of_seven_scenes(tmp_path, recording):
    write.write_ace(tmp_path, recording, CAMERA)
    for folder, role in (("rgb", "color"), ("poses", "pose"), ("calibration", "calibration")):
        for file in list((tmp_path / folder).iterdir()):
            file.rename(file.with_name(f"seq-01-frame-{int(file.stem):06d}.{role}{file.suffix}"))
    assert_is_recording(open_scene(tmp_path), recording)


def test_images_of_different_sizes_have_their_own_camera(tmp_path):
    small, large = make_recording(1, 64, 48), make_recording(1, 80, 100, seed=1)
    write.write_ace(tmp_path, small, CAMERA)
    write.save_png(tmp_path / "rgb" / "1.png", large.images[0])
    write.save_matrix(tmp_path / "poses" / "1.txt", large.poses[0])
    write.save_matrix(tmp_path / "calibration" / "1.txt", CAMERA.K)
    sizes = [(frame.image.shape[1::-1], (frame.camera.width, frame.camera.height)) for frame in open_scene(tmp_path)]
    assert sizes == [((64, 48), (64, 48)), ((80, 100), (80, 100))]


def damage_pose(text: str):
    return lambda path: (path / "poses" / "2.txt").write_text(text)


def _scaled(path: Path) -> None:
    pose = np.loadtxt(path / "poses" / "2.txt")
    pose[:3, :3] *= 1.1
    write.save_matrix(path / "poses" / "2.txt", pose)


def _truncated_jpeg(path: Path) -> None:
    (path / "rgb" / "2.png").unlink()
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    Image.fromarray(noise).save(path / "rgb" / "2.jpg")
    write.cut_in_half(path / "rgb" / "2.jpg")


@pytest.mark.parametrize(("damage", "file"), [
    (_truncated_jpeg, "rgb/2.jpg"),
    (lambda path: write.cut_in_half(path / "rgb" / "2.png"), "rgb/2.png"),
    (lambda path: (path / "rgb" / "2.png").write_bytes(b""), "rgb/2.png"),
    (lambda path: (path / "rgb" / "2.png").write_text("no image"), "rgb/2.png"),
    (lambda path: (path / "poses" / "2.txt").unlink(), "poses/2.txt"),
    (damage_pose("nan " * 16), "poses/2.txt"),
    (damage_pose("inf " * 16), "poses/2.txt"),
    (damage_pose("1 0 0"), "poses/2.txt"),
    (damage_pose("one zero"), "poses/2.txt"),
    (damage_pose(""), "poses/2.txt"),
    (damage_pose("0 " * 16), "poses/2.txt"),
    (damage_pose("-1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1"), "poses/2.txt"),
    (_scaled, "poses/2.txt"),
    (lambda path: (path / "poses" / "2.txt").write_bytes(b"\xff\xfe\x00\x80"), "poses/2.txt"),
    (lambda path: (path / "calibration" / "2.txt").unlink(), "calibration/2.txt"),
    (lambda path: (path / "calibration" / "2.txt").write_text("0"), "calibration/2.txt"),
    (lambda path: (path / "calibration" / "2.txt").write_text("nan"), "calibration/2.txt"),
    (lambda path: (path / "calibration" / "2.txt").write_text("500 0 320 0 500"), "calibration/2.txt"),
    (lambda path: (path / "calibration" / "2.txt").write_text("500 0 0 0 500 0 320 240 1"), "calibration/2.txt"),
    (lambda path: write.cut_in_half(path / "depth" / "2.png"), "depth/2.png"),
    (lambda path: write.save_png(path / "depth" / "2.png", np.zeros((48, 64), np.uint8)), "depth/2.png"),
])
def test_damaged_frame_is_skipped_and_named(tmp_path, recording, damage, file):
    write.write_ace(tmp_path, recording, CAMERA, depth=True)
    damage(tmp_path)
    scene = open_scene(tmp_path)
    frames = list(scene)
    assert len(frames) == len(recording) - 1 and len(scene) == len(recording)
    assert [skipped.name for skipped in scene.skipped] == ["2" + Path(file).suffix if "rgb" in file else "2.png"]
    assert str(tmp_path / file) in scene.skipped[0].reason and scene.skipped[0].reason.endswith(".")
    assert len(list(scene)) == len(frames) and len(scene.skipped) == 1        # a second pass counts nothing twice


def test_missing_depth_of_one_frame_is_no_damage(tmp_path, recording):
    write.write_ace(tmp_path, recording, CAMERA, depth=True)
    (tmp_path / "depth" / "2.png").unlink()
    frames = assert_is_recording(open_scene(tmp_path), recording)
    assert [index for index, frame in enumerate(frames) if frame.depth_m is None] == [2]


def test_scene_without_a_usable_frame(tmp_path, recording):
    write.write_ace(tmp_path, recording, CAMERA)
    for file in (tmp_path / "poses").iterdir():
        file.write_text("nan " * 16)
    scene = open_scene(tmp_path)
    with pytest.raises(UserError, match=r"no usable frame among 12.*poses/0\.txt"):
        list(scene)
    assert len(scene.skipped) == 12


def test_missing_calibration_folder(tmp_path, recording):
    write.write_ace(tmp_path, recording, CAMERA)
    (tmp_path / "calibration").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"calibration/0\.txt is missing"):
        list(open_scene(tmp_path))

@pytest.mark.parametrize("image_format", ["png", "jpg"])
def test_written_recording_reads_back(tmp_path, recording, image_format):
    gradient = np.add.outer(np.arange(48), np.arange(64))       # smooth: JPEG must keep it
    images = (gradient[None, :, :, None] + np.arange(12)[:, None, None, None] + (0, 40, 80)).astype(np.uint8)
    depth_m = np.full((48, 64), 2.5, np.float32)
    depth_m[0, :5] = (np.nan, 0.0, -1.0, np.inf, 70.0)
    frames = [Frame(image=image, camera=CAMERA, stamp_s=0.0, map_from_camera=pose, name="", depth_m=depth_m)
              for image, pose in zip(images, recording.poses, strict=True)]
    assert write_ace_scene(tmp_path / "scene", iter(frames), image_format) == len(frames)
    read = list(open_scene(tmp_path / "scene"))
    assert len(read) == len(frames) and read[0].name == f"000000.{image_format}"
    for before, after in zip(frames, read, strict=True):
        np.testing.assert_allclose(after.map_from_camera, before.map_from_camera, atol=1e-14)
        assert after.camera == CAMERA
        assert not after.depth_m[0, :5].any() and (after.depth_m[1:] == 2.5).all()
        assert np.abs(after.image.astype(int) - before.image).mean() <= (0 if image_format == "png" else 1.5)


def test_written_recording_is_rectified(tmp_path, recording):
    camera = Camera(width=64, height=48, fx=60.0, fy=62.0, cx=30.5, cy=22.25, model="plumb_bob",
                    distortion=(-0.2, 0.05, 0.0, 0.0))
    write_ace_scene(tmp_path, [Frame(image=recording.images[0], camera=camera, stamp_s=0.0,
                                     map_from_camera=recording.poses[0])])
    frame = open_scene(tmp_path).frame(0)
    assert frame.camera == CAMERA
    np.testing.assert_array_equal(frame.image, camera.rectify(recording.images[0])[0])


def test_interrupted_recording_keeps_the_frames_before(tmp_path, recording, monkeypatch):
    frames = [Frame(image=image, camera=CAMERA, map_from_camera=pose)
              for image, pose in zip(recording.images, recording.poses, strict=True)]

    def interrupted(source, target):
        if "000002" in str(target):
            raise KeyboardInterrupt
        source.rename(target)

    monkeypatch.setattr("aceg_ros.datasets.ace.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_ace_scene(tmp_path, frames)
    scene = open_scene(tmp_path)
    assert [frame.name for frame in scene] == ["000000.png", "000001.png"] and not scene.skipped


def test_recordings_are_not_mixed_nor_written_without_pose(tmp_path, recording):
    write_ace_scene(tmp_path, [Frame(image=recording.images[0], camera=CAMERA, stamp_s=0.0,
                                     map_from_camera=recording.poses[0])])
    with pytest.raises(UserError, match="already holds"):
        write_ace_scene(tmp_path, [Frame(image=recording.images[0], camera=CAMERA, stamp_s=0.0,
                                         map_from_camera=recording.poses[0])])
    with pytest.raises(UserError, match="no pose"):
        write_ace_scene(tmp_path / "other", [Frame(image=recording.images[0], camera=CAMERA)])
    with pytest.raises(UserError, match="png or jpg"):
        write_ace_scene(tmp_path / "other", [], image_format="bmp")


def test_depth_of_another_size_is_resampled(tmp_path, recording):
    write.write_ace(tmp_path, recording, CAMERA, depth=True)
    small = np.arange(1000, 1000 + 24 * 32, dtype=np.uint16).reshape(24, 32)
    large = np.repeat(np.repeat(recording.depths_mm[3], 3, axis=0), 3, axis=1)
    write.save_png(tmp_path / "depth" / "2.png", small)
    write.save_png(tmp_path / "depth" / "3.png", large)
    frames = assert_is_recording(open_scene(tmp_path), recording)
    np.testing.assert_allclose(frames[2].depth_m, np.repeat(np.repeat(small, 2, axis=0), 2, axis=1) / 1000, atol=1e-6)
    np.testing.assert_allclose(frames[3].depth_m[1:], recording.depths_mm[3][1:] / 1000, atol=1e-6)
    assert not any(frame.depth_problem for frame in frames)


def test_depth_of_another_shape_matters_only_to_who_needs_it(tmp_path, recording):
    write.write_ace(tmp_path, recording, CAMERA, depth=True)
    write.save_png(tmp_path / "depth" / "2.png", np.full((24, 48), 2000, np.uint16))
    frames = assert_is_recording(open_scene(tmp_path), recording)
    assert [index for index, frame in enumerate(frames) if frame.depth_m is None] == [2]
    assert "depth/2.png has 48x24 pixels, the colour image 64x48" in frames[2].depth_problem
