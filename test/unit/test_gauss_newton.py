# SPDX-License-Identifier: Apache-2.0
"""What is compiled for poses computes what numpy computes in more words."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from aceg_ros.camera import Camera
from aceg_ros.pose import gauss_newton
from aceg_ros.pose.config import SolverConfig
from aceg_ros.pose.correspondences import CameraFromMap, Correspondences, UsableCorrespondences
from aceg_ros.pose.ransac import run_ransac
from aceg_ros.pose.refinement import refine
from aceg_ros.pose.rig import RigCorrespondences
from aceg_ros.pose.significance import MAX_PER_BLOCK, effective_counts

CAMERA = Camera(width=640, height=480, fx=500.0, fy=505.0, cx=318.0, cy=243.0)
START = CameraFromMap(rotation=Rotation.from_rotvec([0.01, -0.02, 0.01]).as_matrix(),
                      translation=np.array([0.05, -0.02, 0.03]))
SCALES_PX, STEPS = (12.0, 4.0), 3


def image(seed: int, behind: int = 0) -> Correspondences:
    """Matches of a camera at the origin: half of them right within a pixel, some of points behind it."""
    rng = np.random.default_rng(seed)
    pixels = rng.uniform((0, 0), (640, 480), (200, 2))
    points = np.column_stack([(pixels - (CAMERA.cx, CAMERA.cy)) / (CAMERA.fx, CAMERA.fy), np.ones(200)])
    points *= rng.uniform(2.0, 6.0, (200, 1))
    points[:behind] *= -1.0
    pixels += rng.normal(0.0, 1.0, (200, 2))
    pixels[100:] += rng.uniform(-40.0, 40.0, (100, 2))
    return Correspondences(pixels=pixels, points=points, camera=CAMERA, weights=rng.uniform(0.5, 2.0, 200))


def rig() -> RigCorrespondences:
    mount = np.eye(4)
    mount[:3, :3], mount[:3, 3] = Rotation.from_rotvec([0.1, 1.5, 0.2]).as_matrix(), (0.2, 0.1, -0.3)
    aside = image(2)
    points = aside.points @ mount[:3, :3].T + mount[:3, 3]
    return RigCorrespondences.join([
        (image(1), np.eye(4)), (Correspondences(pixels=aside.pixels, points=points, camera=CAMERA), mount)])


def errors_of(data: UsableCorrespondences, pose: CameraFromMap) -> tuple[np.ndarray, np.ndarray]:
    """Errors (2, N) in pixels, and depths (N,)."""
    seen = data.observations
    view = np.searchsorted(seen.starts, np.arange(data.count), side="right") - 1
    points = pose.rotation @ data.points + pose.translation[:, None]
    x, y, z = np.einsum("nij,jn->in", seen.mounts[view, :, :3], points) + seen.mounts[view, :, 3].T
    fx, fy, cx, cy = seen.cameras[view].T
    with np.errstate(divide="ignore"):
        return np.stack([fx * x / z + cx, fy * y / z + cy]) - data.pixels, z


def moved(pose: CameraFromMap, change: np.ndarray) -> CameraFromMap:
    turn = Rotation.from_rotvec(change[3:]).as_matrix()
    return CameraFromMap(rotation=turn @ pose.rotation, translation=turn @ pose.translation + change[:3])


def jacobian_of(data: UsableCorrespondences, pose: CameraFromMap) -> np.ndarray:
    """Central differences (6, 2, N)."""
    changes = 1e-6 * np.eye(6)
    return np.array([errors_of(data, moved(pose, change))[0] - errors_of(data, moved(pose, -change))[0]
                     for change in changes]) / 2e-6


def refined(data: UsableCorrespondences, pose: CameraFromMap) -> CameraFromMap:
    for scale_px in np.repeat(SCALES_PX, STEPS):
        errors, depths = errors_of(data, pose)
        in_front = depths > gauss_newton.MIN_DEPTH_M
        weights = np.where(in_front, data.weights / (1.0 + np.square(errors).sum(0) / scale_px**2) ** 2, 0.0)
        totals = np.bincount(data.blocks, weights, data.block_count)
        weights /= (totals + totals.mean())[data.blocks]
        rows = jacobian_of(data, pose)
        hessian = np.einsum("ian,jan,n->ij", rows, rows, weights)
        pose = moved(pose, -np.linalg.solve(hessian, np.einsum("ian,an,n->i", rows, errors, weights)))
    return pose


@pytest.mark.parametrize("correspondences", [image(0), image(3, behind=20), rig()], ids=["one", "behind", "rig"])
def test_refinement_is_that_of_numpy(correspondences: Correspondences) -> None:
    data = correspondences.usable
    found, expected = refine(data, START, SCALES_PX, STEPS), refined(data, START)
    assert found.map_from_camera == pytest.approx(expected.map_from_camera, abs=1e-6)
    assert np.abs(found.map_from_camera - np.eye(4)).max() < 0.01


def test_errors_of_points_behind_the_camera_are_infinite() -> None:
    data = image(3, behind=20).usable
    residuals, (errors, depths) = data.residuals(START), errors_of(data, START)
    assert residuals.depth_m == pytest.approx(depths)
    assert np.isposinf(residuals.squared_px[:20]).all() and not data.linearize(START)[:, :, :20].any()
    assert residuals.pixels[:, 20:] == pytest.approx(errors[:, 20:])
    assert residuals.squared_px[20:] == pytest.approx(np.square(errors[:, 20:]).sum(0))


def test_bounded_weights_are_those_of_numpy() -> None:
    data = image(0).usable
    rows, weights = data.linearize(START), np.r_[30.0, np.ones(199)]
    found = gauss_newton.bounded_weights(weights, rows, 0.1, 2)
    for _ in range(2):
        inverse = np.linalg.inv(np.einsum("ian,jan,n->ij", rows, rows, weights))
        leverage = weights * np.einsum("ian,ij,jan->n", rows, inverse, rows)
        weights = weights * np.minimum(1.0, 0.1 / leverage)
    assert found[0] < 10.0 and found == pytest.approx(weights, rel=1e-6)


def test_counts_of_matches_are_bounded_in_each_block() -> None:
    rng = np.random.default_rng(0)
    blocks, errors, chosen = rng.integers(0, 20, 300), rng.uniform(0, 10, 300), rng.random((3, 300)) < 0.7
    thresholds = np.array([1.0, 3.0, 8.0])
    inliers, totals = effective_counts(blocks, errors, thresholds, chosen)
    for row, some in enumerate(chosen):
        count = np.bincount(blocks[some], minlength=20)
        share = np.minimum(1.0, MAX_PER_BLOCK / np.maximum(count, 1))[blocks] * some
        assert totals[row] == pytest.approx(share.sum())
        assert inliers[row] == pytest.approx([(share * (errors < threshold)).sum() for threshold in thresholds])
    assert effective_counts(blocks[:0], errors[:0], thresholds, chosen[:1, :0])[1] == 0.0


def test_one_compilation_serves_all_correspondences() -> None:
    """Others would take seconds in the middle of a stream: arrays must be of the same type and layout everywhere."""
    for correspondences in (image(0), image(3).subset(np.arange(100)), rig(), rig().of_view(1)):
        data = correspondences.usable
        for part in (data, data.subset(np.arange(50)), data.mirrored()):
            refine(part, START, (4.0,), 1)
            refine(part, START, np.array([4, 2]), 1, chosen=np.ones(part.count, bool))
            pose = run_ransac(part, SolverConfig(), 0)
            assert pose is not None
            part.residuals(pose)
    assert [len(function.signatures) for function in (gauss_newton.refined_pose, gauss_newton.reprojection_errors)
            ] == [1, 1]
