# SPDX-License-Identifier: Apache-2.0
"""Images and poses that do not agree are recognised before mapping, with the convention that would agree."""

import re
from dataclasses import replace

import numpy as np
import pytest
import two_walls
from scipy.spatial.transform import Rotation

from aceg_ros.camera import Frame
from aceg_ros.encoders.base import load_encoder
from aceg_ros.errors import UserError
from aceg_ros.geometry import invert
from aceg_ros.mapping.augmentation import PreparedFrame, prepare_frame
from aceg_ros.mapping.frames import MappingFrames
from aceg_ros.mapping.image_pairs import PairFinder
from aceg_ros.mapping.pose_agreement import CONTRADICTION, check_poses, compare

OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
OPTICAL_FROM_BODY = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def drive():
    """Prepared frames, their poses, and the pairs found among them."""
    frames = [prepare_frame(frame, 240, 8) for frame in two_walls.frames(two_walls.drive())]
    return frames, np.stack([frame.map_from_camera for frame in frames]), PairFinder(frames).find()


def wxyz_read_as_xyzw(poses):
    x, y, z, w = Rotation.from_matrix(poses[:, :3, :3]).as_quat().T
    wrong = poses.copy()
    wrong[:, :3, :3] = Rotation.from_quat(np.column_stack([w, x, y, z])).as_matrix()
    return wrong


def mounted(rotation, lever=(0.0, 0.0, 0.0)):
    """Poses of a frame in which the camera is mounted."""
    camera_from_frame = np.eye(4)
    camera_from_frame[:3, :3], camera_from_frame[:3, 3] = rotation, lever
    return lambda poses: poses @ camera_from_frame


def in_units(factor):
    return lambda poses: np.diag([factor, factor, factor, 1.0]) @ poses @ np.diag([1 / factor] * 3 + [1.0])


def test_good_poses_pass_with_a_margin(drive):
    frames, poses, pairs = drive
    agreement = compare(pairs, poses)
    assert len(pairs) >= 7 and agreement.problem is None
    assert np.median(agreement.disagreement) < CONTRADICTION / 6
    assert check_poses(frames, [None] * len(frames)) is None


@pytest.mark.parametrize(("degrees", "metres"), [(1.0, 0.02), (2.0, 0.05)])
def test_inexact_poses_pass(drive, degrees, metres):
    _, poses, pairs = drive
    rng = np.random.default_rng(0)
    noise = np.tile(np.eye(4), (len(poses), 1, 1))
    noise[:, :3, :3] = Rotation.from_rotvec(np.radians(degrees) * rng.normal(size=(len(poses), 3))).as_matrix()
    noise[:, :3, 3] = metres * rng.normal(size=(len(poses), 3))
    assert compare(pairs, poses @ noise).problem is None


@pytest.mark.parametrize(("spoil", "words"), [
    (invert, "look like world-to-camera"),
    (mounted(OPENGL[:3, :3]), "OpenGL axes"),
    (lambda poses: invert(poses @ OPENGL), "world-to-camera.* and then like those of a camera with OpenGL axes"),
    (mounted(OPTICAL_FROM_BODY[:3, :3]), "body frame"),
    (mounted(OPTICAL_FROM_BODY[:3, :3], (0.0, 0.3, -0.1)), "body frame"),
    (mounted(Rotation.from_euler("xyz", (-100, 25, 70), degrees=True).as_matrix()), "rotated by 1[0-9][0-9] degrees"),
    (lambda poses: np.diag([1, -1, 1, 1]) @ poses @ np.diag([1, -1, 1, 1]), "left-handed"),
    (wxyz_read_as_xyzw, "w x y z"),
    (lambda poses: poses[np.random.default_rng(0).permutation(len(poses))], "each image has its own pose"),
    (lambda poses: poses[::-1], "reverse order"),
    (lambda poses: poses[sorted(range(len(poses)), key=str)], "names as text"),
], ids=("world-to-camera", "OpenGL", "both", "body", "base_link", "mounted", "left-handed", "quaternions", "shuffled",
        "reversed", "as text"))
def test_wrong_poses_are_rejected_by_name(drive, spoil, words):
    _, poses, pairs = drive
    problem = compare(pairs, spoil(poses)).problem
    assert problem is not None and problem.startswith("The images and the poses do not agree") and problem.endswith(".")
    assert re.search(words, problem), problem


