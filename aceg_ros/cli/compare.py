# SPDX-License-Identifier: Apache-2.0
"""`aceg compare`: several maps on one scene."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from aceg_ros.cli.arguments import (
    SCENE_HELP,
    add_computing_flags,
    add_scene_flags,
    add_verb,
    bag_options,
    check_outputs,
)
from aceg_ros.cli.console import localizing_bar, print_skipped
from aceg_ros.errors import UserError


def add_parser(verbs: Any) -> None:
    verb = add_verb(verbs, "compare", run, "evaluate several maps on one scene, side by side")
    verb.add_argument("maps", metavar="MAP", nargs="+")
    verb.add_argument("scene", metavar="SCENE", help=SCENE_HELP)
    verb.add_argument("--json", metavar="FILE", help="write all statistics, by map")
    verb.add_argument("--report", metavar="DIR", help="write report.html with all maps in it")
    add_scene_flags(verb)
    add_computing_flags(verb)


def run(options: argparse.Namespace) -> int:
    from aceg_ros.datasets import open_scene
    from aceg_ros.evaluation.compare import compare, table
    from aceg_ros.utils.atomic_file import write_json
    from aceg_ros.utils.device import pick_device

    paths = [Path(path) for path in options.maps]
    if len({path.stem for path in paths}) < len(paths):
        raise UserError("Two of the maps have the same name, which is the title of their columns: rename one of them.")
    device = pick_device(options.device)
    scene = open_scene(options.scene, options.every, bag_options(options))
    check_outputs(options)
    with localizing_bar(len(paths) * len(scene)) as progress:
        evaluations = compare(paths, scene, device=device, seed=options.seed, progress=progress)
    print_skipped([skipped.reason for skipped in scene.skipped], len(scene))
    if options.json:
        write_json({each.name: each.statistics for each in evaluations}, Path(options.json))
    if options.report:
        from aceg_ros.evaluation.html_page import write_page
        write_page(Path(options.report) / "report.html", evaluations, scene.name, scene)
    print(table(evaluations))
    return 0
