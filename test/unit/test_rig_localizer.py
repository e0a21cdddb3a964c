# SPDX-License-Identifier: Apache-2.0
"""Localizing rigs of cameras in a made-up world of four walls, each with a camera that looks at it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from keyframe_world import CAMERA, NoEncoder, World
from scipy.spatial.transform import Rotation

from aceg_ros.camera import Camera, Frame
from aceg_ros.errors import UserError
from aceg_ros.estimate import Status
from aceg_ros.geometry import invert, pose_error
from aceg_ros.mapping.calibration import normalized_error_squared
from aceg_ros.methods.landmark_search import KeyframeLocalizerConfig
from aceg_ros.methods.rig_localizer import RigLocalizer
from aceg_ros.rig import Rig, RigFrame, ViewShare
from aceg_ros.visualization.overlay import INLIER, draw_rig_estimate

NAMES = ("front", "left", "rear", "right")
BASE = np.eye(4)
BASE[:3, :3] = Rotation.from_euler("z", 0.2).as_matrix()
BASE[:3, 3] = (0.1, -0.1, -0.5)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def rig_of(world: World, aside_m: float = 0.1) -> tuple[Rig, dict[str, np.ndarray]]:
    """A rig whose cameras look at the four walls, and their poses in the map."""
    poses = {name: world.pose(place, aside_m) for place, name in enumerate(NAMES)}
    return Rig(rig_from_camera={name: invert(BASE) @ pose for name, pose in poses.items()}), poses


def localizer_of(world: World) -> RigLocalizer:
    return RigLocalizer(encoder=NoEncoder(), database=world.database(), config=KeyframeLocalizerConfig())


def test_all_cameras_together_are_better_than_each(world):
    rig, poses = rig_of(world)
    localizer = localizer_of(world)
    queries = {name: world.keypoints(pose, clutter=300)[0] for name, pose in poses.items()}
    everything = localizer.localize_keypoints(queries, rig)
    assert everything.accepted and everything.map_from_rig is not None
    distance, angle = pose_error(everything.map_from_rig, BASE)
    assert distance < 0.01 and angle < 0.1
    assert all(share.inliers > 100 for share in everything.views.values())
    assert normalized_error_squared(everything.map_from_rig, everything.base.covariance, BASE) < 40
    one = localizer.localize_keypoints({"left": queries["left"]}, rig)
    assert one.accepted
    assert np.trace(everything.base.covariance[:3, :3]) < np.trace(one.base.covariance[:3, :3]) / 3
    assert list(one.views) == ["left"]


def test_a_camera_that_sees_nothing_known_costs_only_its_share(world):
    rig, poses = rig_of(world)
    queries = {name: world.keypoints(pose)[0] for name, pose in poses.items()}
    stranger = World(seed=5)
    queries["rear"] = stranger.keypoints(stranger.pose(0))[0]
    found = localizer_of(world).localize_keypoints(queries, rig)
    assert found.accepted and pose_error(found.map_from_rig, BASE)[0] < 0.01
    assert found.views["rear"].inliers < 0.3 * found.views["front"].inliers


def test_a_camera_that_repeats_an_image_of_elsewhere_is_outvoted(world):
    rig, poses = rig_of(world)
    queries = {name: world.keypoints(pose)[0] for name, pose in poses.items()}
    queries["front"] = world.keypoints(world.pose(2, -0.3))[0]          # what the camera at the rear sees
    localizer = localizer_of(world)
    found = localizer.localize_keypoints(queries, rig)
    assert found.accepted, found.base.message
    assert pose_error(found.map_from_rig, BASE)[0] < 0.02
    # One against one: nobody can tell which is right.
    two = localizer.localize_keypoints({name: queries[name] for name in ("front", "left")}, rig)
    assert not two.accepted and two.base.status is Status.AMBIGUOUS_POSE


def test_cameras_with_too_few_landmarks_each_are_enough_together(world):
    rig, poses = rig_of(world)
    few = {}
    for name, pose in poses.items():
        keypoints, landmarks = world.keypoints(pose, clutter=200)
        # Enough in all images, but of one image 12 of 200 matches are too few.
        keep = np.sort(np.r_[np.flatnonzero(landmarks >= 0)[:16], np.flatnonzero(landmarks < 0)])
        few[name] = type(keypoints)(pixels=keypoints.pixels[keep], descriptors=keypoints.descriptors[keep],
                                    cells=keypoints.cells[keep], map_size=keypoints.map_size,
                                    stride=keypoints.stride, camera=keypoints.camera)
    localizer = localizer_of(world)
    assert not any(localizer.localize_keypoints({name: query}, rig).accepted for name, query in few.items())
    found = localizer.localize_keypoints(few, rig)
    assert found.accepted, found.base.message
    assert pose_error(found.map_from_rig, BASE)[0] < 0.05


def test_strangers_are_rejected(world):
    rig, _ = rig_of(world)
    stranger = World(seed=5)
    queries = {name: stranger.keypoints(stranger.pose(place))[0] for place, name in enumerate(NAMES)}
    found = localizer_of(world).localize_keypoints(queries, rig)
    assert not found.accepted and found.map_from_rig is None


def test_images_that_cannot_be_used_are_named(world):
    rig, _ = rig_of(world)
    camera = Camera(width=64, height=48, fx=50.0, fy=50.0, cx=31.5, cy=23.5)
    black = Frame(image=np.zeros((48, 64, 3), np.uint8), camera=camera)
    found = localizer_of(world).localize(RigFrame(rig=rig, frames={"front": black}))
    assert found.base.status is Status.BAD_IMAGE and not found.accepted
    assert "no image of camera rear" in found.views["rear"].problem
    assert found.views["front"].problem and "no image" not in found.views["front"].problem


def test_each_camera_is_drawn_with_its_own_inliers(world):
    rig, poses = rig_of(world)
    names = ("front", "left", "rear")
    found = localizer_of(world).localize_keypoints({name: world.keypoints(poses[name], clutter=50)[0]
                                                    for name in names}, rig)
    for name in names:
        share = found.views[name]
        assert len(share.correspondences.pixels) == share.matches and len(share.inlier_indices) == share.inliers > 50
        seen = (share.correspondences.points[share.inlier_indices] - poses[name][:3, 3]) @ poses[name][:3, :3]
        off = CAMERA.project(seen) - share.correspondences.pixels[share.inlier_indices]
        assert np.median(np.linalg.norm(off, axis=1)) < 2
    found = replace(found, views={**found.views, "right": ViewShare(problem="its camera_info is missing")})
    grey = Frame(image=np.full((480, 640, 3), 90, np.uint8), camera=CAMERA)
    sheet = draw_rig_estimate(RigFrame(rig=rig, frames=dict.fromkeys(names, grey)), found)
    assert sheet.shape == (960, 1280, 3)
    cells = {name: sheet[row:row + 480, column:column + 640] for name, (row, column) in
             zip(NAMES, ((0, 0), (0, 640), (480, 0), (480, 640)), strict=True)}
    assert all((cells[name] == INLIER).all(-1).sum() > 500 for name in names)
    assert not (cells["right"] == INLIER).all(-1).any() and (cells["right"] == 255).any(), "its problem is written"


def test_a_rig_needs_cameras_and_rigid_poses():
    with pytest.raises(UserError, match="needs a camera"):
        Rig(rig_from_camera={})
    with pytest.raises(UserError, match="camera left in the rig"):
        Rig(rig_from_camera={"left": 2.0 * np.eye(4)})
