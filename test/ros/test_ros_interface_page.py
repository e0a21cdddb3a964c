# SPDX-License-Identifier: Apache-2.0
"""docs/ros_interface.md has the parameters of all nodes as their dataclasses declare them."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from pathlib import Path

from test_node_parameters import ALL

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_are_those_of_the_dataclasses(generate_docs):
    page = (ROOT / "docs" / "ros_interface.md").read_text()
    assert page == generate_docs.with_parameter_tables(page), "python scripts/generate_docs.py makes them anew"


def test_no_parameter_is_left_out(generate_docs):
    listed = {f"{name}.{field.name}" for kinds in generate_docs.NODES.values() for module, name in kinds
              for field in fields(getattr(import_module(f"aceg_ros.ros.{module}"), name))}
    assert listed == {name for name, _ in ALL}
