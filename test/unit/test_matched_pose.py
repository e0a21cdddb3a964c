# SPDX-License-Identifier: Apache-2.0
"""Poses from matches with posed keyframes: essential matrices, points of the hub, all matches at once, rejections."""

from dataclasses import replace

import numpy as np
import pytest
from matched_views import CAMERA, KEYFRAMES, QUERY, matched_views, with_relative_poses

from aceg_ros.estimate import Status
from aceg_ros.geometry import invert, look_at, pose_error
from aceg_ros.pose.epipolar import EpipolarConfig, estimate_pair, log10_nfa
from aceg_ros.pose.hub_points import find_hub_points
from aceg_ros.pose.joint_pose import estimate_jointly
from aceg_ros.pose.matched_pose import MatchedPoseConfig, locate_by_matches


def locate(matches, config=None):
    relative, kept = with_relative_poses(matches)
    return locate_by_matches(relative, kept, CAMERA, config or MatchedPoseConfig())


def test_relative_poses_of_cameras_with_different_intrinsics():
    for pair in matched_views():
        found = estimate_pair(pair, EpipolarConfig(), 0)
        truth = invert(pair.map_from_keyframe) @ QUERY
        direction = truth[:3, 3] / np.linalg.norm(truth[:3, 3])
        assert pose_error(found.keyframe_from_camera, truth)[1] < 1.0
        assert found.keyframe_from_camera[:3, 3] @ direction > np.cos(np.radians(3.0))
        assert found.log10_nfa < -50.0 and 0.001 < found.sigma_rad < 0.2
        assert 0.6 < found.inliers.mean() < 0.85


def test_random_matches_are_not_significant():
    for seed in range(5):
        for pair in matched_views(wrong=1.0, seed=seed):
            found = estimate_pair(pair, EpipolarConfig(), seed)
            assert found is None or found.log10_nfa > -2.0
    errors = matched_views()[0].errors_px(invert(KEYFRAMES[0]) @ QUERY)
    assert log10_nfa(matched_views()[0], errors) < -50.0
    assert estimate_pair(matched_views(count=8)[0], EpipolarConfig(), 0) is None


def test_a_direction_is_uncertain_where_the_camera_only_turned():
    turned = QUERY.copy()
    turned[:3, :3] = look_at(QUERY[:3, 3], np.array([0.5, 5.0, 0.2]))[:3, :3]
    near, far = (estimate_pair(pair, EpipolarConfig(), 0).sigma_rad
                 for pair in matched_views([turned, KEYFRAMES[0]]))
    assert near > 10.0 * far


def test_keypoints_that_match_twice_have_points():
    hub = find_hub_points(matched_views(noise_px=0.0, wrong=0.0))
    assert len(hub) == 300
    errors = hub.errors_px(QUERY, CAMERA.K)
    assert np.abs(errors).max() < 1e-6
    assert len(find_hub_points(matched_views(KEYFRAMES[:1]))) == 0
    assert len(find_hub_points(matched_views(KEYFRAMES[:1], with_depth=True))) > 150
    assert (np.abs(hub.errors_px(look_at(QUERY[:3, 3], np.array([0.0, -5.0, 0.0])), CAMERA.K)) >= 100.0).all()


def test_all_matches_together_give_an_accurate_pose():
    matches = matched_views()
    found = estimate_jointly(QUERY[:3, :3], np.zeros((0, 3)), matches, hub=find_hub_points(matches))
    metres, degrees = pose_error(found.map_from_camera, QUERY)
    assert metres < 0.02 and degrees < 0.2
    alone = estimate_jointly(QUERY[:3, :3], np.zeros((0, 3)), matches)               # without points
    assert pose_error(alone.map_from_camera, QUERY)[0] < 0.05


