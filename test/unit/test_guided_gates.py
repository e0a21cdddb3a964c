# SPDX-License-Identifier: Apache-2.0
"""Gates of poses whose correspondences were searched for around projections, and what competes with them."""

from __future__ import annotations

import numpy as np
import pytest

from aceg_ros.camera import Camera
from aceg_ros.estimate import Status
from aceg_ros.pose.config import GateConfig, GuidedConfig
from aceg_ros.pose.correspondences import CameraFromMap, Consensus, Correspondences
from aceg_ros.pose.gates import check_confirmation
from aceg_ros.pose.guided import GuidedPose, refine_finally, refine_guided, refinement_spread, significance_beside
from aceg_ros.pose.significance import Significance

CAMERA = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=319.5, cy=239.5)
POSE = CameraFromMap(rotation=np.eye(3), translation=np.zeros(3))
CONFIG = GuidedConfig()


def matches(right: int, wrong: int, seed: int = 0, depth_m: float = 4.0) -> Correspondences:
    """Points that POSE puts where their pixels are, and points elsewhere in the search window."""
    rng = np.random.default_rng(seed)
    pixels = rng.uniform((20, 20), (620, 460), (right + wrong, 2))
    points = np.column_stack([(pixels - (CAMERA.cx, CAMERA.cy)) / CAMERA.fx, np.ones(right + wrong)])
    points *= rng.uniform(0.8, 1.2, (right + wrong, 1)) * depth_m
    pixels[:right] += rng.normal(0, 0.5, (right, 2))
    angle, radius = rng.uniform(0, 2 * np.pi, wrong), 12.0 * np.sqrt(rng.uniform(0, 1, wrong))
    pixels[right:] += radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    return Correspondences(pixels=pixels, points=points, camera=CAMERA)


def guided(correspondences: Correspondences) -> GuidedPose:
    found = refine_guided(correspondences, np.ones(len(correspondences.pixels)), POSE, CONFIG)
    assert found is not None
    return found


@pytest.mark.parametrize(("overall", "accepted"), [(-3.0, True), (2.0, False)])
def test_matches_of_one_thing_that_was_moved_confirm_nothing(overall, accepted):
    blind = Consensus.from_pose(matches(100, 300).usable, POSE, 4.0)
    assert blind.inlier_count >= 100
    rejection = check_confirmation(Significance(log10_nfa=overall, threshold_px=2.0, inliers=30.0), blind, None,
                                   GateConfig())
    assert (rejection is None) == accepted
    if rejection is not None:
        assert rejection.status is Status.CHANCE_CONSENSUS and "landmarks are missing" in rejection.message


def test_a_pose_without_distinctive_matches_is_ambiguous():
    blind = Consensus.from_pose(matches(200, 20).usable, POSE, 4.0)
    overall = Significance(log10_nfa=-60.0, threshold_px=2.0, inliers=100.0)
    assert check_confirmation(overall, blind, 0.16 * blind.inlier_count, GateConfig()) is None
    rejection = check_confirmation(overall, blind, 0.14 * blind.inlier_count, GateConfig())
    assert rejection is not None and rejection.status is Status.AMBIGUOUS_POSE and "distinctive" in rejection.message


def test_few_matches_need_as_many_distinctive_ones_as_others():
    blind = Consensus.from_pose(matches(30, 20).usable, POSE, 4.0)
    overall = Significance(log10_nfa=-60.0, threshold_px=2.0, inliers=30.0)
    assert [check_confirmation(overall, blind, count, GateConfig()) is None for count in (11.0, 12.0)] == [False, True]


def test_landmarks_that_agree_with_both_poses_are_no_competitor():
    far = matches(150, 50, depth_m=500.0)
    best = guided(far)
    shifted = CameraFromMap(rotation=np.eye(3), translation=np.array([0.2, 0.0, 0.0]))
    other = refine_guided(far, np.ones(len(far.pixels)), shifted, CONFIG)
    assert other is not None and other.significance.log10_nfa < -50
    assert significance_beside(other, best, CONFIG).log10_nfa > -2.0


def test_other_landmarks_at_another_place_are_a_competitor():
    best, other = guided(matches(150, 50, seed=1)), guided(matches(120, 50, seed=2))
    assert significance_beside(other, best, CONFIG).log10_nfa == pytest.approx(other.significance.log10_nfa)


def test_near_landmarks_that_put_the_position_wrong_show_in_the_spread():
    """Landmarks at 60 m leave the position to a few at 3 m; the wrong ones among these have dissimilar descriptors."""
    far, near = matches(150, 0, depth_m=60.0), matches(12, 0, seed=1, depth_m=3.0)
    shifted = near.pixels + (CAMERA.fx * 0.06 / near.points[:, 2:3]) * (1.0, 0.0)       # as if 6 cm to the left
    spreads = []
    for pixels, similarity in ((near.pixels, 0.9), (shifted, 0.4)):
        both = Correspondences(pixels=np.concatenate([far.pixels, pixels]),
                               points=np.concatenate([far.points, near.points]), camera=CAMERA)
        found = refine_guided(both, np.repeat([0.9, similarity], [150, 12]), POSE, CONFIG)
        assert found is not None
        found = refine_finally(found)
        error_m = np.linalg.norm(found.pose.map_from_camera[:3, 3])
        spreads.append((error_m, np.sqrt(np.trace(refinement_spread(found)[:3, :3]))))
    (right_m, right_spread_m), (wrong_m, wrong_spread_m) = spreads
    assert right_m < 0.01 and right_spread_m < 0.01
    assert wrong_m > 0.05 and wrong_spread_m > 0.5 * wrong_m
