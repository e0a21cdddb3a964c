# SPDX-License-Identifier: Apache-2.0
"""The command line on a rendered room: map, info, localize, evaluate; and bad usage and bad files."""

import io
import json
import re
import signal
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import two_walls
from PIL import Image

from aceg_ros.camera import Camera
from aceg_ros.cli import main
from aceg_ros.datasets import open_scene, write_ace_scene
from aceg_ros.errors import UserError
from aceg_ros.geometry import pose_error
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.train_head import HeadTrainingOptions
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.ace_mapper import AceMapper, AceSettings
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.registry import make_localizer
from aceg_ros.utils.progress import MappingProgressBar, Progress


def test_map_is_described(rendered_map, capsys):
    assert main(["info", str(rendered_map)]) == 0
    text = capsys.readouterr().out
    assert "method: ace_g" in text and re.search(r"encoder: compact4, as compact3:[0-9a-f]{16}", text)
    assert "48 images of 1 camera (640x480, f 525.0 520.0, 63 degrees wide)" in text
    assert re.search(r"48 keyframes with [\d,]+ landmarks, seen [\d,]+ times", text)
    assert "rigs of several cameras" in text and "nan" not in text and not re.search(r"\d\.\d{5}", text)


def test_map_holds_cloud_and_trajectory(rendered_map, rendered_scene):
    scene_map = SceneMap.load(rendered_map)
    assert 1000 < len(scene_map.cloud_xyz) <= 50_000
    poses = np.stack([frame.map_from_camera for frame in open_scene(rendered_scene / "mapping")])
    assert np.allclose(scene_map.trajectory, poses, atol=1e-5)
    low, high = scene_map.bounds
    assert (np.array(low) > -8).all() and (np.array(high) < 8).all(), "the room is 6.2 x 3.9 x 2.5 m"


def test_evaluate_on_another_drive_in_another_light(rendered_map, rendered_scene, tmp_path, capsys):
    report = tmp_path / "report"
    assert main(["evaluate", str(rendered_map), str(rendered_scene / "query"), "--json", str(tmp_path / "e.json"),
                 "--report", str(report)]) == 0
    content = json.loads((tmp_path / "e.json").read_text())
    assert json.loads(capsys.readouterr().out) == content == json.loads((report / "summary.json").read_text())
    assert {"frames", "localized", "refused", "median_translation_m", "median_rotation_deg", "recall", "latency_ms",
            "stage_ms", "map_bytes", "mapping_s", "method", "encoder", "device", "seed"} <= set(content)
    assert set(content["recall"]) == {"0.05m_5deg", "0.1m_5deg", "0.25m_5deg", "0.5m_5deg"}
    assert content["frames"] == 12 == content["localized"] + sum(content["refused"].values())
    assert content["recall"]["0.5m_5deg"] >= 0.5
    assert content["consistency"]["inside_95"] >= 0.75 and content["false_accepts"] == 0
    assert {path.name for path in report.iterdir()} == {"summary.json", "frames.csv", "truth.tum", "estimated.tum",
                                                        "trajectory.png", "errors.png", "report.html"}


def test_localize_gives_the_poses_that_evaluate_measures(rendered_map, rendered_scene, tmp_path, capsys):
    images = sorted((rendered_scene / "query" / "rgb").iterdir())[:4]
    assert main(["localize", str(rendered_map), *map(str, images), "--json", str(tmp_path / "a.json"),
                 "-o", str(tmp_path / "poses.tum")]) == 0
    answers = json.loads((tmp_path / "a.json").read_text())["images"]
    accepted = [answer for answer in answers if answer["status"] == "accepted"]
    assert len(answers) == 4 and accepted
    lines = (tmp_path / "poses.tum").read_text().splitlines()
    assert len(lines) == len(accepted) and all(len(line.split()) == 8 for line in lines)
    truth = {str(image): frame.map_from_camera for image, frame in
             zip(images, open_scene(rendered_scene / "query"), strict=False)}
    errors = [pose_error(np.array(answer["map_from_camera"]), truth[answer["image"]])[0] for answer in accepted]
    assert np.median(errors) < 0.5
    for answer in answers:
        assert (answer["map_from_camera"] is None) == (answer["status"] != "accepted") and answer["message"]


