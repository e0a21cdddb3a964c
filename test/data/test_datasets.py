"""Every format written with known poses and cameras, read back exactly; every kind of damage named with its file."""

import json
from pathlib import Path

import datasets_fixtures as write
import numpy as np
import pytest
from datasets_fixtures import ColmapCamera, make_recording
from PIL import Image

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets import Scene, load_camera_file, load_image, open_scene, write_ace_scene
from aceg_ros.datasets.tum_rgbd import FREIBURG
from aceg_ros.errors import UserError
from aceg_ros.geometry import interpolate_poses, is_pose

CAMERA = Camera(width=64, height=48, fx=60.0, fy=62.0, cx=30.5, cy=22.25)


@pytest.fixture
def recording() -> write.Recording:
    return make_recording()


def assert_is_recording(scene: Scene, recording: write.Recording) -> list[Frame]:
    frames = list(scene)
    assert not scene.skipped
    assert len(scene) == len(frames) == len(recording)
    for frame, image, pose in zip(frames, recording.images, recording.poses, strict=True):
        np.testing.assert_array_equal(frame.image, image)
        np.testing.assert_allclose(frame.map_from_camera, pose, atol=1e-12)
    assert np.all(np.diff([frame.stamp_s for frame in frames]) > 0)
    return frames


# ---- ACE folders

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


def test_pictures_of_different_sizes_have_their_own_camera(tmp_path):
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
    (lambda path: (path / "rgb" / "2.png").write_text("no picture"), "rgb/2.png"),
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
    (lambda path: write.save_png(path / "depth" / "2.png", np.zeros((24, 32), np.uint16)), "depth/2.png"),
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


# ---- opening

def test_every_nth_frame_keeps_its_stamp(tmp_path, recording):
    write.write_ace(tmp_path, recording, CAMERA)
    scene = open_scene(tmp_path, every=5)
    assert [frame.name for frame in scene] == ["0.png", "5.png", "10.png"] and len(scene) == 3
    assert [frame.stamp_s for frame in scene] == pytest.approx([0.0, 5 / 30, 10 / 30])


def test_access_by_index(tmp_path, recording):
    write.write_ace(tmp_path, recording, CAMERA)
    (tmp_path / "poses" / "4.txt").unlink()
    scene = open_scene(tmp_path)
    np.testing.assert_array_equal(scene.frame(7).image, recording.images[7])
    with pytest.raises(UserError, match=r"poses/4\.txt"):
        scene.frame(4)
    assert [skipped.name for skipped in scene.skipped] == ["4.png"]


def test_one_picture_is_a_scene(tmp_path):
    recording = make_recording(1)
    write.write_ace(tmp_path, recording, CAMERA)
    assert_is_recording(open_scene(tmp_path), recording)


def test_pictures_are_decoded_one_by_one(tmp_path, recording, monkeypatch):
    write.write_ace(tmp_path, recording, CAMERA)
    decoded = []
    monkeypatch.setattr("aceg_ros.datasets.ace.load_image", lambda path: decoded.append(path) or load_image(path))
    frames = iter(open_scene(tmp_path))
    next(frames)
    assert [path.name for path in decoded] == ["0.png"]


def test_name_says_place_and_part(tmp_path, recording):
    write.write_ace(tmp_path / "kitchen" / "query", recording, CAMERA)
    scene = open_scene(tmp_path / "kitchen" / "query")
    assert (scene.name, scene.format) == ("kitchen/query", "ACE folder")


def test_unusable_paths_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_scene(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"looked for rgb/.*TrainSplit.*groundtruth.*cameras.*transforms\.json"):
        open_scene(tmp_path)
    (tmp_path / "rgb").mkdir()
    (tmp_path / "poses").mkdir()
    with pytest.raises(UserError, match="lists no frames"):
        open_scene(tmp_path)
    with pytest.raises(UserError, match="at least 1"):
        open_scene(tmp_path, every=0)
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(UserError, match="looked for"):
        open_scene(tmp_path / "picture.png")


# ---- writing ACE folders

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


# ---- 7-Scenes

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


