# SPDX-License-Identifier: Apache-2.0
"""Each launch file under launch_pytest, as a user's own system tests would start it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("launch_pytest", reason="needs launch, launch_ros and launch_pytest, not on the package index")

import launch_pytest
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from ros_graph import RosGraph

from launch import LaunchDescription

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


@pytest.fixture
def graph(installed, tmp_path, monkeypatch):
    with RosGraph(tmp_path) as graph:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(graph.domain_id))
        monkeypatch.setenv("ROS_HOME", str(tmp_path / "ros_home"))
        yield graph


def included(name: str, **arguments: str) -> LaunchDescription:
    return LaunchDescription([
        IncludeLaunchDescription(PythonLaunchDescriptionSource(str(LAUNCH / name)), launch_arguments=arguments.items()),
        launch_pytest.actions.ReadyToTest()])


@launch_pytest.fixture
def localization(graph):
    return included("localization.launch.py", namespace="front", odom_frame="odom", base_frame="base_link")


@launch_pytest.fixture
def mapping(graph):
    return included("mapping.launch.py", mapping_pose_source="odometry", mapping_pose="/odometry")


@launch_pytest.fixture
def demo(graph, rendered_scene):
    return included("demo.launch.py", scene=str(rendered_scene / "query"), loop="true")


@pytest.mark.launch(fixture=localization)
def test_localization(graph):
    assert graph.spin_until(lambda: graph.node.count_publishers("/front/localizer/pose") == 1)
    assert graph.spin_until(lambda: graph.node.count_subscribers("/front/image") == 1)
    assert graph.get_parameter("front/localizer", "odom_frame") == "odom"


@pytest.mark.launch(fixture=mapping)
def test_mapping(graph):
    assert graph.get_parameter("localizer", "mapping_pose_source") == "odometry"
    from std_srvs.srv import Trigger
    assert graph.spin_until(lambda: graph.node.count_subscribers("/image") == 1)
    assert graph.call(Trigger, "/localizer/start_mapping").success
    assert graph.spin_until(lambda: graph.node.count_subscribers("/odometry") == 1)


@pytest.mark.launch(fixture=demo)
def test_demo(graph):
    assert graph.spin_until(lambda: graph.node.count_publishers("/image") == 1)
    assert graph.spin_until(lambda: graph.node.count_subscribers("/image") == 1)
    assert graph.node.count_publishers("/camera/ground_truth") == 1
