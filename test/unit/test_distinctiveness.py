# SPDX-License-Identifier: Apache-2.0
"""Matches with things that are at several places of a map are not distinctive."""

from __future__ import annotations

from dataclasses import replace

import pytest
from keyframe_world import World

from aceg_ros.maps.distinctiveness import count_distinctive
from aceg_ros.maps.keyframe_index import KeyframeIndex
from aceg_ros.maps.retrieval import KeyframeRetrieval


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("same_walls", [False, True])
def test_landmarks_that_are_on_every_wall_are_not_distinctive(same_walls, large):
    world = World(seed=3, same_walls=same_walls)
    database = world.database()
    if large:
        database = replace(database, index=KeyframeIndex.build(database))
    keypoints, landmarks = world.keypoints(world.pose(1))
    points = world.points[landmarks]
    retrieval = KeyframeRetrieval(database)
    count = count_distinctive(keypoints.descriptors, points, database, retrieval)
    assert count > 0.9 * len(points) if not same_walls else count < 0.1 * len(points)
    assert count_distinctive(keypoints.descriptors[:0], points[:0], database, retrieval) == 0.0
