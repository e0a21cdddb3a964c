# SPDX-License-Identifier: Apache-2.0
"""COLMAP models: text and binary, every camera model, damage named with its file."""

import struct

import datasets_fixtures as write
import numpy as np
import pytest
from datasets_fixtures import CAMERA, ColmapCamera, assert_is_recording, make_recording
from PIL import Image

from aceg_ros.camera import Camera
from aceg_ros.datasets import open_scene
from aceg_ros.errors import UserError

COLMAP_CAMERAS = [
    (ColmapCamera(model_id=0, model="SIMPLE_PINHOLE", width=64, height=48, parameters=(60.0, 31.0, 22.75)),
     Camera(width=64, height=48, fx=60.0, fy=60.0, cx=30.5, cy=22.25)),
    (ColmapCamera(model_id=1, model="PINHOLE", width=64, height=48, parameters=(60.0, 62.0, 31.0, 22.75)), CAMERA),
    (ColmapCamera(model_id=2, model="SIMPLE_RADIAL", width=64, height=48, parameters=(60.0, 31.0, 22.75, -0.1)),
     Camera(width=64, height=48, fx=60.0, fy=60.0, cx=30.5, cy=22.25, model="plumb_bob",
            distortion=(-0.1, 0.0, 0.0, 0.0))),
    (ColmapCamera(model_id=3, model="RADIAL", width=64, height=48, parameters=(60.0, 31.0, 22.75, -0.1, 0.02)),
     Camera(width=64, height=48, fx=60.0, fy=60.0, cx=30.5, cy=22.25, model="plumb_bob",
            distortion=(-0.1, 0.02, 0.0, 0.0))),
    (ColmapCamera(model_id=4, model="OPENCV", width=64, height=48,
                  parameters=(60.0, 62.0, 31.0, 22.75, -0.1, 0.02, 1e-3, -2e-3)),
     Camera(width=64, height=48, fx=60.0, fy=62.0, cx=30.5, cy=22.25, model="plumb_bob",
            distortion=(-0.1, 0.02, 1e-3, -2e-3))),
    (ColmapCamera(model_id=5, model="OPENCV_FISHEYE", width=64, height=48,
                  parameters=(60.0, 62.0, 31.0, 22.75, 0.1, 0.02, 1e-3, -2e-3)),
     Camera(width=64, height=48, fx=60.0, fy=62.0, cx=30.5, cy=22.25, model="equidistant",
            distortion=(0.1, 0.02, 1e-3, -2e-3))),
    (ColmapCamera(model_id=6, model="FULL_OPENCV", width=64, height=48,
                  parameters=(60.0, 62.0, 31.0, 22.75, 0.1, 0.2, 1e-3, -2e-3, 0.3, 0.4, 0.5, 0.6)),
     Camera(width=64, height=48, fx=60.0, fy=62.0, cx=30.5, cy=22.25, model="rational_polynomial",
            distortion=(0.1, 0.2, 1e-3, -2e-3, 0.3, 0.4, 0.5, 0.6))),
    (ColmapCamera(model_id=8, model="SIMPLE_RADIAL_FISHEYE", width=64, height=48, parameters=(60.0, 31.0, 22.75, 0.1)),
     Camera(width=64, height=48, fx=60.0, fy=60.0, cx=30.5, cy=22.25, model="equidistant",
            distortion=(0.1, 0.0, 0.0, 0.0))),
    (ColmapCamera(model_id=9, model="RADIAL_FISHEYE", width=64, height=48, parameters=(60.0, 31.0, 22.75, 0.1, 0.02)),
     Camera(width=64, height=48, fx=60.0, fy=60.0, cx=30.5, cy=22.25, model="equidistant",
            distortion=(0.1, 0.02, 0.0, 0.0))),
    (ColmapCamera(model_id=14, model="SIMPLE_FISHEYE", width=64, height=48, parameters=(60.0, 31.0, 22.75)),
     Camera(width=64, height=48, fx=60.0, fy=60.0, cx=30.5, cy=22.25, model="equidistant", distortion=(0.0,) * 4)),
    (ColmapCamera(model_id=15, model="FISHEYE", width=64, height=48, parameters=(60.0, 62.0, 31.0, 22.75)),
     Camera(width=64, height=48, fx=60.0, fy=62.0, cx=30.5, cy=22.25, model="equidistant", distortion=(0.0,) * 4)),
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


def test_colmap_images_stored_at_half_size(tmp_path):
    recording = make_recording(2, 32, 24)
    write.write_colmap(tmp_path, recording, COLMAP_CAMERAS[1][0], write.write_colmap_text)
    camera = open_scene(tmp_path).frame(0).camera
    # In COLMAP's convention halving the image halves cx = 31 to 15.5; ours is half a pixel less.
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx((30.0, 31.0, 15.0, 10.875))


@pytest.mark.parametrize("write_model", [write.write_colmap_text, write.write_colmap_binary])
def test_colmap_broken_frames_are_skipped(tmp_path, recording, write_model):
    poses = recording.poses.copy()
    poses[3, :3, 3] = np.nan
    broken = write.Recording(images=recording.images, poses=poses, depths_mm=recording.depths_mm)
    write.write_colmap(tmp_path, broken, COLMAP_CAMERAS[0][0], write_model)
    (tmp_path / "images" / "walk 1" / "5.png").unlink()
    write.save_png(tmp_path / "images" / "walk 1" / "6.png", np.zeros((64, 48, 3), np.uint8))   # turned
    scene = open_scene(tmp_path)
    assert len(list(scene)) == 9
    for skipped, number, part in zip(scene.skipped, (3, 5, 6), ("not finite", "is missing", "48x64"), strict=True):
        assert skipped.name == f"walk 1/{number}.png"
        assert part in skipped.reason and f"walk 1/{number}.png" in skipped.reason


def test_colmap_damaged_models_are_rejected(tmp_path, recording):
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
def test_colmap_unknown_camera_models_are_rejected(tmp_path, recording, write_model, model_id, named):
    write.write_colmap(tmp_path, recording, ColmapCamera(model_id=model_id, model="FOV", width=64, height=48,
                                                         parameters=(60, 60, 31, 22, 0.9)), write_model)
    with pytest.raises(UserError, match=f"Camera model {named} is not supported"):
        open_scene(tmp_path)


def test_colmap_image_of_an_unlisted_camera(tmp_path, recording):
    write.write_colmap(tmp_path, recording, COLMAP_CAMERAS[0][0], write.write_colmap_text)
    (tmp_path / "sparse" / "0" / "cameras.txt").write_text("# none\n")
    with pytest.raises(UserError, match="Camera 7 of image"):
        list(open_scene(tmp_path))


def part_of(recording, count):
    return write.Recording(images=recording.images[:count], poses=recording.poses[:count],
                           depths_mm=recording.depths_mm[:count])


@pytest.mark.parametrize("write_model", [write.write_colmap_text, write.write_colmap_binary])
def test_of_several_models_the_largest_is_read(tmp_path, recording, write_model, caplog):
    for number, count in ((0, 2), (1, 12), (10, 3)):
        write.write_colmap(tmp_path, part_of(recording, count), COLMAP_CAMERAS[1][0], write_model, f"sparse/{number}")
    for path in (tmp_path, tmp_path / "sparse", tmp_path / "sparse" / "1"):
        assert_is_recording(open_scene(path), recording)
    assert [len(open_scene(tmp_path / "sparse" / number)) for number in ("0", "1", "10")] == [2, 12, 3]
    assert len(caplog.records) == 2         # not for a model that was named
    assert "left 3 models" in caplog.text and "sparse/1 with 12 images is read, not" in caplog.text
    assert f"{tmp_path}/sparse/0 (2), {tmp_path}/sparse/10 (3)" in caplog.text


def test_a_single_model_needs_not_be_number_0(tmp_path, recording, caplog):
    write.write_colmap(tmp_path, recording, COLMAP_CAMERAS[1][0], write.write_colmap_text, "sparse/1")
    assert_is_recording(open_scene(tmp_path), recording)
    write.write_colmap(tmp_path / "nerfstudio", recording, COLMAP_CAMERAS[1][0], write.write_colmap_text,
                       "colmap/sparse/0")
    assert_is_recording(open_scene(tmp_path / "nerfstudio"), recording)
    assert not caplog.records


def comment_everywhere(text):
    return "\n".join(f"# before\n{line}" if line else line for line in text.split("\n"))


def no_points(text):
    return "".join(line + "\n" for line in text.splitlines() if line.endswith(".png"))


def empty_points(text):
    return "".join(f"{line}\n\n" for line in text.splitlines() if line.endswith(".png"))


@pytest.mark.parametrize("rewrite", [
    comment_everywhere, no_points, empty_points, lambda text: empty_points(text).rstrip(),
    lambda text: "\n\n" + text + "\n\n\n", lambda text: text.replace("\n", "\r\n"),
    lambda text: empty_points(text).replace("\n\n", "\n  \t\n"), lambda text: "\ufeff" + text,
    lambda text: text.replace("walk 1/", "walk 1\\"),
], ids=("comments", "no points", "empty points", "cut end", "blank lines", "CRLF", "spaces", "BOM", "backslashes"))
def test_colmap_text_variants(tmp_path, recording, rewrite):
    write.write_colmap(tmp_path, recording, COLMAP_CAMERAS[1][0], write.write_colmap_text)
    file = tmp_path / "sparse" / "0" / "images.txt"
    file.write_bytes(rewrite(file.read_text()).encode())
    assert_is_recording(open_scene(tmp_path), recording)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_colmap_text_of_windows(tmp_path, recording, encoding):
    write.write_colmap(tmp_path, recording, COLMAP_CAMERAS[1][0], write.write_colmap_text)
    for file in (tmp_path / "sparse" / "0").glob("*.txt"):
        file.write_text(file.read_text(), encoding=encoding, newline="\r\n")
    assert_is_recording(open_scene(tmp_path), recording)


@pytest.mark.parametrize("write_model", [write.write_colmap_text, write.write_colmap_binary])
@pytest.mark.parametrize(("model_id", "model", "count"), [
    (7, "FOV", 5), (10, "THIN_PRISM_FISHEYE", 12), (11, "RAD_TAN_THIN_PRISM_FISHEYE", 16), (12, "SIMPLE_DIVISION", 4),
    (16, "EUCM", 6)])
def test_an_unsupported_camera_costs_its_images_only(tmp_path, recording, write_model, model_id, model, count):
    write.write_colmap(tmp_path, recording, COLMAP_CAMERAS[1][0], write_model)
    folder = tmp_path / "sparse" / "0"
    if write_model is write.write_colmap_text:
        with (folder / "cameras.txt").open("a") as file:
            file.write(f"9 {model} 64 48 {'1.0 ' * count}\n")
    else:
        listed = (folder / "cameras.bin").read_bytes()[8:]
        unused = struct.pack(f"<iiQQ{count}d", 9, model_id, 64, 48, *[1.0] * count)
        (folder / "cameras.bin").write_bytes(struct.pack("<Q", 2) + unused + listed)
    assert_is_recording(open_scene(tmp_path), recording)
    if write_model is write.write_colmap_text:
        file = folder / "images.txt"
        file.write_text(file.read_text().replace(" 7 walk 1/4.png", " 9 walk 1/4.png"))
        scene = open_scene(tmp_path)
        assert len(list(scene)) == 11
        assert f"Camera model {model} is not supported" in scene.skipped[0].reason


@pytest.mark.parametrize(("orientation", "part"), [(6, r"EXIF orientation \(6\)"),
                                                   (None, "an EXIF orientation, lost since")])
def test_colmap_images_turned_by_exif_are_named(tmp_path, recording, orientation, part):
    write.write_colmap(tmp_path, recording, COLMAP_CAMERAS[1][0], write.write_colmap_text)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    for name in write.colmap_names(recording):      # stored unturned: 48x64, shown as 64x48
        Image.fromarray(np.zeros((64, 48, 3), np.uint8)).save(tmp_path / "images" / name, exif=exif)
    with pytest.raises(UserError, match=f"48x64 pixels.*{part}.*auto-orient"):
        list(open_scene(tmp_path))
