# SPDX-License-Identifier: Apache-2.0
"""`aceg bench`: the time of each stage of localization."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from aceg_ros.cli.arguments import add_device_flag, add_verb


def add_parser(verbs: Any) -> None:
    verb = add_verb(verbs, "bench", run, "time every stage of localization on this machine")
    verb.add_argument("--map", metavar="MAP", help="a map of the demo room to time, such as"
                      " demo_output/scene.map (default: untrained weights of the default sizes)")
    verb.add_argument("--repeats", type=int, default=40, metavar="N", help="number of images (default: %(default)s)")
    verb.add_argument("--json", metavar="FILE", help="write the times to a file as well")
    add_device_flag(verb)


def run(options: argparse.Namespace) -> int:
    from aceg_ros.benchmarks.speed import measure_speed

    content = measure_speed(options.map, options.device, options.repeats)
    if options.json:
        from aceg_ros.utils.atomic_file import write_json
        write_json(content, Path(options.json))
    return 0