def test_images_of_another_scene_are_rejected(rendered_map, tmp_path, capsys):
    from aceg_ros.synthetic.demo_room import World
    from aceg_ros.synthetic.demo_room import query_path as path
    from aceg_ros.synthetic.room import random_room
    from aceg_ros.synthetic.textures import make_atlas, paint_tiles
    other = World(room=random_room(13, 40), atlas=make_atlas(paint_tiles(40, 77)))
    write_ace_scene(tmp_path / "other", [other.render_frame(pose, name=f"{i:06d}")
                                         for i, pose in enumerate(path(6, other.room))])
    assert main(["evaluate", str(rendered_map), str(tmp_path / "other")]) == 0
    assert json.loads(capsys.readouterr().out)["localized"] == 0


@pytest.mark.parametrize(("arguments", "expected"), [
    (["map", "nowhere", "-o", "x.map"], "nowhere"),
    (["evaluate", "none.map", "nowhere"], "no map file none.map"),
    (["info", "none.map"], "no map file none.map"),
    (["map", "nowhere", "-o", "x.map", "--budget", "-3"], "number of seconds"),
    (["map", "nowhere"], "-o"),
    (["map", "nowhere", "-o", "x.map", "--method", "magic"], "Unknown method 'magic'"),
    (["map", "nowhere", "-o", "x.map", "--seed", "-1"], "--seed"),
    (["frobnicate"], "frobnicate"),
])
def test_bad_usage_is_one_sentence_and_exit_code_2(arguments, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    message = capsys.readouterr().err
    assert code == 2 and re.search(expected, message) and "Traceback" not in message


def test_a_scene_of_one_image_or_of_broken_poses_makes_no_map(rendered_scene, tmp_path, capsys):
    frames = list(open_scene(rendered_scene / "query"))
    write_ace_scene(tmp_path / "one", frames[:1])
    assert main(["map", str(tmp_path / "one"), "-o", str(tmp_path / "x.map")]) == 2
    assert "at least" in capsys.readouterr().err
    write_ace_scene(tmp_path / "nan", frames[:6])
    for pose in (tmp_path / "nan" / "poses").iterdir():
        pose.write_text("nan " * 16)
    assert main(["map", str(tmp_path / "nan"), "-o", str(tmp_path / "x.map")]) == 2
    message = capsys.readouterr().err
    assert "no usable frame" in message and "Traceback" not in message
    assert not (tmp_path / "x.map").exists()


def test_a_mapping_that_fails_tells_why_frames_were_skipped(tmp_path, capsys):
    frames = two_walls.frames(two_walls.drive(10))
    frames[1] = replace(frames[1], image=np.zeros_like(frames[1].image))
    write_ace_scene(tmp_path / "scene", frames)
    for number in range(2, 8):
        (tmp_path / "scene" / "poses" / f"{number:06d}.txt").unlink()
    assert main(["map", str(tmp_path / "scene"), "-o", str(tmp_path / "x.map")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("aceg: A map needs at least 5 usable posed images, here are 3")
    assert "Skipped frames: 7." in last
    assert re.search(r"poses/000002\.txt is missing\. \(5 more like it\.\) Frame 000001\.png: ", last)


def test_depth_that_cannot_be_used_is_told_if_it_was_asked_for(tmp_path, capsys):
    write_ace_scene(tmp_path, two_walls.frames(two_walls.drive(8), depth=True))
    for file in (tmp_path / "depth").iterdir():
        Image.fromarray(np.full((100, 200), 2000, np.uint16)).save(file)
    assert main(["map", str(tmp_path), "-o", str(tmp_path / "x.map"), "--use-depth"]) == 2
    message = capsys.readouterr().err
    assert "has 200x100 pixels, the colour image 320x240: the aspect ratios differ" in message
    assert "(7 more like it.)" in message


def test_images_with_a_camera_each_have_one_to_localize_with(rendered_map, tmp_path):
    scene_map = SceneMap.load(rendered_map)
    camera = scene_map.cameras[0]
    cameras = [replace(camera, fx=camera.fx + 0.05 * number, cy=camera.cy - 0.1 * number) for number in range(-20, 21)]
    many = replace(scene_map, cameras=(*cameras, replace(camera, width=320, height=240)))
    assert many.camera_of_size(camera.width, camera.height) == camera
    with pytest.raises(UserError, match=r"82 cameras, which differ, of .*--camera FILE \(ROS camera_info YAML"):
        replace(many, cameras=(*cameras, *(replace(camera, fx=1.5 * each.fx) for each in cameras))).camera_of_size(
            camera.width, camera.height)


@pytest.mark.slow
def test_ctrl_c_keeps_the_map_so_far(rendered_scene, tmp_path):
    process = subprocess.Popen([sys.executable, "-m", "aceg_ros.cli", "map", str(rendered_scene / "query"), "-o",
                                str(tmp_path / "x.map"), "--method", "ace", "--budget", "60"], stderr=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("training"):
            process.send_signal(signal.SIGINT)
            break
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "stopped early" in output
    statistics = SceneMap.load(tmp_path / "x.map").statistics
    assert not statistics.complete and statistics.iterations > 0 and statistics.mapping_s < 55


@pytest.mark.slow
def test_measured_depths_train_as_well_as_triangulated_ones(rendered_scene):
    """Share of scene coordinates within 25 cm of the rendered ones after the same number of steps; measured depths of
    all patches alike have 0.18 of them right, triangulated ones 0.35."""
    frames = list(open_scene(rendered_scene / "mapping", every=2))
    settings = AceSettings(width=128, buffer=len(frames) * 500, patches_per_image=500, fill_share=0.5,
                           training=HeadTrainingOptions(iterations=250, batch=1024))

    def right(use_depth: bool) -> float:
        mapper = AceMapper(MappingOptions(device="cpu", use_depth=use_depth), settings=settings)
        for frame in frames:
            mapper.add(frame)
        localizer = make_localizer(mapper.build(MappingBudget.start(1e4)), "cpu")
        shares = []
        for frame in frames[::4]:
            seen = localizer.scene_coordinates(frame)
            depth = frame.depth_m[seen.pixels[:, 1].astype(int), seen.pixels[:, 0].astype(int)]
            rays = np.column_stack([(seen.pixels - (frame.camera.cx, frame.camera.cy))
                                    / (frame.camera.fx, frame.camera.fy), np.ones(len(depth))])
            truth = (rays * depth[:, None]) @ frame.map_from_camera[:3, :3].T + frame.map_from_camera[:3, 3]
            shares.append((np.linalg.norm(truth - seen.points, axis=1) < 0.25).mean())
        return float(np.mean(shares))

    measured, triangulated = right(use_depth=True), right(use_depth=False)
    assert measured > max(0.27, triangulated - 0.05), (measured, triangulated)


def test_a_camera_that_stands_still_makes_no_map(rendered_scene, tmp_path, capsys):
    frame = next(iter(open_scene(rendered_scene / "query")))
    write_ace_scene(tmp_path / "still", [frame] * 6)
    assert main(["map", str(tmp_path / "still"), "-o", str(tmp_path / "x.map")]) == 2
    assert "parallax" in capsys.readouterr().err
    # Depth images fix the scale where parallax cannot.
    assert main(["map", str(tmp_path / "still"), "-o", str(tmp_path / "x.map"), "--use-depth", "--budget", "8"]) == 0


def test_dark_frames_are_skipped_and_distorted_cameras_are_kept(rendered_scene, tmp_path, capsys):
    """A lens cap in the middle of a drive costs that frame only; the map remembers the lens for `aceg localize`."""
    camera = Camera(width=640, height=480, fx=525.0, fy=520.0, cx=318.0, cy=242.0, model="plumb_bob",
                    distortion=(-0.1, 0.02, 0.0, 0.0))
    frames = list(open_scene(rendered_scene / "query"))
    folder = tmp_path / "nerfstudio"
    (folder / "images").mkdir(parents=True)
    entries = []
    for number, frame in enumerate(frames):
        image = np.zeros_like(frame.image) if number == 3 else frame.image
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image[..., ::-1])
        pose = frame.map_from_camera @ np.diag([1.0, -1.0, -1.0, 1.0])
        entries.append({"file_path": f"images/{number}.png", "transform_matrix": pose.tolist()})
    k1, k2, p1, p2 = camera.distortion
    (folder / "transforms.json").write_text(json.dumps({
        "w": 640, "h": 480, "fl_x": camera.fx, "fl_y": camera.fy, "cx": camera.cx + 0.5, "cy": camera.cy + 0.5,
        "k1": k1, "k2": k2, "p1": p1, "p2": p2, "frames": entries}))
    assert main(["map", str(folder), "-o", str(tmp_path / "x.map"), "--budget", "10"]) == 0
    assert "1 of 12 frames skipped" in capsys.readouterr().err
    scene_map = SceneMap.load(tmp_path / "x.map")
    assert (scene_map.statistics.frames, scene_map.statistics.skipped) == (11, 1)
    assert [(c.model, c.distortion[:4]) for c in scene_map.cameras] == [("plumb_bob", camera.distortion)]
    dark = str(folder / "images" / "3.png")
    assert main(["localize", str(tmp_path / "x.map"), dark]) == 0
    assert "bad_image" in capsys.readouterr().out


def test_images_of_different_sizes_make_one_map(rendered_scene, tmp_path, capsys):
    frames = list(open_scene(rendered_scene / "query"))
    small = [replace(frame, image=cv2.resize(frame.image, (320, 240)), camera=frame.camera.resized(320, 240),
                     depth_m=None) if number % 2 else frame for number, frame in enumerate(frames)]
    write_ace_scene(tmp_path / "mixed", small)
    assert main(["map", str(tmp_path / "mixed"), "-o", str(tmp_path / "x.map"), "--budget", "10"]) == 0
    assert {(c.width, c.height) for c in SceneMap.load(tmp_path / "x.map").cameras} == {(640, 480), (320, 240)}


def test_one_unreadable_image_does_not_cost_the_others(rendered_map, rendered_scene, tmp_path, capsys):
    good = str(next((rendered_scene / "query" / "rgb").iterdir()))
    (tmp_path / "bad.png").write_bytes(b"not an image")
    bad, result = str(tmp_path / "bad.png"), tmp_path / "a.json"
    assert main(["localize", str(rendered_map), bad, good, "--json", str(result)]) == 2
    answers = json.loads(result.read_text())["images"]
    assert len(answers) == 2 and answers[0]["status"] == "bad_image" and "bad.png" in answers[0]["message"]
    assert "1 of 2 images" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["map", "evaluate"])
def test_outputs_that_cannot_be_written_are_found_before_the_work(verb, rendered_map, rendered_scene, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    target = str(tmp_path / "file" / "x")
    arguments = ["map", str(rendered_scene / "query"), "-o", target] if verb == "map" else \
        ["evaluate", str(rendered_map), str(rendered_scene / "query"), "--json", target]
    assert main(arguments) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_bar_moves_on_a_terminal(monkeypatch):
    """The bar starts anew with every stage, and shows the error while training."""
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with MappingProgressBar() as bar:
        for fraction in np.linspace(0, 1, 5):
            bar.show(Progress(stage="encoding images", fraction=fraction, remaining_s=10.0))
        for fraction in np.linspace(0, 1, 5):
            bar.show(Progress(stage="training", fraction=fraction, remaining_s=10.0,
                              reprojection_px=50.0 - 10 * fraction))
    assert "training" in stream.getvalue() and "47.5 px" in stream.getvalue() and "40.0 px" in stream.getvalue()


def test_damaged_frames_are_counted_and_named(rendered_scene, rendered_map, tmp_path, capsys):
    frames = list(open_scene(rendered_scene / "query"))[:4]
    write_ace_scene(tmp_path / "some", frames)
    images = sorted((tmp_path / "some" / "rgb").iterdir())
    images[1].write_bytes(images[1].read_bytes()[:2000])
    assert main(["evaluate", str(rendered_map), str(tmp_path / "some")]) == 0
    streams = capsys.readouterr()
    content = json.loads(streams.out)
    assert (content["frames"], content["skipped"]) == (3, 1) and images[1].name in streams.err


def test_an_image_of_unknown_size_needs_a_camera(rendered_map, rendered_scene, tmp_path, capsys):
    image = cv2.imread(str(next((rendered_scene / "query" / "rgb").iterdir())))
    cv2.imwrite(str(tmp_path / "small.png"), cv2.resize(image, (320, 240)))
    assert main(["localize", str(rendered_map), str(tmp_path / "small.png")]) == 2
    assert "--camera" in capsys.readouterr().err
    (tmp_path / "k.txt").write_text("262.5 0 158.75\n0 260 120.75\n0 0 1\n")
    assert main(["localize", str(rendered_map), str(tmp_path / "small.png"), "--camera", str(tmp_path / "k.txt")]) == 0
