# SPDX-License-Identifier: Apache-2.0
"""The evaluation node beside player and localizer: what it writes is what `aceg evaluate` says."""

import json

from bag_writer import write_bag
from ros_graph import output

from aceg_ros.datasets import open_scene
from aceg_ros.ros.evaluation.comparison import describe


def test_a_bag_over_topics_is_evaluated_as_offline(graph, tmp_path, rendered_map, rendered_scene):
    bag = write_bag(tmp_path / "bag", open_scene(rendered_scene / "query"))
    localizer = graph.start("aceg_ros.ros.localizer_node", map_path=str(rendered_map), use_sim_time=True)
    assert graph.spin_until(lambda: "Localizing in" in output(localizer)), output(localizer)
    evaluation = graph.start("aceg_ros.ros.evaluation_node", scene=str(bag), map=str(rendered_map), speed=0.1,
                             output=str(tmp_path / "out"))
    player = graph.start("aceg_ros.ros.scene_player", scene=str(bag), clock=True, speed=0.1, wait_for_subscribers=2,
                         start_delay=3.0)     # a busy machine takes that long to find all topics
    assert graph.spin_until(lambda: evaluation.poll() is not None, 180), output(evaluation)
    assert evaluation.returncode == 0, output(evaluation)
    assert player.wait(30) == 0, output(player)
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["not_answered"] == {"lost": 0} and content["frames"] == 12
    assert content["difference"]["compared"] == 12 and content["difference"]["accepted_only_once"] == 0
    assert content["difference"]["most_m"] < 1e-9 and content["difference"]["most_deg"] < 1e-9
    assert content["over_topics"]["recall"] == content["offline"]["recall"]
    assert (tmp_path / "out" / "report.html").stat().st_size > 100_000
    assert "12 frames compared, 0 accepted in one run only" in output(evaluation)


def test_figures_for_people_have_three_digits():
    run = {"localized": 9, "frames": 10, "median_translation_m": 0.0123456789012, "median_rotation_deg": None,
           "recall": {"5cm/5deg": 0.899999999999}}
    between = {"compared": 10, "accepted_only_once": 1, "most_m": 1 / 3, "most_deg": float("nan")}
    text = describe({"over_topics": run, "offline": run, "difference": between})
    assert "median 0.0123 m - deg, recall 5cm/5deg 0.9" in text and "0.333 m nan deg." in text
