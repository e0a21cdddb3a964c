# SPDX-License-Identifier: Apache-2.0
"""Matching, voting and telling places apart by 8-bit integers and by floats: whichever a processor is given, both give
nearly the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from keyframe_world import World

from aceg_ros.maps import descriptor_index, keyframe_database, retrieval
from aceg_ros.maps.descriptor_index import LandmarkMatches, ObservationMatcher
from aceg_ros.maps.distinctiveness import count_distinctive
from aceg_ros.maps.keyframe_index import KeyframeIndex
from aceg_ros.maps.retrieval import KeyframeRetrieval, assign_words


@pytest.fixture
def with_both(monkeypatch) -> Callable[[Callable[[], Any]], list[Any]]:
    """Call something with floats and with 8-bit integers."""
    def call(function: Callable[[], Any]) -> list[Any]:
        found = []
        for is_int8 in (False, True):
            for module in (descriptor_index, keyframe_database, retrieval):
                monkeypatch.setattr(module, "multiplies_int8", lambda device, is_int8=is_int8: is_int8)
            found.append(function())
        return found
    return call


@pytest.fixture(scope="module")
def world() -> World:
    return World(seed=5)


def pairs(matches: LandmarkMatches) -> set[tuple[int, int]]:
    return set(zip(matches.keypoints.tolist(), matches.landmarks.tolist(), strict=True))


def test_matches_are_the_same_but_for_a_few(world, with_both):
    database, (found, _) = world.database(), world.keypoints(world.pose(1, 0.1), clutter=300)
    floats, integers = with_both(lambda: ObservationMatcher(found, database).match([0, 4, 5, 6, 7]))
    common = pairs(floats) & pairs(integers)
    assert len(common) > 0.95 * max(len(floats), len(integers)) and len(floats) > 100
    similarity = [dict(zip(each.keypoints.tolist(), each.similarity.tolist(), strict=True))
                  for each in (floats, integers)]
    # Another observation of the landmark may be nearly as similar.
    assert all(abs(similarity[0][keypoint] - similarity[1][keypoint]) < 0.02 for keypoint, _ in common)


def test_words_are_the_same_but_for_a_few(world, with_both):
    database, (found, _) = world.database(), world.keypoints(world.pose(1, 0.1), clutter=300)
    floats, integers = with_both(lambda: assign_words(found.descriptors, database.vocabulary))
    assert floats.dtype == integers.dtype == torch.int64
    assert (floats == integers).float().mean() > 0.97


@pytest.mark.parametrize("large", [False, True])
def test_votes_rank_the_same_keyframes(world, with_both, large):
    found, _ = world.keypoints(world.pose(2, 0.1), clutter=300)

    database = world.database()

    def rank() -> retrieval.Shortlist:
        fresh = replace(database, index=KeyframeIndex.build(database) if large else None)   # which has kept no means
        return KeyframeRetrieval(fresh).rank_by_landmarks(found.descriptors, np.arange(16), 8)

    floats, integers = with_both(rank)
    assert set(floats.keyframes[:4].tolist()) == set(integers.keyframes[:4].tolist()) == {8, 9, 10, 11}
    assert np.abs(floats.similarity[:4] - integers.similarity[:4]).max() < 0.05


@pytest.mark.parametrize("same_walls", [False, True])
def test_distinctive_matches_are_as_many(with_both, same_walls):
    world = World(seed=3, same_walls=same_walls)
    keypoints, landmarks = world.keypoints(world.pose(1))
    database = world.database()

    def count() -> float:
        fresh = replace(database)
        return count_distinctive(keypoints.descriptors, world.points[landmarks], fresh, KeyframeRetrieval(fresh))

    floats, integers = with_both(count)
    assert abs(floats - integers) <= 0.05 * len(landmarks)
