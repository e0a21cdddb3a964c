# SPDX-License-Identifier: Apache-2.0
"""Localizing with a prior in a made-up keyframe database: right ones save the search, wrong ones change nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from keyframe_world import PLACES, NoEncoder, World
from scipy.spatial.transform import Rotation
from torch.nn import functional

from aceg_ros.estimate import PoseEstimate, PriorPose, Status
from aceg_ros.geometry import pose_error
from aceg_ros.methods.keyframe_localizer import KeyframeLocalizer
from aceg_ros.methods.landmark_search import KeyframeLocalizerConfig


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def localizer(world):
    return KeyframeLocalizer(encoder=NoEncoder(), database=world.database(), config=KeyframeLocalizerConfig())


def prior(pose: np.ndarray, aside_m: float = 0.0, turned_deg: float = 0.0, std: float = 0.03) -> PriorPose:
    wrong = pose.copy()
    wrong[0, 3] += aside_m
    wrong[:3, :3] = Rotation.from_euler("z", turned_deg, degrees=True).as_matrix() @ pose[:3, :3]
    return PriorPose(map_from_camera=wrong, covariance=np.diag([std**2] * 6))


def test_a_good_prior_finds_the_same_pose_without_a_search(world, localizer):
    for place in range(PLACES):
        pose = world.pose(place, 0.3)
        found, _ = world.keypoints(pose, clutter=300)
        alone = localizer.localize_keypoints(found)
        near = localizer.localize_keypoints(found, prior=prior(pose, 0.05, 2.0))
        assert near.accepted and "solve" not in near.stage_ms and "solve" in alone.stage_ms
        distance, angle_deg = pose_error(near.map_from_camera, alone.map_from_camera)
        assert distance < 0.005 and angle_deg < 0.1


def test_an_answer_that_is_not_where_the_prior_says_is_searched_for_in_the_whole_map(world, localizer):
    pose = world.pose(2, 0.3)
    found, _ = world.keypoints(pose, clutter=300)
    surprised = localizer.localize_keypoints(found, prior=prior(pose, 0.3))
    assert surprised.accepted and "track" in surprised.stage_ms and "solve" in surprised.stage_ms
    assert np.array_equal(surprised.map_from_camera, localizer.localize_keypoints(found).map_from_camera)


@pytest.mark.parametrize("wrong", [{"aside_m": 3.0}, {"turned_deg": 40.0}, {"aside_m": 3.0, "turned_deg": 40.0},
                                   {"turned_deg": 180.0}, {"std": 3.0}])
def test_a_wrong_prior_changes_no_answer(world, localizer, wrong):
    pose = world.pose(1, 0.2)
    found, _ = world.keypoints(pose, clutter=300)
    alone, misled = localizer.localize_keypoints(found), localizer.localize_keypoints(found, prior=prior(pose, **wrong))
    assert misled.accepted
    distance, angle_deg = pose_error(misled.map_from_camera, alone.map_from_camera)
    assert distance < 0.005 and angle_deg < 0.1


def test_what_is_rejected_without_a_prior_is_not_accepted_where_nothing_is_known(world, localizer):
    pose = world.pose(0)
    found, _ = world.keypoints(pose, clutter=300)
    descriptors = torch.randn(found.descriptors.shape, generator=torch.Generator().manual_seed(1))
    nothing = replace(found, descriptors=functional.normalize(descriptors, dim=1))
    assert not localizer.localize_keypoints(nothing, prior=prior(pose)).accepted


def test_a_prior_does_not_choose_between_places_that_look_alike():
    world = World(same_walls=True)
    localizer = KeyframeLocalizer(encoder=NoEncoder(), database=world.database(), config=KeyframeLocalizerConfig())
    pose = world.pose(1, 0.1)
    estimate = localizer.localize_keypoints(world.keypoints(pose, clutter=300)[0], prior=prior(pose))
    assert estimate.status.value == "ambiguous_pose"


def test_a_prior_agrees_within_its_covariance():
    pose = np.eye(4)
    estimate = PoseEstimate(status=Status.ACCEPTED, message="", map_from_camera=pose, covariance=np.eye(6))
    assert prior(pose, 0.1).agrees_with(estimate)
    assert not prior(pose, 0.3).agrees_with(estimate) and not prior(pose, turned_deg=15.0).agrees_with(estimate)
    assert not prior(pose).agrees_with(PoseEstimate(status=Status.NO_CONSENSUS, message=""))


def test_a_prior_has_to_be_possible():
    with pytest.raises(ValueError, match="rigid"):
        PriorPose(map_from_camera=np.zeros((4, 4)), covariance=np.eye(6))
    with pytest.raises(ValueError, match="negative"):
        PriorPose(map_from_camera=np.eye(4), covariance=-np.eye(6))
