# SPDX-License-Identifier: Apache-2.0
"""Parameters of all nodes: what `ros2 param describe` shows of them, and old names."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import Field, dataclass, fields, is_dataclass

import pytest
import rclpy
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter
from ros_graph import output

import aceg_ros.ros
from aceg_ros.errors import UserError
from aceg_ros.ros.common.parameters import ParameterGroup, parameter


def all_parameters() -> list[tuple[str, Field]]:
    """Every parameter that a dataclass of the package declares, with the name of the class."""
    found = {}
    for module in pkgutil.walk_packages(aceg_ros.ros.__path__, "aceg_ros.ros."):
        for name, kind in vars(importlib.import_module(module.name)).items():
            if isinstance(kind, type) and is_dataclass(kind):
                found |= {f"{name}.{field.name}": field for field in fields(kind) if "description" in field.metadata}
    return sorted(found.items())


ALL = all_parameters()


def test_the_parameters_were_found():
    assert {"LocalizerParameters.map_path", "MappingParameters.mapping_budget", "PlaybackParameters.rate",
            "EvaluationParameters.result_timeout", "BagParameters.topics"} <= {name for name, _ in ALL}


@pytest.mark.parametrize(("name", "field"), ALL, ids=[name for name, _ in ALL])
def test_the_description_stands_alone(name, field):
    """A sentence of its own, with the unit of what has one, and a range for every number."""
    description, (minimum, maximum) = field.metadata["description"], field.metadata["range"]
    assert description[0].isupper() and description.endswith(".") and len(description.split()) >= 4, description
    if isinstance(field.default, bool | str | tuple):
        assert minimum is None
        return
    assert minimum <= field.default <= maximum
    if isinstance(field.default, float):
        units = ("second", "Hz", "metre", "degree", "fraction", "standard deviations")
        assert any(unit in description for unit in units), description


@dataclass(frozen=True, kw_only=True)
class Renamed:
    rate: float = parameter(5.0, "Rate in Hz.", minimum=0.1, maximum=100.0, old_name="speed")
    mode: str = parameter("slow", "Mode of the test.", choices=("", "slow", "fast"), old_name="way")


@dataclass(frozen=True, kw_only=True)
class AlsoRenamed:
    depth: int = parameter(1, "Depth of the queue.", minimum=1, maximum=9, read_only=True, old_name="length")


@pytest.fixture
def make_node():
    rclpy.init()
    nodes: list[Node] = []

    def make(**overrides) -> Node:
        nodes.append(Node("test", parameter_overrides=[Parameter(name, value=value)
                                                       for name, value in overrides.items()]))
        return nodes[-1]

    yield make
    for node in nodes:
        node.destroy_node()
    rclpy.shutdown()


def descriptor(node: Node, name: str) -> ParameterDescriptor:
    return node.describe_parameter(name)


def test_descriptors_have_ranges_choices_and_what_is_fixed(make_node):
    node = make_node()
    ParameterGroup(node, Renamed)
    ParameterGroup(node, AlsoRenamed)
    (limits,) = descriptor(node, "rate").floating_point_range
    assert (limits.from_value, limits.to_value) == (0.1, 100.0)
    (limits,) = descriptor(node, "depth").integer_range
    assert (limits.from_value, limits.to_value, limits.step) == (1, 9, 1)
    assert descriptor(node, "depth").read_only and not descriptor(node, "rate").read_only
    assert descriptor(node, "mode").additional_constraints == "One of: (empty), slow, fast."
    assert descriptor(node, "mode").description == "Mode of the test."
    assert {"speed", "way", "length"}.isdisjoint(node.list_parameters([], 0).names)


def test_an_old_name_is_accepted_at_start(make_node, capfd):
    node = make_node(speed=7.0, length=3)
    assert ParameterGroup(node, Renamed).value == Renamed(rate=7.0)
    assert ParameterGroup(node, AlsoRenamed).value == AlsoRenamed(depth=3)
    assert node.get_parameter("rate").value == 7.0
    warnings = capfd.readouterr().err
    assert "'speed' is now called 'rate'" in warnings and "'length' is now called 'depth'" in warnings
    assert "'way'" not in warnings


def test_the_new_name_wins(make_node):
    assert ParameterGroup(make_node(speed=7.0, rate=8.0), Renamed).value.rate == 8.0


@pytest.mark.parametrize(("overrides", "word"), [({"speed": 1000.0}, "rate"), ({"speed": "fast"}, "speed"),
                                                 ({"way": "sideways"}, "sideways")])
def test_an_old_name_allows_no_more_than_the_new_one(make_node, overrides, word):
    with pytest.raises((UserError, rclpy.exceptions.ParameterException), match=word):
        ParameterGroup(make_node(**overrides), Renamed)


def test_an_old_name_is_accepted_while_running(make_node, capfd):
    node = make_node()
    changes = []
    group = ParameterGroup(node, Renamed, lambda old, new: changes.append((old.rate, new.rate)))
    other = ParameterGroup(node, AlsoRenamed)
    (result,) = node.set_parameters([Parameter("speed", value=6.0)])
    assert result.successful and group.value.rate == 6.0 and changes == [(5.0, 6.0)]
    assert "'speed' is now called 'rate'" in capfd.readouterr().err
    assert node.set_parameters_atomically([Parameter("speed", value=9.0), Parameter("mode", value="fast")]).successful
    assert group.value == Renamed(rate=9.0, mode="fast") and len(changes) == 2
    assert not node.set_parameters([Parameter("speed", value=1000.0)])[0].successful
    assert not node.set_parameters([Parameter("length", value=2)])[0].successful, "it is read-only under either name"
    assert group.value.rate == 9.0 and other.value.depth == 1
    with pytest.raises(rclpy.exceptions.ParameterNotDeclaredException):
        node.set_parameters([Parameter("unheard_of", value=1)])


def test_an_old_name_on_the_command_line(graph):
    """The evaluation node takes `silence`; that there is no such scene is the only mistake."""
    process = graph.start("aceg_ros.ros.evaluation_node", map="some.map", scene="/missing", silence=3.0)
    assert process.wait(60) == 2
    assert "'silence' is now called 'result_timeout'" in output(process) and "/missing" in output(process)
