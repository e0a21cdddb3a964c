# SPDX-License-Identifier: Apache-2.0
"""`aceg record`: ROS 2 topics into a bag."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from aceg_ros.cli.arguments import add_verb
from aceg_ros.cli.ros_node import exec_ros_node


def add_parser(verbs: Any) -> None:
    verb = add_verb(verbs, "record", run, "record ROS 2 topics into an mcap bag, until Ctrl-C")
    verb.add_argument("topics", metavar="TOPIC", nargs="*", help="(default: all)")
    verb.add_argument("-o", "--output", metavar="BAG", required=True, help="folder of the new bag")


def run(options: argparse.Namespace) -> int:
    return exec_ros_node("bag_recorder", {"output": str(Path(options.output).resolve()),
                                        "topics": " ".join(options.topics)})
