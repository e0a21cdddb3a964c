# SPDX-License-Identifier: Apache-2.0
"""Large keyframe databases: found by their index, read from the file by keyframe, damage noticed when it is used."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from keyframe_world import NoEncoder, World

from aceg_ros.errors import UserError
from aceg_ros.geometry import pose_error
from aceg_ros.maps import keyframe_database, keyframe_index, sections
from aceg_ros.maps.keyframe_database import KeyframeDatabase
from aceg_ros.maps.retrieval import KeyframeRetrieval
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.keyframe_localizer import KeyframeLocalizer
from aceg_ros.methods.landmark_search import KeyframeLocalizerConfig


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture
def saved(world, monkeypatch, tmp_path):
    """A map file whose database counts as large, and the database that it was made of."""
    monkeypatch.setattr(keyframe_database, "LARGE", 100)
    monkeypatch.setattr(sections, "MAX_COPIED_BYTES", 1000)
    database = world.database()
    path = tmp_path / "large.map"
    SceneMap(method="ace_g", sections={"database": database.to_section()}).save(path)
    return path, database


def test_it_retrieves_what_the_histograms_of_all_keyframes_retrieve(world, saved, monkeypatch):
    path, database = saved
    stored = KeyframeDatabase.from_section(SceneMap.load(path).sections["database"])
    assert stored.index is not None and database.index is None
    found, _ = world.keypoints(world.pose(1, 0.1), clutter=100)
    exact = KeyframeRetrieval(database).find(found.descriptors, 8)
    same = KeyframeRetrieval(stored).find(found.descriptors, 8)
    np.testing.assert_array_equal(same.keyframes, exact.keyframes)
    np.testing.assert_allclose(same.similarity, exact.similarity, rtol=1e-5)
    monkeypatch.setattr(keyframe_index, "SELECTED", 6)          # by their short vectors
    selected = KeyframeRetrieval(stored).find(found.descriptors, 4)
    assert set(selected.keyframes) == set(exact.keyframes[:4]) == {4, 5, 6, 7}


def test_it_ranks_and_localizes_as_in_memory(world, saved):
    path, database = saved
    stored = KeyframeDatabase.from_section(SceneMap.load(path).sections["database"])
    pose = world.pose(2, 0.3)
    found, _ = world.keypoints(pose, clutter=400)
    every = np.arange(len(database))
    ranks = [KeyframeRetrieval(each).rank_by_landmarks(found.descriptors, every, 4) for each in (database, stored)]
    np.testing.assert_array_equal(ranks[0].keyframes, ranks[1].keyframes)
    estimates = [KeyframeLocalizer(encoder=NoEncoder(), database=each, config=KeyframeLocalizerConfig()
                                   ).localize_keypoints(found) for each in (database, stored)]
    assert all(estimate.accepted for estimate in estimates)
    assert pose_error(*(estimate.map_from_camera for estimate in estimates))[0] < 1e-3
    np.testing.assert_allclose(stored.depths_m, database.depths_m, rtol=1e-6)


def test_a_damaged_keyframe_is_noticed_when_it_is_used(saved):
    path, database = saved
    content = bytearray(path.read_bytes())
    row = int(database.first[5]) + 3
    place = content.find(database.descriptors[row].numpy().tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    scene_map = SceneMap.load(path)
    stored = KeyframeDatabase.from_section(scene_map.sections["database"])
    assert len(stored.observations_of([4, 6])) == int(database.first[5] - database.first[4]
                                                      + database.first[7] - database.first[6])
    with pytest.raises(UserError, match="Keyframe 5 of the map is damaged"):
        stored.observations_of([4, 5])
    with pytest.raises(UserError, match="Keyframe 5"):
        scene_map.verify()


def test_landmarks_that_do_not_exist_are_noticed(saved):
    database = KeyframeDatabase.from_section(SceneMap.load(saved[0]).sections["database"])
    landmarks = database.landmarks.clone()
    landmarks[int(database.first[3])] = len(database.points)
    with pytest.raises(UserError, match="Keyframe 3"):
        replace(database, landmarks=landmarks).observations_of([3])


def test_an_index_that_does_not_fit_is_rejected(saved):
    section = dict(SceneMap.load(saved[0]).sections["database"])
    with pytest.raises(UserError, match="index does not fit together"):
        KeyframeDatabase.from_section(section | {"index_depths": torch.zeros(3)})
    with pytest.raises(UserError, match="has no 'index_"):
        KeyframeDatabase.from_section({key: value for key, value in section.items() if key != "index_words"})


def test_small_databases_have_no_index(world):
    assert not any(key.startswith("index_") for key in world.database().to_section())