# ---- TUM RGB-D

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


def test_tum_poses_are_interpolated_and_gaps_refused(tmp_path):
    recording = make_recording(4)
    path = tmp_path / "fr3_office"
    stamps_s = write.write_tum(path, recording)
    samples = [stamps_s[0] + 0.01, stamps_s[0] - 0.03,        # around picture 0, out of order
               stamps_s[1] - 0.2, stamps_s[1] + 0.2,           # a gap around picture 1
               stamps_s[2]]                                    # picture 2 exactly; nothing after picture 3
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


def test_tum_unknown_camera_and_bad_list(tmp_path):
    recording = make_recording(2)
    write.write_tum(tmp_path / "office", recording)
    with pytest.raises(UserError, match=r"camera of .*office is not known"):
        list(open_scene(tmp_path / "office"))
    (tmp_path / "office" / "rgb.txt").write_text("yesterday rgb/1.png\n")
    with pytest.raises(UserError, match=r"Line 1 of .*rgb\.txt"):
        open_scene(tmp_path / "office")


# ---- COLMAP

COLMAP_CAMERAS = [
    (ColmapCamera(0, "SIMPLE_PINHOLE", 64, 48, (60.0, 31.0, 22.75)),
     Camera(width=64, height=48, fx=60.0, fy=60.0, cx=30.5, cy=22.25)),
    (ColmapCamera(1, "PINHOLE", 64, 48, (60.0, 62.0, 31.0, 22.75)), CAMERA),
    (ColmapCamera(2, "SIMPLE_RADIAL", 64, 48, (60.0, 31.0, 22.75, -0.1)),
     Camera(width=64, height=48, fx=60.0, fy=60.0, cx=30.5, cy=22.25, model="plumb_bob",
            distortion=(-0.1, 0.0, 0.0, 0.0))),
    (ColmapCamera(3, "RADIAL", 64, 48, (60.0, 31.0, 22.75, -0.1, 0.02)),
     Camera(width=64, height=48, fx=60.0, fy=60.0, cx=30.5, cy=22.25, model="plumb_bob",
            distortion=(-0.1, 0.02, 0.0, 0.0))),
    (ColmapCamera(4, "OPENCV", 64, 48, (60.0, 62.0, 31.0, 22.75, -0.1, 0.02, 1e-3, -2e-3)),
     Camera(width=64, height=48, fx=60.0, fy=62.0, cx=30.5, cy=22.25, model="plumb_bob",
            distortion=(-0.1, 0.02, 1e-3, -2e-3))),
    (ColmapCamera(5, "OPENCV_FISHEYE", 64, 48, (60.0, 62.0, 31.0, 22.75, 0.1, 0.02, 1e-3, -2e-3)),
     Camera(width=64, height=48, fx=60.0, fy=62.0, cx=30.5, cy=22.25, model="equidistant",
            distortion=(0.1, 0.02, 1e-3, -2e-3))),
    (ColmapCamera(6, "FULL_OPENCV", 64, 48, (60.0, 62.0, 31.0, 22.75, 0.1, 0.2, 1e-3, -2e-3, 0.3, 0.4, 0.5, 0.6)),
     Camera(width=64, height=48, fx=60.0, fy=62.0, cx=30.5, cy=22.25, model="rational_polynomial",
            distortion=(0.1, 0.2, 1e-3, -2e-3, 0.3, 0.4, 0.5, 0.6))),
    (ColmapCamera(8, "SIMPLE_RADIAL_FISHEYE", 64, 48, (60.0, 31.0, 22.75, 0.1)),
     Camera(width=64, height=48, fx=60.0, fy=60.0, cx=30.5, cy=22.25, model="equidistant",
            distortion=(0.1, 0.0, 0.0, 0.0))),
    (ColmapCamera(9, "RADIAL_FISHEYE", 64, 48, (60.0, 31.0, 22.75, 0.1, 0.02)),
     Camera(width=64, height=48, fx=60.0, fy=60.0, cx=30.5, cy=22.25, model="equidistant",
            distortion=(0.1, 0.02, 0.0, 0.0))),
]


