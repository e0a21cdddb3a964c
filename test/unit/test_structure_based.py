# SPDX-License-Identifier: Apache-2.0
"""The benchmark of what a user would pick instead: structure from motion and PnP, in a tiny rendered room."""

import json
import sys

import numpy as np
import pytest

from aceg_ros.benchmarks import structure_based
from aceg_ros.benchmarks.triangulate_with_colmap import PosedKeypoints, triangulate
from aceg_ros.camera import Camera
from aceg_ros.datasets import write_ace_scene
from aceg_ros.geometry import invert, look_at
from aceg_ros.synthetic.demo_room import demo_world, mapping_path, query_path


def test_matches_pass_the_ratio_test_and_are_mutual():
    rng = np.random.default_rng(0)
    b = rng.integers(0, 120, (50, 128)).astype(np.uint8)
    a = np.concatenate([b[:20], rng.integers(0, 120, (20, 128)).astype(np.uint8)])
    own, theirs = structure_based.match(structure_based.unit(a), structure_based.unit(b), mutual=True)
    assert set(range(20)) <= set(own.tolist()) and (theirs[own < 20] == own[own < 20]).all()
    twice = np.concatenate([b, b])
    assert len(structure_based.match(structure_based.unit(a[:20]), structure_based.unit(twice), mutual=False)[0]) == 0


def test_without_pycolmap_a_sentence_tells_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    (tmp_path / "scenes" / "room" / "mapping").mkdir(parents=True)
    monkeypatch.setattr(structure_based, "open_scene", lambda _: [])
    assert structure_based.main([str(tmp_path / "scenes"), "-o", str(tmp_path / "out")]) == 2
    assert "aceg_ros[colmap]" in capsys.readouterr().err


def test_points_are_triangulated_at_the_given_poses(tmp_path):
    pytest.importorskip("pycolmap", reason="needs the extra colmap")
    rng = np.random.default_rng(0)
    camera = Camera(width=640, height=480, fx=500.0, fy=510.0, cx=318.0, cy=242.0)
    points = rng.uniform((-2, 3, -1), (2, 5, 1), (40, 3))
    images = []
    for x in (-0.8, 0.0, 0.8):
        pose = look_at([x, 0.0, 0.0], [0.0, 4.0, 0.0])
        local = points @ invert(pose)[:3, :3].T + invert(pose)[:3, 3]
        images.append(PosedKeypoints(pixels=camera.project(local), camera=camera, map_from_camera=pose))
    rows = np.column_stack([np.arange(30)] * 2)         # ten keypoints have no match
    assert structure_based.on_epipolar_lines(images[0], images[2], rows).all()
    wrong = np.column_stack([rows[:, 0], rows[::-1, 1]])
    assert structure_based.on_epipolar_lines(images[0], images[2], wrong).mean() < 0.5
    found = triangulate(images, {(0, 1): rows, (1, 2): rows, (0, 2): rows}, tmp_path / "colmap")
    for of_image in found:
        assert np.abs(of_image[:30] - points[:30]).max() < 1e-4
        assert np.isnan(of_image[30:]).all()


def test_a_rendered_room_is_mapped_and_localized_by_one_command(tmp_path, capsys):
    pytest.importorskip("pycolmap", reason="needs the extra colmap")
    world = demo_world(Camera(width=320, height=240, fx=262.0, fy=260.0, cx=159.0, cy=121.0))
    for part, poses in (("mapping", mapping_path(24, world.room)), ("query", query_path(4, world.room))):
        write_ace_scene(tmp_path / "scenes" / "room" / part, (world.render_frame(pose, name=f"{number:06d}")
                                                              for number, pose in enumerate(poses)))
    (tmp_path / "scenes" / "other" / "mapping").mkdir(parents=True)
    arguments = [str(tmp_path / "scenes"), "-o", str(tmp_path / "out"), "--only", "room"]
    assert structure_based.main(arguments) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "room.json").read_text())
    assert result["frames"] == 4 and result["localized"] >= 3 and result["false_accepts"] == 0
    assert result["recall"]["0.1m_5deg"] >= 0.75
    assert result["map_bytes"] == (tmp_path / "out" / "room.npz").stat().st_size
    assert "| room | 4 |" in printed and "other" not in printed
    assert structure_based.main(arguments) == 0          # from the results that are there
    assert capsys.readouterr().out == printed
