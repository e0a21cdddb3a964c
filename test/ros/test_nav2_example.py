# SPDX-License-Identifier: Apache-2.0
"""examples/nav2: its launch files as far as they can be read without launch, and what seeds AMCL."""

from __future__ import annotations

import importlib.util
import re
import sys
import time
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
import rclpy
import yaml
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile

from aceg_ros.ros.localizer.bond import BondParameters
from aceg_ros.ros.localizer.parameters import ImageParameters, LocalizerParameters, PoseParameters

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "nav2"
LAUNCH = ("localization.launch.py", "seed_amcl.launch.py")
DEFAULTS = {field.name: field.default for kind in (BondParameters, ImageParameters, LocalizerParameters, PoseParameters)
            for field in fields(kind)} | {"use_sim_time": False}


class Recorded:
    """Any class of launch and launch_ros: keeps what it is made of."""

    def __init__(self, *values, **options) -> None:
        self.values, self.options = values, options


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem.replace(".", "_"), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def described(monkeypatch):
    """described(name): what generate_launch_description() of a launch file returns."""
    for name in ("launch", "launch.actions", "launch.substitutions", "launch_ros", "launch_ros.actions",
                 "launch_ros.parameter_descriptions", "launch_ros.substitutions"):
        module = ModuleType(name)
        module.__getattr__ = lambda attribute: type(attribute, (Recorded,), {})
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("FASTDDS_DEFAULT_PROFILES_FILE", raising=False)
    return lambda name: load(FOLDER / name).generate_launch_description().values[0]


def of_kind(actions: list, kind: str) -> list:
    return [action for action in actions if type(action).__name__ == kind]


@pytest.mark.parametrize("name", LAUNCH)
def test_arguments_are_described_and_the_localizer_knows_its_parameters(described, name):
    actions = described(name)
    arguments = {action.values[0]: action.options for action in of_kind(actions, "DeclareLaunchArgument")}
    assert arguments and all(options["description"].endswith(".") for options in arguments.values())
    used = set(re.findall(r'value\["(\w+)"\]', (FOLDER / name).read_text()))
    assert used == set(arguments), "every argument is used"
    assert of_kind(actions, "SetEnvironmentVariable")
    (localizer,) = [node.options for node in of_kind(actions, "Node") if node.options["name"] == "localizer"]
    assert (localizer["package"], localizer["executable"]) == ("aceg_ros", "localizer_node")
    given = {key for group in localizer["parameters"] if isinstance(group, dict) for key in group}
    assert {"map_path", "use_sim_time"} <= given <= set(DEFAULTS)


def test_the_manager_has_the_nodes_that_are_started(described):
    actions = described("localization.launch.py")
    nodes = {node.options["name"]: node.options for node in of_kind(actions, "Node")}
    (parameters,) = [group for group in nodes.pop("lifecycle_manager_localization")["parameters"]
                     if "node_names" in group] or [{}]
    assert set(parameters["node_names"]) == set(nodes)
    assert parameters["bond_timeout"] > 4 * DEFAULTS["bond_heartbeat_period"]


def test_the_parameters_fit_the_node():
    content = yaml.safe_load((FOLDER / "localizer.yaml").read_text())["/**"]["ros__parameters"]
    assert all(type(value) is type(DEFAULTS[name]) for name, value in content.items())
    assert content["autostart"] is False and content["bond_heartbeat_period"] > 0
    pose = PoseParameters(**{f.name: content[f.name] for f in fields(PoseParameters) if f.name in content})
    assert pose.rejection() is None and pose.published_transform == "map_to_odom"


def test_amcl_is_seeded_until_it_answers_and_when_it_is_lost(node, monkeypatch):
    module = load(FOLDER / "seed_amcl.py")
    monkeypatch.setattr(module, "REPEAT_S", 0.3)
    seeder, executor = module.AmclSeeder(), SingleThreadedExecutor()
    executor.add_node(seeder)
    executor.add_node(node)
    seeds: list[float] = []
    node.create_subscription(PoseWithCovarianceStamped, "initialpose",
                             lambda message: seeds.append(message.pose.pose.position.x), 10)
    localizer = node.create_publisher(PoseWithCovarianceStamped, "localizer/pose", 10)
    amcl = node.create_publisher(PoseWithCovarianceStamped, "amcl_pose",
                                 QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))

    def spin(duration_s: float) -> None:
        end_s = time.monotonic() + duration_s
        while time.monotonic() < end_s:
            executor.spin_once(timeout_sec=0.02)

    def publish(publisher, x: float, z: float = 0.0) -> None:
        message = PoseWithCovarianceStamped()
        message.pose.pose.position.x = x
        message.pose.pose.orientation.z, message.pose.pose.orientation.w = z, (1.0 - z * z) ** 0.5
        publisher.publish(message)
        spin(0.1)

    while not (localizer.get_subscription_count() and node.count_publishers("initialpose")):
        spin(0.05)
    for _ in range(6):
        publish(localizer, 3.0)
    assert 2 <= len(seeds) <= 3 and set(seeds) == {3.0}, "again, until AMCL answers"
    spin(0.3)
    seeds.clear()
    publish(amcl, 3.2)
    for _ in range(6):
        publish(localizer, 3.0)
    assert not seeds, "AMCL agrees"
    for _ in range(4):
        publish(localizer, 3.0, z=0.9)
    publish(localizer, 3.1)
    assert not seeds, "too few disagree"
    for _ in range(5):
        publish(localizer, 8.0)
    assert seeds == [8.0]
    executor.shutdown()
    seeder.destroy_node()
    assert rclpy.ok()