@pytest.mark.parametrize("write_model", [write.write_colmap_text, write.write_colmap_binary])
@pytest.mark.parametrize(("stored", "expected"), COLMAP_CAMERAS, ids=lambda value: getattr(value, "model", None))
def test_colmap(tmp_path, recording, write_model, stored, expected):
    write.write_colmap(tmp_path, recording, stored, write_model)
    scene = open_scene(tmp_path)
    frames = assert_is_recording(scene, recording)
    assert scene.format == "COLMAP model"
    assert {frame.camera for frame in frames} == {expected}
    assert [frame.name for frame in frames] == write.colmap_names(recording)


@pytest.mark.parametrize("model", [".", "sparse", "sparse/0"])
def test_colmap_folders(tmp_path, recording, model):
    write.write_colmap(tmp_path, recording, COLMAP_CAMERAS[1][0], write.write_colmap_binary, model)
    assert_is_recording(open_scene(tmp_path), recording)
    assert_is_recording(open_scene(tmp_path / model), recording)


def test_colmap_pictures_stored_at_half_size(tmp_path):
    recording = make_recording(2, 32, 24)
    write.write_colmap(tmp_path, recording, COLMAP_CAMERAS[1][0], write.write_colmap_text)
    camera = open_scene(tmp_path).frame(0).camera
    # In COLMAP's convention halving the picture halves cx = 31 to 15.5; ours is half a pixel less.
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx((30.0, 31.0, 15.0, 10.875))


@pytest.mark.parametrize("write_model", [write.write_colmap_text, write.write_colmap_binary])
def test_colmap_broken_frames_are_skipped(tmp_path, recording, write_model):
    poses = recording.poses.copy()
    poses[3, :3, 3] = np.nan
    broken = write.Recording(recording.images, poses, recording.depths_mm)
    write.write_colmap(tmp_path, broken, COLMAP_CAMERAS[0][0], write_model)
    (tmp_path / "images" / "walk 1" / "5.png").unlink()
    write.save_png(tmp_path / "images" / "walk 1" / "6.png", np.zeros((64, 48, 3), np.uint8))   # turned
    scene = open_scene(tmp_path)
    assert len(list(scene)) == 9
    for skipped, number, part in zip(scene.skipped, (3, 5, 6), ("not finite", "is missing", "48x64"), strict=True):
        assert skipped.name == f"walk 1/{number}.png"
        assert part in skipped.reason and f"walk 1/{number}.png" in skipped.reason


def test_colmap_damaged_models_are_refused(tmp_path, recording):
    camera = COLMAP_CAMERAS[0][0]
    text, binary = tmp_path / "text", tmp_path / "binary"
    write.write_colmap(text, recording, camera, write.write_colmap_text, ".")
    write.write_colmap(binary, recording, camera, write.write_colmap_binary, ".")
    for path, name in ((binary, "images.bin"), (binary, "cameras.bin"), (text, "images.txt"), (text, "cameras.txt")):
        whole = (path / name).read_bytes()
        for length in range(1, len(whole) - 60, 41):
            (path / name).write_bytes(whole[:length])
            try:
                list(open_scene(path))
            except UserError as error:
                assert str(path) in str(error)          # a cut text file may also end at a line: then it is read
            else:
                assert name.endswith(".txt")
        (path / name).write_bytes(whole)
    without_blank = [line for line in (text / "images.txt").read_text().splitlines() if line]
    (text / "images.txt").write_text("\n".join(without_blank))
    with pytest.raises(UserError, match="do not fit together"):
        open_scene(text)


@pytest.mark.parametrize(("write_model", "model_id", "named"), [
    (write.write_colmap_text, 7, "FOV"), (write.write_colmap_binary, 7, "FOV"),
    (write.write_colmap_binary, 40, "number 40"),
])
def test_colmap_unknown_camera_models_are_refused(tmp_path, recording, write_model, model_id, named):
    write.write_colmap(tmp_path, recording, ColmapCamera(model_id, "FOV", 64, 48, (60, 60, 31, 22, 0.9)), write_model)
    with pytest.raises(UserError, match=f"Camera model {named} is not supported"):
        open_scene(tmp_path)


