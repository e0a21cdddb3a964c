"""The command line on a rendered room: map, info, localize, evaluate; and bad usage and bad files."""

import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from aceg_ros.cli import main
from aceg_ros.datasets import open_scene, write_ace_scene
from aceg_ros.geometry import pose_error
from aceg_ros.methods.base import make_localizer
from aceg_ros.scene_map import SceneMap


def test_map_is_described(rendered_map, capsys):
    assert main(["info", str(rendered_map)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"method: ace\n", text) and re.search(r"encoder: compact:[0-9a-f]{16}", text)
    assert re.search(r"frames: 48\n", text) and "640x480, f 525.0 520.0" in text


def test_map_holds_cloud_and_trajectory(rendered_map, rendered_scene):
    scene_map = SceneMap.load(rendered_map)
    assert 1000 < len(scene_map.cloud_xyz) <= 50_000
    poses = np.stack([frame.map_from_camera for frame in open_scene(rendered_scene / "mapping")])
    assert np.allclose(scene_map.trajectory, poses, atol=1e-5)
    low, high = scene_map.bounds
    assert (np.array(low) > -8).all() and (np.array(high) < 8).all(), "the room is 6.6 x 4.7 x 2.5 m"


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
    assert {path.name for path in report.iterdir()} == {"summary.json", "frames.csv", "truth.tum", "estimated.tum",
                                                        "trajectory.png", "errors.png"}


def test_localize_gives_the_poses_that_evaluate_judges(rendered_map, rendered_scene, tmp_path, capsys):
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


def test_pictures_of_another_place_are_refused(rendered_map, tmp_path, capsys):
    from aceg_ros.synthetic.demo import World
    from aceg_ros.synthetic.demo import query_path as path
    from aceg_ros.synthetic.room import random_room
    from aceg_ros.synthetic.textures import make_atlas, paint_tiles
    other = World(random_room(13, 40), make_atlas(paint_tiles(40, 77)))
    write_ace_scene(tmp_path / "other", [other.photograph(pose, name=f"{i:06d}")
                                         for i, pose in enumerate(path(6, other.room))])
    assert main(["evaluate", str(rendered_map), str(tmp_path / "other")]) == 0
    assert json.loads(capsys.readouterr().out)["localized"] == 0


@pytest.mark.parametrize(("arguments", "expected"), [
    (["map", "nowhere", "-o", "x.map"], "nowhere"),
    (["evaluate", "none.map", "nowhere"], "no map file none.map"),
    (["info", "none.map"], "no map file none.map"),
    (["map", "nowhere", "-o", "x.map", "--budget", "-3"], "number of seconds"),
    (["map", "nowhere"], "-o"),
    (["map", "nowhere", "-o", "x.map", "--method", "magic"], "Unknown method 'magic'|nowhere"),
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


def test_a_scene_of_one_picture_or_of_broken_poses_makes_no_map(rendered_scene, tmp_path, capsys):
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


def test_ctrl_c_keeps_the_map_so_far(rendered_scene, tmp_path):
    process = subprocess.Popen([sys.executable, "-m", "aceg_ros.cli", "map", str(rendered_scene / "query"), "-o",
                                str(tmp_path / "x.map"), "--budget", "60"], stderr=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("training"):
            process.send_signal(signal.SIGINT)
            break
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "stopped early" in output
    figures = SceneMap.load(tmp_path / "x.map").figures
    assert not figures.complete and figures.iterations > 0 and figures.mapping_s < 55


def test_measured_depth_makes_better_points_in_the_same_time(rendered_scene, tmp_path):
    """Share of predicted scene coordinates within 25 cm of the rendered ones, over the mapping pictures."""
    frames = list(open_scene(rendered_scene / "mapping", every=6))

    def right(options) -> float:
        path = tmp_path / "x.map"
        assert main(["map", str(rendered_scene / "mapping"), "-o", str(path), "--budget", "20", *options]) == 0
        localizer = make_localizer(SceneMap.load(path), "cpu")
        shares = []
        for frame in frames:
            seen = localizer.scene_coordinates(frame)
            depth = frame.depth_m[seen.pixels[:, 1].astype(int), seen.pixels[:, 0].astype(int)]
            rays = np.column_stack([(seen.pixels - (frame.camera.cx, frame.camera.cy))
                                    / (frame.camera.fx, frame.camera.fy), np.ones(len(depth))])
            truth = (rays * depth[:, None]) @ frame.map_from_camera[:3, :3].T + frame.map_from_camera[:3, 3]
            shares.append((np.linalg.norm(truth - seen.points, axis=1) < 0.25).mean())
        return float(np.mean(shares))

    assert right(["--use-depth"]) > right([]) + 0.05


def test_a_camera_that_stands_still_makes_no_map(rendered_scene, tmp_path, capsys):
    frame = next(iter(open_scene(rendered_scene / "query")))
    write_ace_scene(tmp_path / "still", [frame] * 6)
    assert main(["map", str(tmp_path / "still"), "-o", str(tmp_path / "x.map")]) == 2
    assert "parallax" in capsys.readouterr().err


def test_damaged_frames_are_counted_and_named(rendered_scene, rendered_map, tmp_path, capsys):
    frames = list(open_scene(rendered_scene / "query"))[:4]
    write_ace_scene(tmp_path / "some", frames)
    pictures = sorted((tmp_path / "some" / "rgb").iterdir())
    pictures[1].write_bytes(pictures[1].read_bytes()[:2000])
    assert main(["evaluate", str(rendered_map), str(tmp_path / "some")]) == 0
    streams = capsys.readouterr()
    content = json.loads(streams.out)
    assert (content["frames"], content["skipped"]) == (3, 1) and pictures[1].name in streams.err


def test_a_picture_of_unknown_size_needs_a_camera(rendered_map, rendered_scene, tmp_path, capsys):
    import cv2
    picture = cv2.imread(str(next((rendered_scene / "query" / "rgb").iterdir())))
    cv2.imwrite(str(tmp_path / "small.png"), cv2.resize(picture, (320, 240)))
    assert main(["localize", str(rendered_map), str(tmp_path / "small.png")]) == 2
    assert "--camera" in capsys.readouterr().err
    (tmp_path / "k.txt").write_text("262.5 0 158.75\n0 260 120.75\n0 0 1\n")
    assert main(["localize", str(rendered_map), str(tmp_path / "small.png"), "--camera", str(tmp_path / "k.txt")]) == 0
