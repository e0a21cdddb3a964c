# SPDX-License-Identifier: Apache-2.0
"""A rendered site with twin rooms, and the benchmark that counts poses in the wrong one."""

from __future__ import annotations

import numpy as np
import pytest

from aceg_ros.benchmarks import site as benchmark
from aceg_ros.geometry import invert
from aceg_ros.synthetic.site import SPACING_M, make_site
from aceg_ros.synthetic.textures import make_atlas, paint_tiles


def test_twins_are_equal_or_alike_and_stand_elsewhere():
    rooms = make_site(5, 40, rooms=7, twins=2)
    assert [room.twin for room in rooms] == [None, None, None, None, None, 3, 4]
    equal, alike = rooms[5], rooms[6]
    assert equal.exact and equal.room is rooms[3].room and not alike.exact
    assert alike.room.size == rooms[4].room.size and 0.7 * len(rooms[4].room) < len(alike.room) < len(rooms[4].room)
    places = np.array([room.site_from_room[:3, 3] for room in rooms])
    apart = np.linalg.norm(places[:, None] - places, axis=-1)[np.triu_indices(7, 1)]
    assert apart.min() == pytest.approx(SPACING_M)
    with pytest.raises(ValueError, match="pairs of twins"):
        make_site(5, 40, rooms=3, twins=2)


def test_a_visit_is_rendered_in_the_frame_of_the_site():
    atlas = make_atlas(paint_tiles(40, 1))
    room = make_site(5, 40, rooms=5, twins=1)[3]
    mapping, query = (list(frames) for frames in room.render_sessions(atlas, mapping=2, query=1))
    assert len(mapping) == 2 and len(query) == 1 and mapping[0].name == "room3_000000"
    inside = (invert(room.site_from_room) @ mapping[0].map_from_camera)[:3, 3]
    assert (np.abs(inside[:2]) < np.array(room.room.size[:2]) / 2).all()
    again = list(room.render_sessions(atlas, mapping=2, query=1)[0])
    assert np.array_equal(mapping[1].image, again[1].image)


@pytest.mark.slow
def test_the_benchmark_tells_poses_in_the_twin_from_others(tmp_path):
    text = benchmark.run(tmp_path, rooms=3, twins=1, images=8, queries=3, budget_s=60.0)
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in text.splitlines() if line.startswith("| ")}
    assert [rows[kind][2] for kind in ("like no other", "equal", "all")] == ["3", "6", "9"]
    assert benchmark.run(tmp_path, rooms=3, twins=1, images=8, queries=3) == text, "nothing is computed again"