def test_colmap_image_of_an_unlisted_camera(tmp_path, recording):
    write.write_colmap(tmp_path, recording, COLMAP_CAMERAS[0][0], write.write_colmap_text)
    (tmp_path / "sparse" / "0" / "cameras.txt").write_text("# none\n")
    with pytest.raises(UserError, match="Camera 7 of image"):
        list(open_scene(tmp_path))


# ---- transforms.json

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


def test_transforms_missing_picture_and_intrinsics(tmp_path, recording):
    write.write_transforms(tmp_path, recording, INTRINSICS)
    (tmp_path / "images" / "9.png").unlink()
    scene = open_scene(tmp_path)
    assert len(list(scene)) == 11 and "images/9.png is missing" in scene.skipped[0].reason
    write.write_transforms(tmp_path, recording, {"w": 64, "h": 48})
    with pytest.raises(UserError, match="neither fl_x nor camera_angle_x"):
        list(open_scene(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"frames": 3}', '{"frames": [3]}', '{"frames": []}'])
def test_transforms_damaged_file_is_refused(tmp_path, text):
    (tmp_path / "transforms.json").write_text(text)
    with pytest.raises(UserError, match=str(tmp_path)):
        open_scene(tmp_path)


# ---- pictures and camera files

def test_load_image_converts_every_kind(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    colour = np.stack([grey, grey // 2, 255 - grey], axis=-1)
    rgba = np.dstack([colour, np.full_like(grey, 7)])
    palette = Image.fromarray(grey).convert("P")
    pictures = {"grey": Image.fromarray(grey), "colour": Image.fromarray(colour), "rgba": Image.fromarray(rgba),
                "palette": palette, "deep": Image.fromarray(grey.astype(np.uint16) * 256 + 99),
                "grey_alpha": Image.fromarray(grey).convert("LA")}
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
        loaded = load_image(tmp_path / f"{name}.png")
        expected = colour if name in ("colour", "rgba") else np.repeat(grey[..., None], 3, axis=2)
        np.testing.assert_array_equal(loaded, expected, err_msg=name)
        assert loaded.dtype == np.uint8 and loaded.flags.writeable


def test_load_image_keeps_stored_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6        # "turn by 90 degrees to display"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "phone.jpg", exif=exif)
    assert load_image(tmp_path / "phone.jpg").shape == (20, 30, 3)


def test_load_image_names_what_it_cannot_read(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "folder.png").mkdir()
    for name in ("absent.png", "float.tif", "folder.png"):
        with pytest.raises(UserError, match=name):
            load_image(tmp_path / name)


CAMERA_INFO = """
image_width: 64
image_height: 48
camera_name: front
camera_matrix: {rows: 3, cols: 3, data: [60, 0, 30.5, 0, 62, 22.25, 0, 0, 1]}
distortion_model: %s
distortion_coefficients: {rows: 1, cols: 5, data: %s}
"""
ECHO = """
header: {frame_id: camera}
height: 48
width: 64
distortion_model: plumb_bob
d: [-0.1, 0.02, 0.0, 0.0, 0.0]
k: [60, 0, 30.5, 0, 62, 22.25, 0, 0, 1]
---
"""


@pytest.mark.parametrize(("name", "text", "model", "distortion"), [
    ("K.txt", "60 0 30.5\n0 62 22.25\n0 0 1\n", "pinhole", ()),
    ("K.csv", "60, 0, 30.5\n0, 62, 22.25\n0, 0, 1\n", "pinhole", ()),
    ("a.yaml", CAMERA_INFO % ("plumb_bob", "[0, 0, 0, 0, 0]"), "pinhole", ()),
    ("b.yaml", CAMERA_INFO % ("plumb_bob", "[-0.1, 0.02, 0, 0, 0.3]"), "plumb_bob", (-0.1, 0.02, 0.0, 0.0, 0.3)),
    ("c.yml", CAMERA_INFO % ("rational_polynomial", "[1, 2, 0, 0, 3, 4, 5, 6, 0, 0, 0, 0]"), "rational_polynomial",
     (1.0, 2.0, 0.0, 0.0, 3.0, 4.0, 5.0, 6.0)),
    ("d.yaml", CAMERA_INFO % ("equidistant", "[0, 0, 0, 0]"), "equidistant", (0.0, 0.0, 0.0, 0.0)),
    ("e.yaml", CAMERA_INFO % ("fisheye", "[0.1, 0, 0, 0]"), "equidistant", (0.1, 0.0, 0.0, 0.0)),
    ("echo.yaml", ECHO, "plumb_bob", (-0.1, 0.02, 0.0, 0.0, 0.0)),
    ("f.json", '{"width": 64, "height": 48, "fx": 60, "fy": 62, "cx": 30.5, "cy": 22.25}', "pinhole", ()),
    ("g.json", '{"width": 64, "height": 48, "fx": 60, "fy": 62, "cx": 30.5, "cy": 22.25, "model": "equidistant", '
               '"distortion": [0.1, 0, 0, 0]}', "equidistant", (0.1, 0.0, 0.0, 0.0)),
], ids=range(10))
def test_camera_files(tmp_path, name, text, model, distortion):
    (tmp_path / name).write_text(text)
    assert load_camera_file(tmp_path / name, 64, 48) == Camera(width=64, height=48, fx=60.0, fy=62.0, cx=30.5, cy=22.25,
                                                               model=model, distortion=distortion)


def test_camera_file_of_another_size(tmp_path):
    file = tmp_path / "camera.json"
    file.write_text('{"width": 64, "height": 48, "fx": 60, "fy": 62, "cx": 30.5, "cy": 22.25}')
    assert load_camera_file(file, 128, 96) == CAMERA.resized(128, 96)
    with pytest.raises(UserError, match=r"camera\.json is for 64x48 .* 48x64"):
        load_camera_file(file, 48, 64)


@pytest.mark.parametrize(("name", "text"), [
    ("a.txt", ""), ("a.txt", "1 2 3"), ("a.txt", "focal"), ("a.txt", "-5"), ("a.txt", "60 1 30 0 60 20 0 0 1"),
    ("a.json", ""), ("a.json", "[]"), ("a.json", "{}"), ("a.json", '{"width": 64, "height": 48, "fx": "x"}'),
    ("a.json", '{"width": 64, "height": 48, "fx": 0, "fy": 62, "cx": 30.5, "cy": 22.25}'),
    ("a.yaml", ""), ("a.yaml", "{"), ("a.yaml", "- 1"), ("a.yaml", "width: 3"), ("a.yaml", "camera_matrix: 3"),
    ("a.yaml", CAMERA_INFO % ("thin_prism", "[1, 2]")), ("a.yaml", CAMERA_INFO % ("plumb_bob", "[1, 2]")),
    ("a.yaml", CAMERA_INFO % ("plumb_bob", "none")),
])
def test_bad_camera_files_are_refused_in_one_line(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=name) as caught:
        load_camera_file(tmp_path / name, 64, 48)
    assert "\n" not in str(caught.value)


def test_missing_camera_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"front\.yaml is missing"):
        load_camera_file(tmp_path / "front.yaml", 64, 48)


# ---- the real scenes

@pytest.mark.parametrize(("scene", "mapping", "query"), [
    ("redkitchen7s", 320, 100), ("drone_lab_a", 156, 98), ("tum_fr1_rpy", 219, 160), ("terrace", 182, 60),
    ("student_lab", 129, 32),
])
def test_real_scenes(shared_scenes, scene, mapping, query):
    for part, count in (("mapping", mapping), ("query", query)):
        assert len(open_scene(shared_scenes / scene / part)) == count
        sample = open_scene(shared_scenes / scene / part, every=30)
        frames = list(sample)
        assert len(frames) == len(sample) and not sample.skipped
        assert all(is_pose(frame.map_from_camera, tolerance=1e-9) and frame.camera.is_pinhole for frame in frames)
        assert all(frame.image.shape == (frame.camera.height, frame.camera.width, 3) for frame in frames)
