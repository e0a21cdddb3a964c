# SPDX-License-Identifier: Apache-2.0
"""The real node with maps of the methods that are not the default, and `aceg compare` of these on a bag."""

import json

import numpy as np
import pytest
from bag_writer import write_bag
from node_bench import Bench
from ros_graph import output

from aceg_ros.cli import main
from aceg_ros.datasets import open_scene
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.registry import make_localizer
from aceg_ros.ros.common.messages import image_message, info_message
from aceg_ros.utils.stamps import stamp_to_ns

# At least so many of every fourth image of the other drive are accepted.
METHODS = {"reloc3r": 2, "sacreg": 2, "marepo": 2}


@pytest.mark.slow
def test_a_node_whose_map_is_switched_answers_as_each_method_does_offline(graph, map_of_method, rendered_scene):
    paths = {method: map_of_method(method) for method in METHODS}
    node = graph.start("aceg_ros.ros.localizer_node", map_path=str(paths["reloc3r"]), device="cpu")
    bench = Bench(graph)
    assert graph.spin_until(lambda: "Localizing in" in output(node), 60), output(node)
    assert graph.spin_until(bench.connected)
    frames = list(open_scene(rendered_scene / "query", every=4))
    for method, path in paths.items():
        assert graph.set_parameter("localizer", "map_path", str(path)) == (True, "")
        assert graph.spin_until(lambda path=path: bench.node_statuses[-1][1]["map"] == str(path), 60), output(node)
        localizer, accepted = make_localizer(SceneMap.load(path), "cpu"), 0
        for frame in frames:
            expected = localizer.localize(frame)
            message = image_message(frame.image, bench.header())
            _, values = bench.localize(message, info_message(frame.camera, message.header))
            assert values["status"] == expected.status.value, method
            if expected.accepted:
                accepted += 1
                np.testing.assert_allclose(bench.pose(stamp_to_ns(message.header.stamp)), expected.map_from_camera,
                                           atol=1e-4)
                assert int(values["inliers"]) == expected.inliers
        assert accepted >= METHODS[method], method


@pytest.mark.slow
def test_maps_of_all_methods_are_compared_on_a_bag(map_of_method, rendered_scene, tmp_path):
    bag = write_bag(tmp_path / "bag", open_scene(rendered_scene / "query", every=3))
    maps = []
    for method in METHODS:
        maps.append(tmp_path / f"{method}.map")
        maps[-1].symlink_to(map_of_method(method))
    assert main(["compare", *map(str, maps), str(bag), "--json", str(tmp_path / "all.json"), "--report",
                 str(tmp_path / "report")]) == 0
    content = json.loads((tmp_path / "all.json").read_text())
    assert {name: content[name]["method"] for name in content} == {method: method for method in METHODS}
    assert all(content[method]["localized"] >= least and content[method]["frames"] == 4
               for method, least in METHODS.items())
    page = (tmp_path / "report" / "report.html").read_text()
    assert all(method in page for method in METHODS)
