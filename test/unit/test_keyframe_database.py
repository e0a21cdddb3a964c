# SPDX-License-Identifier: Apache-2.0
"""The keyframe database without a network: random descriptors, exact projections."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from keyframe_world import DIM, PLACES, NoEncoder, World
from torch.nn import functional

from aceg_ros.errors import UserError
from aceg_ros.geometry import pose_error
from aceg_ros.maps.descriptor_index import ObservationMatcher, match_projections
from aceg_ros.maps.keyframe_database import KeyframeDatabase
from aceg_ros.maps.retrieval import KeyframeRetrieval
from aceg_ros.methods.keyframe_localizer import KeyframeLocalizer
from aceg_ros.methods.landmark_search import KeyframeLocalizerConfig


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def database(world):
    return world.database()


def test_retrieval_finds_the_keyframes_of_the_place(world, database):
    retrieval = KeyframeRetrieval(database)
    for place in range(PLACES):
        found, _ = world.keypoints(world.pose(place, 0.1), clutter=100)
        assert set(retrieval.find(found.descriptors, 4).keyframes) == set(range(4 * place, 4 * place + 4))


def test_votes_of_landmarks_rank_the_keyframes_of_the_place_first(world, database):
    retrieval = KeyframeRetrieval(database)
    for place in range(PLACES):
        found, _ = world.keypoints(world.pose(place, 0.1), clutter=100)
        ranked = retrieval.rank_by_landmarks(found.descriptors, np.arange(len(database))[::-1], 6)
        assert set(ranked.keyframes[:4]) == set(range(4 * place, 4 * place + 4)) and len(ranked.keyframes) == 6
        assert ranked.similarity[0] == 1.0 and ranked.similarity[4] < 0.5
    nothing = retrieval.rank_by_landmarks(found.descriptors[:0], np.array([3, 1]), 6)
    assert list(nothing.keyframes) == [3, 1]


def test_matches_are_the_right_landmarks(world, database):
    found, truth = world.keypoints(world.pose(1, 0.1), clutter=200)
    matches = ObservationMatcher(found, database).match([4, 5, 6, 7])
    right = truth[matches.keypoints] == matches.landmarks
    assert right.sum() > 0.8 * (truth >= 0).sum()
    assert len(np.unique(matches.landmarks)) == len(matches)


def test_keyframes_compared_before_match_as_at_first(world, database):
    found, _ = world.keypoints(world.pose(1, 0.1), clutter=200)
    matcher = ObservationMatcher(found, database)
    matcher.match([6, 0, 4])
    again, alone = matcher.match([4, 5, 6, 7]), ObservationMatcher(found, database).match([4, 5, 6, 7])
    assert np.array_equal(again.keypoints, alone.keypoints) and np.array_equal(again.landmarks, alone.landmarks)
    assert len(matcher.match([])) == 0


def test_projections_are_matched_within_the_radius_only(world, database):
    pose = world.pose(2, 0.1)
    found, truth = world.keypoints(pose, clutter=200)
    rows = database.first_observations([8, 9, 10, 11])
    matches = match_projections(found, database, rows, pose, radius_px=12.0, max_count=9000)
    right = truth[matches.keypoints] == matches.landmarks
    assert right.mean() > 0.95
    assert len(np.unique(matches.keypoints)) == len(matches)
    elsewhere = match_projections(found, database, rows, world.pose(0), radius_px=12.0, max_count=9000)
    assert len(elsewhere) == 0


def localizer(database: KeyframeDatabase, **changes) -> KeyframeLocalizer:
    config = replace(KeyframeLocalizerConfig(), **changes)
    return KeyframeLocalizer(encoder=NoEncoder(), database=database, config=config)


def test_an_image_is_localized_to_a_centimetre(world, database):
    for place in range(PLACES):
        pose = world.pose(place, 0.3)
        found, _ = world.keypoints(pose, clutter=600)
        estimate = localizer(database).localize_keypoints(found)
        assert estimate.accepted, estimate.message
        distance, angle_deg = pose_error(estimate.map_from_camera, pose)
        assert distance < 0.01 and angle_deg < 0.2
        assert estimate.inlier_ratio > 0.5


def test_the_warm_up_takes_every_step_of_an_accepted_image(database, monkeypatch):
    """Also the covariance, and tracking by a prior: none is left to be compiled for the first image."""
    found, of_keypoints = [], KeyframeLocalizer.localize_keypoints
    monkeypatch.setattr(KeyframeLocalizer, "localize_keypoints", lambda *given, **named: found.append(
        of_keypoints(*given, **named)))
    localizer(database).warm_up()
    assert [estimate.accepted for estimate in found] == [True, True]
    assert ["track" in estimate.stage_ms for estimate in found] == [True, False]


def test_an_image_of_nothing_known_is_rejected(world, database):
    found, _ = world.keypoints(world.pose(0), clutter=900)
    nothing = replace(found, descriptors=functional.normalize(torch.randn(
        len(found), DIM, generator=torch.Generator().manual_seed(1)), dim=1))
    estimate = localizer(database).localize_keypoints(nothing)
    assert not estimate.accepted
    assert not localizer(database).localize_keypoints(found.best(5)).accepted


def test_four_equal_walls_are_told_to_be_ambiguous():
    world = World(same_walls=True)
    estimate = localizer(world.database()).localize_keypoints(world.keypoints(world.pose(1, 0.1), clutter=300)[0])
    assert not estimate.accepted
    assert estimate.status.value == "ambiguous_pose"


def test_a_compact_section_is_a_third_of_the_size_and_localizes(world, database):
    section = database.to_section(compact=True)
    size = {name: sum(value.nbytes for value in tensors.values() if len(value) == len(database.landmarks))
            for name, tensors in (("compact", section), ("full", database.to_section()))}
    assert size["compact"] < 0.34 * size["full"]
    found = KeyframeDatabase.from_section(section)
    pose = world.pose(2, 0.3)
    estimate = localizer(found).localize_keypoints(world.keypoints(pose, clutter=400)[0])
    assert estimate.accepted and pose_error(estimate.map_from_camera, pose)[0] < 0.02
    with pytest.raises(UserError, match="does not fit together"):
        KeyframeDatabase.from_section(section | {"descriptors": section["descriptors"][:, :-1]})


def test_a_database_that_does_not_fit_together_is_rejected(database):
    section = database.to_section()
    assert len(KeyframeDatabase.from_section(section)) == 16
    with pytest.raises(UserError, match="has no 'points'"):
        KeyframeDatabase.from_section({key: value for key, value in section.items() if key != "points"})
    for key, value in (("landmarks", section["landmarks"] + 10_000), ("first", section["first"] - 1),
                       ("words", section["words"] + 9_999), ("pixels", section["pixels"][:-1]),
                       ("poses", section["poses"][:, :3])):
        with pytest.raises(UserError, match="does not fit together"):
            KeyframeDatabase.from_section(section | {key: value})
