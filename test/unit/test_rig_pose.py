# SPDX-License-Identifier: Apache-2.0
"""Poses of rigs: correspondences of several cameras under one pose of their base."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from aceg_ros.camera import Camera, project_map_points
from aceg_ros.geometry import invert, pose_error
from aceg_ros.pose.config import GuidedConfig, SolverConfig
from aceg_ros.pose.correspondences import CameraFromMap, Consensus, Correspondences
from aceg_ros.pose.covariance import pose_covariance
from aceg_ros.pose.guided import find_hypothesis
from aceg_ros.pose.ransac import run_ransac
from aceg_ros.pose.refinement import refine
from aceg_ros.pose.rig import RigCorrespondences
from aceg_ros.pose.significance import compute_significance

CAMERAS = (Camera(width=640, height=480, fx=500.0, fy=505.0, cx=315.0, cy=242.0),
           Camera(width=480, height=360, fx=400.0, fy=400.0, cx=239.5, cy=179.5))


def mounted(yaw_deg: float, position: tuple[float, float, float]) -> np.ndarray:
    """A camera that looks along yaw in a base whose z is up."""
    pose = np.eye(4)
    forward = Rotation.from_euler("z", yaw_deg, degrees=True).as_matrix()
    pose[:3, :3] = forward @ np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    pose[:3, 3] = position
    return pose


MOUNTS = (mounted(10.0, (0.2, 0.1, 0.3)), mounted(190.0, (-0.25, 0.0, 0.4)))
TRUE = np.eye(4)
TRUE[:3, :3] = Rotation.from_euler("zyx", (0.7, 0.1, -0.05)).as_matrix()
TRUE[:3, 3] = (1.0, -2.0, 0.5)


def image(number: int, right: int, wrong: int, seed: int = 0) -> tuple[Correspondences, np.ndarray]:
    """Correspondences of one camera: right ones with half a pixel of noise, and wrong ones anywhere."""
    rng = np.random.default_rng(seed + number)
    camera, mount = CAMERAS[number], MOUNTS[number]
    count = right + wrong
    pixels = rng.uniform((10, 10), (camera.width - 10, camera.height - 10), (count, 2))
    rays = np.column_stack([(pixels - (camera.cx, camera.cy)) / (camera.fx, camera.fy), np.ones(count)])
    pose = TRUE @ mount
    points = rays * rng.uniform(2.0, 6.0, (count, 1)) @ pose[:3, :3].T + pose[:3, 3]
    pixels[:right] += rng.normal(0, 0.5, (right, 2))
    pixels[right:] = rng.uniform((10, 10), (camera.width - 10, camera.height - 10), (wrong, 2))
    return Correspondences(pixels=pixels, points=points, camera=camera), mount


def rig(*images: tuple[Correspondences, np.ndarray]) -> RigCorrespondences:
    return RigCorrespondences.join(images)


def test_residuals_are_those_of_each_image():
    both = rig(image(0, 20, 0), image(1, 30, 0))
    pose = CameraFromMap.from_pose(TRUE)
    residuals = both.usable.residuals(pose)
    for number, rows in ((0, slice(0, 20)), (1, slice(20, 50))):
        pixels, depth = project_map_points(both.points[rows], CAMERAS[number], TRUE @ MOUNTS[number])
        assert residuals.pixels[:, rows] == pytest.approx((pixels - both.pixels[rows]).T, abs=1e-8)
        assert residuals.depth_m[rows] == pytest.approx(depth)


def test_the_jacobian_is_that_of_small_changes_of_the_base():
    data = rig(image(0, 5, 0), image(1, 5, 0)).usable
    pose = CameraFromMap.from_pose(TRUE)
    before, jacobian = data.residuals(pose), data.linearize(pose)
    step = 1e-6
    for axis in range(6):
        change = np.eye(6)[axis] * step
        turn = Rotation.from_rotvec(change[3:]).as_matrix()
        moved = CameraFromMap(rotation=turn @ pose.rotation, translation=turn @ pose.translation + change[:3])
        difference = (data.residuals(moved).pixels - before.pixels) / step
        assert jacobian[axis] == pytest.approx(difference, rel=1e-3, abs=1e-2)


@pytest.mark.parametrize("images", [((0, 60, 60), (1, 60, 60)), ((0, 60, 60), (1, 0, 60)), ((1, 60, 20),)])
def test_ransac_finds_the_pose_of_the_base(images):
    config = SolverConfig(max_iterations=400, ransac_threshold_px=4.0, coarse_scales_px=(6.0, 3.0))
    found = run_ransac(rig(*(image(number, right, wrong) for number, right, wrong in images)).usable, config, 0)
    assert found is not None
    distance, angle = pose_error(found.map_from_camera, TRUE)
    assert distance < 0.03 and angle < 0.5


def test_a_second_camera_makes_a_pose_more_certain_and_more_significant():
    one, both = rig(image(0, 100, 30)), rig(image(0, 100, 30), image(1, 100, 30))
    pose = CameraFromMap.from_pose(TRUE)
    stds, log10_nfa = [], []
    for correspondences in (one, both):
        data = correspondences.usable
        consensus = Consensus.from_pose(data, pose, 2.0)
        stds.append(np.sqrt(np.trace(pose_covariance(consensus, 2.0)[:3, :3])))
        log10_nfa.append(compute_significance(data, consensus.residuals.squared_px, 12.0).log10_nfa)
    assert stds[1] < 0.7 * stds[0]
    assert log10_nfa[1] < 1.5 * log10_nfa[0] < 0


def test_one_camera_in_a_rig_is_worth_what_it_is_alone():
    alone, mount = image(1, 80, 40)
    config, guided = SolverConfig(max_iterations=400, refine_steps=2), GuidedConfig()
    in_rig = find_hypothesis(rig((alone, mount)), config, guided, seed=3)
    single = find_hypothesis(alone, config, guided, seed=3)
    assert in_rig is not None and single is not None
    assert in_rig.pose.map_from_camera == pytest.approx(single.pose.map_from_camera @ invert(mount), abs=1e-6)
    assert in_rig.log10_nfa == pytest.approx(single.log10_nfa)


def test_refining_on_chosen_correspondences_is_refining_these_alone():
    data, rng = rig(image(0, 60, 20), image(1, 40, 20)).usable, np.random.default_rng(2)
    chosen, true = rng.random(data.count) < 0.6, CameraFromMap.from_pose(TRUE)
    start = CameraFromMap(rotation=true.rotation, translation=true.translation + np.array([0.01, -0.01, 0.02]))
    found = refine(data, start, (6.0, 2.0), 3, chosen=chosen)
    alone = refine(data.subset(np.flatnonzero(chosen)), start, (6.0, 2.0), 3)
    assert found.map_from_camera == pytest.approx(alone.map_from_camera, abs=1e-9)
    assert found.map_from_camera == pytest.approx(TRUE, abs=0.02)


def test_correspondences_come_in_the_order_of_the_cameras():
    both = rig(image(0, 20, 0), image(1, 30, 0))
    with pytest.raises(ValueError, match="in the order of its cameras"):
        both.subset(np.arange(50)[::-1])
