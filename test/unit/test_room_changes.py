# SPDX-License-Identifier: Apache-2.0
"""Sessions in a room that differ in one thing."""

from __future__ import annotations

import numpy as np
import pytest

from aceg_ros.synthetic.room_changes import CHANGES, render_changed_session
from aceg_ros.synthetic.textures import load_atlas


@pytest.fixture(scope="module")
def sessions():
    atlas = load_atlas(None)
    return {change: tuple(map(list, render_changed_session(7, atlas, change, mapping=2, query=2, viewpoints=1)))
            for change in CHANGES}


def difference(a, b) -> float:
    return float(np.abs(a.image.astype(int) - b.image.astype(int)).mean())


def test_what_does_not_change_stays(sessions):
    for change in ("light", "objects", "viewpoint"):
        for same, plain in zip(sessions[change][0], sessions["none"][0], strict=True):
            assert difference(same, plain) == 0 and np.array_equal(same.map_from_camera, plain.map_from_camera)


def test_each_change_is_what_it_says(sessions):
    plain = sessions["none"][1]
    light, objects, viewpoint = (sessions[change][1] for change in ("light", "objects", "viewpoint"))
    assert np.array_equal(light[0].depth_m, plain[0].depth_m) and difference(light[0], plain[0]) > 5
    assert np.array_equal(objects[0].map_from_camera, plain[0].map_from_camera)
    assert (objects[0].depth_m != plain[0].depth_m).mean() > 0.02
    far, near = (np.mean([np.linalg.norm(query.map_from_camera[:3, 3] - sessions["none"][0][0].map_from_camera[:3, 3])
                          for query in queries]) for queries in (viewpoint, plain))
    assert far > near
    detail = [np.abs(np.diff(session[0][0].image.astype(float), axis=1)).mean() for session in
              (sessions["texture"], sessions["none"])]
    assert detail[0] < 0.8 * detail[1]


def test_an_unknown_change_is_rejected():
    with pytest.raises(ValueError, match="none of"):
        render_changed_session(7, load_atlas(None), "season")
