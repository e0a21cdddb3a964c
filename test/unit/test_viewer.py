# SPDX-License-Identifier: Apache-2.0
"""What is shown in Rerun, saved to a file; only where Rerun is installed (pip install rerun-sdk)."""

import sys

import pytest

from aceg_ros.cli import main
from aceg_ros.datasets import open_scene
from aceg_ros.estimate import PoseEstimate, Status
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.registry import make_localizer


def test_without_rerun_the_user_is_told(rendered_map, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert main(["view", str(rendered_map), "--save", str(tmp_path / "a.rrd")]) == 2
    assert "pip install rerun-sdk" in capsys.readouterr().err


def test_a_map_and_a_drive_are_saved(rendered_map, rendered_scene, tmp_path, capsys):
    pytest.importorskip("rerun", reason="needs rerun-sdk")
    file = tmp_path / "drive.rrd"
    assert main(["view", str(rendered_map), str(rendered_scene / "query"), "--save", str(file)]) == 0
    assert "12 frames shown" in capsys.readouterr().out
    content = file.read_bytes()
    for entity in (b"map/cloud", b"map/camera/image", b"map/truth", b"status"):
        assert entity in content


def test_an_image_is_drawn_beside_the_keyframes_that_look_most_like_it(rendered_map, rendered_scene):
    from aceg_ros.methods.scene_coordinates import encoder_of
    from aceg_ros.visualization.shortlist import GAP_PX, KEYFRAMES, ShortlistDrawing

    scene_map = SceneMap.load(rendered_map)
    frame = open_scene(rendered_scene / "query").frame(0)
    drawing = ShortlistDrawing(scene_map, encoder_of(scene_map, "cpu"))
    estimate = make_localizer(scene_map, "cpu").localize(frame)
    image = drawing.draw(frame, estimate)
    assert estimate.accepted and image.shape[0] % KEYFRAMES == 0 and image.shape[1] > 2 * GAP_PX
    greenish = (image[..., 1].astype(int) - image[..., [0, 2]].max(-1) > 100).sum()
    rejected = PoseEstimate(status=Status.NO_CONSENSUS, message="")
    without = drawing.draw(frame, rejected)
    assert greenish > 500 > (without[..., 1].astype(int) - without[..., [0, 2]].max(-1) > 100).sum()
