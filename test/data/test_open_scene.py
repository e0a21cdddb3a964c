# SPDX-License-Identifier: Apache-2.0
"""Opening scenes: every n-th frame, access by index, names, unusable paths; the recorded scenes beside the checkout."""

import datasets_fixtures as write
import numpy as np
import pytest
from datasets_fixtures import CAMERA, assert_is_recording, make_recording

from aceg_ros.datasets import load_image, open_scene, open_scenes
from aceg_ros.datasets.scene import grouped_reasons
from aceg_ros.errors import UserError
from aceg_ros.geometry import is_pose


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


def test_one_image_is_a_scene(tmp_path):
    recording = make_recording(1)
    write.write_ace(tmp_path, recording, CAMERA)
    assert_is_recording(open_scene(tmp_path), recording)


def test_images_are_decoded_one_by_one(tmp_path, recording, monkeypatch):
    write.write_ace(tmp_path, recording, CAMERA)
    decoded = []
    monkeypatch.setattr("aceg_ros.datasets.ace.load_image", lambda path: decoded.append(path) or load_image(path))
    frames = iter(open_scene(tmp_path))
    next(frames)
    assert [path.name for path in decoded] == ["0.png"]


def test_the_name_is_that_of_scene_and_part(tmp_path, recording):
    write.write_ace(tmp_path / "kitchen" / "query", recording, CAMERA)
    scene = open_scene(tmp_path / "kitchen" / "query")
    assert (scene.name, scene.format) == ("kitchen/query", "ACE folder")


def test_the_folders_that_were_probably_meant_are_named(tmp_path, recording):
    for part in ("mapping", "query"):
        write.write_ace(tmp_path / "kitchen" / part, recording, CAMERA)
    with pytest.raises(UserError, match=r"Did you mean \S+/kitchen/mapping or \S+/kitchen/query\?$"):
        open_scene(tmp_path / "kitchen")
    with pytest.raises(UserError, match=r"Did you mean \S+/kitchen/query\?$"):
        open_scene(tmp_path / "kitchen" / "query" / "rgb")


def test_reasons_of_skipped_frames_are_grouped():
    missing = [f"Image /data/set 1/images/{number}.png is missing." for number in range(5)]
    reasons = ["Frame 7.png: The image is black.", *missing, "Pose file /data/poses/9.txt holds 3 numbers."]
    assert grouped_reasons(reasons) == [f"{missing[0]} (4 more like it.)", reasons[0], reasons[-1]]
    assert grouped_reasons(reasons, limit=1) == [f"{missing[0]} (4 more like it.)", "And 2 more, for other reasons."]
    assert grouped_reasons([]) == []


def test_unusable_paths_are_rejected(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_scene(tmp_path / "absent")
    with pytest.raises(UserError, match=r"expected rgb/.*TrainSplit.*groundtruth.*cameras.*transforms\.json"):
        open_scene(tmp_path)
    (tmp_path / "rgb").mkdir()
    (tmp_path / "poses").mkdir()
    with pytest.raises(UserError, match="lists no frames"):
        open_scene(tmp_path)
    with pytest.raises(UserError, match="at least 1"):
        open_scene(tmp_path, every=0)
    (tmp_path / "image.png").write_bytes(b"")
    with pytest.raises(UserError, match="expected"):
        open_scene(tmp_path / "image.png")

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


def test_several_recordings_are_read_one_after_the_other(tmp_path, recording):
    for name in ("day", "night"):
        write.write_ace(tmp_path / name, recording, CAMERA)
    (tmp_path / "night" / "poses" / "4.txt").unlink()
    both = open_scenes([tmp_path / "day", tmp_path / "night"], every=2)
    names = [frame.name for frame in open_scene(tmp_path / "day", every=2)]
    assert [frame.name for frame in both] == [*names, *(name for name in names if name != "4.png")]
    assert len(both) == 2 * len(names) and [skipped.name for skipped in both.skipped] == ["4.png"]
    with pytest.raises(UserError, match="nowhere does not exist"):
        open_scenes([tmp_path / "day", tmp_path / "nowhere"])
