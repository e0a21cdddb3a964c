# SPDX-License-Identifier: Apache-2.0
"""`aceg demo`: mapping and localizing end to end over ROS 2 topics."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from aceg_ros.cli.arguments import add_verb, seconds


def add_parser(verbs: Any) -> None:
    verb = add_verb(verbs, "demo", run, "map and localize end to end over real ROS 2 topics")
    verb.add_argument("--scene", metavar="DIR", help="a folder with mapping/ and query/ (default: a rendered room)")
    verb.add_argument("--output", metavar="DIR", default="demo_output", help="(default: %(default)s)")
    verb.add_argument("--budget", type=seconds, metavar="S", help="seconds for mapping (default: 110 for the rendered"
                      " room, 300 for a scene)")


def run(options: argparse.Namespace) -> int:
    from aceg_ros.demo.run import run_demo

    run_demo(Path(options.output), None if options.scene is None else Path(options.scene), options.budget)
    return 0
