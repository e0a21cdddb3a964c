# SPDX-License-Identifier: Apache-2.0
"""The launch files, run by the real launch packages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("launch_ros", reason="needs the packages launch and launch_ros, which are not on the package index")

from bag_writer import write_bag
from diagnostic_msgs.msg import DiagnosticArray
from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.launch_description_sources import get_launch_description_from_python_launch_file
from ros_graph import RosGraph, output, stop
from std_srvs.srv import Trigger

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets import open_scene, write_ace_scene

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


@pytest.fixture
def graph(installed, tmp_path):
    with RosGraph(tmp_path) as graph:
        yield graph


def launch(graph: RosGraph, name: str, **arguments) -> subprocess.Popen:
    runner = Path(__file__).parents[1] / "support" / "run_launch_file.py"
    return graph.start_command(sys.executable, str(runner), str(LAUNCH / name),
                               *(f"{key}:={value}" for key, value in arguments.items()))


def statuses(graph: RosGraph, topic: str) -> list[DiagnosticArray]:
    received: list[DiagnosticArray] = []
    graph.node.create_subscription(DiagnosticArray, topic, received.append, 1000)
    return received


@pytest.mark.parametrize("name", ["localization.launch.py", "mapping.launch.py", "demo.launch.py",
                                  "evaluation.launch.py"])
def test_every_argument_is_described_and_has_a_default(name):
    description = get_launch_description_from_python_launch_file(str(LAUNCH / name))
    arguments = [entity for entity in description.entities if isinstance(entity, DeclareLaunchArgument)]
    assert arguments
    for argument in arguments:
        assert argument.default_value is not None
        assert argument.description and argument.description != "no description given", argument.name


@pytest.mark.parametrize("chosen", [None, "/my/profile.xml"])
def test_the_transport_profile_is_set_unless_the_user_has_chosen_one(monkeypatch, chosen):
    monkeypatch.delenv("FASTDDS_DEFAULT_PROFILES_FILE")
    if chosen:
        monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", chosen)
    description = get_launch_description_from_python_launch_file(str(LAUNCH / "localization.launch.py"))
    values = ["".join(part.text for part in action.value) for action in description.entities
              if isinstance(action, SetEnvironmentVariable)]
    assert [Path(value).is_file() for value in values] == ([] if chosen else [True])


@pytest.mark.parametrize(("name", "arguments", "words"), [
    ("localization.launch.py", {"rviz": "true"}, ("rviz2", "not installed")),
    ("localization.launch.py", {"rviz": "perhaps"}, ("rviz", "perhaps")),
    ("localization.launch.py", {"autostart": "soon"}, ("autostart", "soon")),
    ("localization.launch.py", {"log_level": "verbose"}, ("log_level", "verbose", "debug")),
    ("localization.launch.py", {"params_file": "/missing.yaml"}, ("params_file", "/missing.yaml")),
    ("mapping.launch.py", {"rviz": "true"}, ("rviz2", "not installed")),
    ("demo.launch.py", {"rviz": "true"}, ("rviz2", "not installed")),
    ("demo.launch.py", {"loop": "perhaps"}, ("loop", "perhaps")),
    ("demo.launch.py", {"rate": "fast"}, ("rate", "fast")),
    ("evaluation.launch.py", {"speed": "fast"}, ("speed", "fast")),
    ("evaluation.launch.py", {"every": "1.5"}, ("every", "1.5"))])
def test_what_cannot_be_started_is_said_before_anything_is(graph, name, arguments, words):
    process = launch(graph, name, **arguments)
    assert process.wait(60) != 0
    assert any(all(word in line for word in words) for line in output(process).splitlines()), output(process)
    assert "process started" not in output(process)


def test_localization_with_namespace_topics_and_map(graph, tmp_path):
    damaged = tmp_path / "damaged.map"
    damaged.write_text("no map")
    process = launch(graph, "localization.launch.py", namespace="robot", image="/front/image",
                     camera_info="/front/camera_info", map=damaged)
    received = statuses(graph, "/robot/localizer/status")
    assert graph.spin_until(lambda: received and str(damaged) in received[-1].status[0].message), output(process)
    for topic in ("/front/image", "/front/camera_info"):
        assert graph.spin_until(lambda topic=topic: graph.node.count_subscribers(topic) == 1)
        (subscriber,) = graph.node.get_subscriptions_info_by_topic(topic)
        assert (subscriber.node_namespace, subscriber.node_name) == ("/robot", "localizer")
    assert graph.get_parameter("robot/localizer", "use_sim_time") is False
    assert graph.get_parameter("robot/localizer", "map_frame") == "map"
    assert stop(process) == 0
    assert "Traceback" not in output(process)


def test_parameters_come_from_the_file_unless_given_as_arguments(graph, tmp_path):
    parameters = tmp_path / "mine.yaml"
    parameters.write_text("/**:\n  ros__parameters:\n    map_frame: hall\n    device: cpu\n    map_path: /from/file\n")
    process = launch(graph, "localization.launch.py", params_file=parameters, use_sim_time="true")
    received = statuses(graph, "/localizer/status")
    assert graph.spin_until(lambda: bool(received)), output(process)
    values = {name: graph.get_parameter("localizer", name)
              for name in ("map_frame", "device", "map_path", "use_sim_time")}
    assert values == {"map_frame": "hall", "device": "cpu", "map_path": "/from/file", "use_sim_time": True}
    assert stop(process) == 0


def test_demo_plays_a_scene_into_the_localizer_and_ends_with_it(graph, tmp_path):
    rng = np.random.default_rng(0)
    camera = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=319.5, cy=239.5)
    frames = [Frame(image=rng.integers(0, 255, (480, 640, 3), np.uint8), camera=camera,
                    map_from_camera=np.eye(4)) for _ in range(6)]
    write_ace_scene(tmp_path / "scene", frames)
    received = statuses(graph, "/localizer/status")
    process = launch(graph, "demo.launch.py", scene=tmp_path / "scene")
    assert graph.spin_until(lambda: process.poll() is not None), output(process)
    assert process.returncode == 0, output(process)
    graph.spin(0.2)
    answers = [message.status[0] for message in received if message.status[0].name.endswith(": image")]
    assert answers and all("map_path" in status.message for status in answers)
    values = {pair.key: pair.value for pair in answers[-1].values}
    assert values["received"] == values["refused.no_map"] == "6"


def test_the_demo_can_be_a_robot_with_odometry(graph, tmp_path):
    process = launch(graph, "demo.launch.py", odometry="true", rate="30.0", loop="true")
    assert graph.spin_until(lambda: graph.node.count_publishers("/localizer/status") > 0), output(process)
    frames = {name: graph.get_parameter("localizer", name) for name in ("odom_frame", "base_frame")}
    assert frames == {"odom_frame": "odom", "base_frame": "base_link"}
    assert stop(process) == 0


def test_mapping_by_service_while_a_scene_is_played(graph, tmp_path, rendered_scene):
    """As the launch file's description says: launch, start_mapping, drive, stop_mapping."""
    process = launch(graph, "mapping.launch.py", mapping_pose_source="pose", mapping_pose="/camera/ground_truth",
                     log_level="warn")
    received = statuses(graph, "/localizer/mapping_status")
    assert graph.call(Trigger, "/localizer/start_mapping").success, output(process)
    assert graph.get_parameter("localizer", "mapping_pose_source") == "pose"
    player = graph.start("aceg_ros.ros.scene_player", "__node:=camera", scene=str(rendered_scene / "mapping"))
    assert graph.spin_until(lambda: player.poll() is not None, 100)
    answer = graph.call(Trigger, "/localizer/stop_mapping")
    assert answer.success and "Started to train" in answer.message
    assert graph.spin_until(lambda: "Training" in received[-1].status[0].message, 60)
    assert graph.call(Trigger, "/localizer/cancel_mapping").success
    assert stop(process) == 0 and "Traceback" not in output(process)


def test_evaluation_of_a_bag_over_topics_is_that_of_the_command_line(graph, tmp_path, rendered_map, rendered_scene):
    bag = write_bag(tmp_path / "bag", open_scene(rendered_scene / "query"))
    process = launch(graph, "evaluation.launch.py", map=rendered_map, scene=bag, speed="0.1", output=tmp_path / "out")
    assert graph.spin_until(lambda: process.poll() is not None, 120), output(process)
    assert process.returncode == 0, output(process)
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["not_answered"] == {"lost": 0} and content["frames"] == 12
    assert content["difference"]["compared"] == 12 and content["difference"]["accepted_only_once"] == 0
    assert content["difference"]["most_m"] < 1e-9 and content["difference"]["most_deg"] < 1e-9
    assert content["over_topics"]["recall"] == content["offline"]["recall"]
    assert (tmp_path / "out" / "report.html").stat().st_size > 100_000
