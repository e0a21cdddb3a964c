"""`aceg evaluate`: how well a map localizes the images of a scene."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from aceg_ros.cli.arguments import (
    SCENE_HELP,
    add_computing_flags,
    add_method_flag,
    add_scene_flags,
    add_verb,
    bag_options,
    check_outputs,
)
from aceg_ros.cli.console import localizing_bar, print_skipped


def add_parser(verbs: Any) -> None:
    verb = add_verb(verbs, "evaluate", run, "localize every image of a scene and compare with its poses")
    verb.add_argument("map", metavar="MAP")
    verb.add_argument("scene", metavar="SCENE", help=SCENE_HELP)
    verb.add_argument("--json", metavar="FILE", help="write the statistics to a file as well")
    verb.add_argument("--report", metavar="DIR", help="write report.html, per-frame table, trajectories and plots")
    add_method_flag(verb)
    add_scene_flags(verb)
    add_computing_flags(verb)


def run(options: argparse.Namespace) -> int:
    from aceg_ros.datasets import open_scene
    from aceg_ros.evaluation.evaluate import evaluate_map
    from aceg_ros.maps.scene_map import SceneMap
    from aceg_ros.utils.atomic_file import write_json
    from aceg_ros.utils.device import pick_device

    device, path = pick_device(options.device), Path(options.map)
    scene_map = SceneMap.load(path)
    scene = open_scene(options.scene, options.every, bag_options(options))
    check_outputs(options)
    with localizing_bar(len(scene)) as progress:
        evaluation = evaluate_map(scene_map, scene, name=path.name, path=path, device=device, seed=options.seed,
                                  method=options.method, progress=progress)
    print_skipped([skipped.reason for skipped in scene.skipped], len(scene))
    if options.json:
        write_json(evaluation.statistics, Path(options.json))
    if options.report:
        from aceg_ros.evaluation.html_page import write_page
        from aceg_ros.evaluation.report import write_report
        write_report(Path(options.report), evaluation.results, scene_map)
        write_json(evaluation.statistics, Path(options.report) / "summary.json")
        write_page(Path(options.report) / "report.html", [evaluation], scene.name, scene)
    print(json.dumps(evaluation.statistics, indent=2))
    return 0
