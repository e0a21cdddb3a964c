# SPDX-License-Identifier: Apache-2.0
"""How many images of a recording are kept and used: as many as the place needs."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from aceg_ros.camera import Camera, Frame
from aceg_ros.encoders.base import load_encoder
from aceg_ros.mapping.frames import MappingFrames
from aceg_ros.mapping.viewpoints import choose_viewpoints, median_depth

DEPTH = 4.0


def walk(length_m: float, count: int) -> np.ndarray:
    """Poses (count, 4, 4) along a straight corridor, looking ahead."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, 0, 3] = np.linspace(0.0, length_m, count)
    return poses


def chosen(poses: np.ndarray, **limits: int) -> np.ndarray:
    return choose_viewpoints(poses, DEPTH, seed=0, **{"least": 50, "most": 400, **limits})


def test_a_small_place_needs_few_images_and_a_large_one_many():
    room = walk(2.0, 1000)
    assert len(chosen(room)) == 50
    corridor = walk(60.0, 1000)
    used = chosen(corridor)
    assert 120 < len(used) < 250 and len(np.unique(used)) == len(used)
    gaps = np.diff(np.sort(corridor[used, 0, 3]))
    assert gaps.max() < 2 * 0.15 * DEPTH              # no stretch is left out
    assert len(chosen(corridor, most=80)) == 80
    assert len(chosen(walk(60.0, 30))) == 30          # there are no more


def test_turns_count_as_shifts_do():
    on_the_spot = np.tile(np.eye(4), (360, 1, 1))
    on_the_spot[:, :3, :3] = Rotation.from_rotvec(np.radians(np.arange(360))[:, None] * [0.0, 1.0, 0.0]).as_matrix()
    used = chosen(on_the_spot, least=10)
    assert 24 <= len(used) <= 72
    standing = np.tile(np.eye(4), (360, 1, 1))
    assert len(chosen(standing, least=10)) == 10


def test_of_a_small_place_images_are_drawn_at_random_but_each_viewpoint_is_there():
    poses = walk(2.0, 1000)
    poses[700:705, 0, 3] = 30.0                       # a glance into another room
    used = chosen(poses)
    assert np.isin(used, np.arange(700, 705)).any()
    assert np.array_equal(used, chosen(poses))


def test_the_depth_comes_from_pairs_of_images(rendered_frames):
    poses = np.stack([frame.map_from_camera for frame in rendered_frames.prepared])
    depth = median_depth(rendered_frames.prepared, poses)
    assert 1.0 < depth < 5.0                          # of a room
    double = poses.copy()
    double[:, :3, 3] *= 2.0
    assert median_depth(rendered_frames.prepared, double) == pytest.approx(2.0 * depth)


@pytest.fixture(scope="module")
def rendered_frames(rendered_scene) -> MappingFrames:
    from aceg_ros.datasets import open_scene

    frames = MappingFrames(load_encoder("compact"), use_depth=False)
    for frame in open_scene(rendered_scene / "mapping"):
        frames.add(frame)
    return frames


def test_of_a_long_recording_images_are_kept_that_are_spread_over_it(caplog):
    camera = Camera(width=64, height=64, fx=50.0, fy=50.0, cx=31.5, cy=31.5)
    rng = np.random.default_rng(0)
    frames = MappingFrames(replace(load_encoder("compact"), short_side_px=64), use_depth=False, trust_poses=True,
                           max_frames=20)
    poses = walk(10.0, 150)
    for pose in poses:
        frames.add(Frame(image=rng.integers(0, 255, (64, 64, 3), np.uint8), camera=camera, map_from_camera=pose))
    assert 10 <= len(frames) <= 20
    assert np.allclose(frames.poses[:, 0, 3], poses[::8, 0, 3])
    with caplog.at_level(logging.INFO, "aceg_ros"):
        frames.check()
    assert "of 150 images, one in 8 is used: 19" in caplog.text