@pytest.mark.parametrize("count", [2, 3, 4])
def test_poses_of_a_few_keyframes_are_accepted_and_right(count):
    for seed in range(5):
        estimate = locate(matched_views(KEYFRAMES[:count], seed=seed))
        assert estimate.accepted, estimate.message
        metres, degrees = pose_error(estimate.map_from_camera, QUERY)
        assert metres < 0.05 and degrees < 0.5
        difference = estimate.map_from_camera[:3, 3] - QUERY[:3, 3]
        assert difference @ np.linalg.solve(estimate.covariance[:3, :3], difference) < 30.0


def test_one_keyframe_is_rejected_since_it_has_no_scale():
    estimate = locate(matched_views(KEYFRAMES[:1]))
    assert estimate.status is Status.NO_SCALE and estimate.map_from_camera is None
    # Two keyframes of which one shows something else are one.
    matches = matched_views(KEYFRAMES[:2])
    matches[1] = matched_views(KEYFRAMES[:2], wrong=1.0)[1]
    assert locate(matches).status is Status.NO_SCALE


def test_measured_depths_give_one_keyframe_a_scale():
    estimate = locate(matched_views(KEYFRAMES[:1], with_depth=True))
    assert estimate.accepted, estimate.message
    assert pose_error(estimate.map_from_camera, QUERY)[0] < 0.05


def test_keyframes_on_a_line_with_the_camera_have_no_scale_without_points():
    """Of keypoints that match twice the points are known; without these, only directions are left."""
    line = [look_at(QUERY[:3, 3] + step * np.array([1.0, 0.0, 0.0]), np.array([0.2, 5.0, 0.1]))
            for step in (0.4, 0.8, 1.2)]
    matches = matched_views(line)
    third = len(matches[0]) // 3
    separate = [pair.subset(np.arange(number * third, (number + 1) * third)) for number, pair in enumerate(matches)]
    estimate = locate(separate)
    assert estimate.status in (Status.NO_SCALE, Status.NO_CONSENSUS), estimate.message


def test_nothing_is_accepted_on_random_matches():
    for seed in range(10):
        estimate = locate(matched_views(wrong=1.0, seed=seed))
        assert not estimate.accepted and estimate.map_from_camera is None


def test_keyframes_that_contradict_each_other_make_a_pose_ambiguous():
    """Two keyframes show this place, two others its twin three metres away."""
    matches = matched_views()
    moved = np.eye(4)
    moved[:3, 3] = 3.0, 0.0, 0.0
    moved[:3, :3] = look_at(np.zeros(3), np.array([1.0, 1.0, 0.0]))[:3, :3]
    twins = [replace(pair, map_from_keyframe=moved @ pair.map_from_keyframe) for pair in matches[2:]]
    estimate = locate(matches[:2] + twins)
    assert estimate.status is Status.AMBIGUOUS_POSE, estimate.message


@pytest.mark.parametrize("metres", [0.004, 0.1])
def test_a_camera_near_a_keyframe_is_neither_pulled_to_it_nor_too_sure(metres):
    """There, any direction from the keyframe is possible, and one of them fits the noise of its matches."""
    near = QUERY.copy()
    near[:3, 3] += metres * np.array([0.6, 0.0, 0.8])
    for seed in range(4):
        estimate = locate(matched_views([near, *KEYFRAMES[:2]], wrong=0.5, seed=seed))
        assert estimate.accepted, estimate.message
        difference = estimate.map_from_camera[:3, 3] - QUERY[:3, 3]
        assert np.linalg.norm(difference) < 0.05
        assert difference @ np.linalg.solve(estimate.covariance[:3, :3], difference) < 20.0
        assert np.sqrt(np.linalg.eigvalsh(estimate.covariance[:3, :3]).max()) > 0.003


def test_a_map_whose_covariances_were_too_small_rejects_what_it_would_have_accepted():
    estimate = locate(matched_views())
    wider = locate(matched_views(), MatchedPoseConfig(covariance_factor=4.0))
    assert np.allclose(wider.covariance, 4.0 * estimate.covariance)
    assert locate(matched_views(), MatchedPoseConfig(covariance_factor=1e4)).status is Status.NO_SCALE
