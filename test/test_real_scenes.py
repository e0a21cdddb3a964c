"""Real pictures (../shared/scenes): a short mapping run of the kitchen localizes its query part, and nothing else.

Mapping here takes 180 s, 60 % of the default; the bounds are well below what the default gave (docs/benchmarks).
"""

import json

import pytest

from aceg_ros.cli import main


@pytest.fixture(scope="module")
def kitchen_map(shared_scenes, tmp_path_factory):
    path = tmp_path_factory.mktemp("kitchen") / "kitchen.map"
    assert main(["map", str(shared_scenes / "redkitchen7s" / "mapping"), "-o", str(path), "--budget", "180"]) == 0
    return path


def figures(scene_map, scene, capsys, *options) -> dict:
    capsys.readouterr()
    assert main(["evaluate", str(scene_map), str(scene), *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_kitchen_is_localized(kitchen_map, shared_scenes, capsys):
    found = figures(kitchen_map, shared_scenes / "redkitchen7s" / "query", capsys)
    assert found["frames"] == 100
    assert found["median_translation_m"] < 0.15 and found["median_rotation_deg"] < 4
    assert found["recall"]["0.25m_5deg"] >= 0.6


def test_other_places_are_refused(kitchen_map, shared_scenes, capsys):
    found = [figures(kitchen_map, shared_scenes / other / "query", capsys, "--every", "3")
             for other in ("tum_fr1_rpy", "drone_lab_a", "terrace", "student_lab")]
    assert sum(f["localized"] for f in found) <= 0.01 * sum(f["frames"] for f in found)