def test_too_few_images_tell_nothing(drive):
    frames, poses, _ = drive
    assert compare([], poses).problem is None
    assert check_poses(frames[:1] * 6, [None] * 6) is None              # a camera that stands still
    noise = np.random.default_rng(0)
    unrelated = [Frame(image=noise.integers(0, 256, (240, 320, 3), np.uint8), camera=two_walls.CAMERA,
                                 map_from_camera=pose) for pose in poses]
    assert check_poses([prepare_frame(frame, 240, 8) for frame in unrelated], [None] * len(poses)) is None


def test_a_rotating_camera_passes():
    poses = two_walls.drive()
    poses[:, :3, 3] = (0.3, 0.1, 0.0)
    frames = [prepare_frame(frame, 240, 8) for frame in two_walls.frames(poses)]
    assert len(PairFinder(frames).find()) >= 7
    assert check_poses(frames, [2.0] * len(frames)) is None


def test_a_standing_camera_that_sees_things_move_passes(drive):
    frames, poses, _ = drive
    standing = []
    for number in range(len(frames)):
        image = frames[0].image.copy()
        left = 8 * number
        image[60:180, left:left + 110] = frames[5].image[60:180, 100:210]          # a fifth of the image goes by
        standing.append(PreparedFrame(image=image, camera=frames[0].camera, mask=None, map_from_camera=poses[0]))
    assert check_poses(standing, [None] * len(standing)) is None


def test_units_other_than_metres(drive):
    frames, poses, pairs = drive

    def check(factor, measured_m):
        scaled = [PreparedFrame(image=frame.image, camera=frame.camera, mask=frame.mask, map_from_camera=pose)
                  for frame, pose in zip(frames, in_units(factor)(poses), strict=True)]
        return check_poses(scaled, [measured_m] * len(frames))

    assert compare(pairs, in_units(1000.0)(poses)).problem is None      # epipolar lines have no scale
    assert check(1.0, 3.3) is None and check(3.0, None) is None
    assert "millimetres" in check(1000.0, None)
    with pytest.raises(UserError, match=r"look like millimetres.* divide their translations by 1000\."):
        check(1000.0, 3.3)
    with pytest.raises(UserError, match="look like centimetres"):
        check(100.0, 3.3)
    with pytest.raises(UserError, match="times those of the depth images"):
        check(20.0, 3.3)


def test_no_random_numbers_are_drawn(drive):
    import torch

    frames, _, _ = drive
    before = np.random.get_state()[1].tobytes(), torch.random.get_rng_state()
    check_poses(frames, [None] * len(frames))
    assert np.random.get_state()[1].tobytes() == before[0] and torch.equal(torch.random.get_rng_state(), before[1])


@pytest.mark.parametrize("use_depth", [False, True])
def test_mapping_ends_before_it_begins(use_depth, caplog):
    def collected(spoil):
        frames = MappingFrames(load_encoder("compact", "cpu"), use_depth)
        for frame in two_walls.frames(two_walls.drive(), depth=True):
            frames.add(replace(frame, map_from_camera=spoil(frame.map_from_camera[None])[0],
                               depth_m=frame.depth_m if use_depth else None))
        return frames

    collected(lambda poses: poses).check()
    assert not caplog.records
    with pytest.raises(UserError, match="look like world-to-camera"):
        collected(invert).check()
    if use_depth:
        with pytest.raises(UserError, match="look like millimetres"):
            collected(in_units(1000.0)).check()
    else:
        collected(in_units(1000.0)).check()
        assert [record.levelname for record in caplog.records] == ["WARNING"] and "millimetres" in caplog.text


def test_poses_can_be_trusted():
    for trust_poses in (True, False):
        frames = MappingFrames(load_encoder("compact", "cpu"), False, trust_poses=trust_poses)
        for frame in two_walls.frames(two_walls.drive()):
            frames.add(replace(frame, map_from_camera=invert(frame.map_from_camera)))
        if trust_poses:
            frames.check()
        else:
            with pytest.raises(UserError, match="world-to-camera"):
                frames.check()


@pytest.mark.parametrize("count", [5, 8, 12])
def test_a_few_images_in_another_order(count):
    """Of 20 orders in which three of four images have the pose of another, nine of ten are noticed."""
    frames = [prepare_frame(frame, 240, 8) for frame in two_walls.frames(two_walls.drive(count))]
    poses, pairs = np.stack([frame.map_from_camera for frame in frames]), PairFinder(frames).find()
    rng = np.random.default_rng(1)
    orders = [order for order in (rng.permutation(count) for _ in range(60))
              if (order != np.arange(count)).mean() >= 0.75][:20]
    noticed = [compare(pairs, poses[order]).problem is not None for order in orders]
    assert len(orders) == 20 and np.mean(noticed) >= 0.9
