# SPDX-License-Identifier: Apache-2.0
"""`aceg evaluate`: how well a map localizes the images of a scene."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aceg_ros.cli.arguments import (
    SCENE_HELP,
    add_computing_flags,
    add_method_flag,
    add_rig_flags,
    add_scene_flags,
    add_verb,
    bag_options,
    check_outputs,
    rig_options,
)
from aceg_ros.cli.console import localizing_bar, print_skipped
from aceg_ros.errors import UserError

if TYPE_CHECKING:
    from aceg_ros.datasets import Scene
    from aceg_ros.datasets.bag.rig import RigScene
    from aceg_ros.evaluation.evaluate import Evaluation
    from aceg_ros.maps.scene_map import SceneMap


def add_parser(verbs: Any) -> None:
    verb = add_verb(verbs, "evaluate", run, "localize every image of a scene and compare with its poses")
    verb.add_argument("map", metavar="MAP")
    verb.add_argument("scene", metavar="SCENE", help=SCENE_HELP)
    verb.add_argument("--json", metavar="FILE", help="write the statistics to a file as well")
    verb.add_argument("--report", metavar="DIR", help="write report.html, per-frame table, trajectories and plots")
    add_method_flag(verb)
    add_scene_flags(verb)
    add_rig_flags(verb)
    add_computing_flags(verb)


def run(options: argparse.Namespace) -> int:
    from aceg_ros.datasets import Scene
    from aceg_ros.maps.scene_map import SceneMap
    from aceg_ros.utils.atomic_file import write_json

    path, rig = Path(options.map), rig_options(options)
    scene_map = SceneMap.load(path)
    check_outputs(options)
    evaluation, scene = (_evaluate_images if rig is None else _evaluate_rig)(options, scene_map)
    print_skipped([skipped.reason for skipped in scene.skipped], len(scene))
    if options.json:
        write_json(evaluation.statistics, Path(options.json))
    if options.report:
        from aceg_ros.evaluation.html_page import write_page
        from aceg_ros.evaluation.report import write_report
        write_report(Path(options.report), evaluation.results, scene_map)
        write_json(evaluation.statistics, Path(options.report) / "summary.json")
        write_page(Path(options.report) / "report.html", [evaluation], scene.name,
                   scene if isinstance(scene, Scene) else ())
        print(f"aceg: {Path(options.report) / 'report.html'} shows the result.", file=sys.stderr)
    print(json.dumps(evaluation.statistics, indent=2))
    return 0


def _evaluate_images(options: argparse.Namespace, scene_map: SceneMap) -> tuple[Evaluation, Scene]:
    from aceg_ros.datasets import open_scene
    from aceg_ros.evaluation.evaluate import evaluate_map
    from aceg_ros.utils.device import pick_device

    scene, path = open_scene(options.scene, options.every, bag_options(options)), Path(options.map)
    with localizing_bar(len(scene)) as progress:
        return evaluate_map(scene_map, scene, name=path.name, path=path, device=pick_device(options.device),
                            seed=options.seed, method=options.method, progress=progress), scene


def _evaluate_rig(options: argparse.Namespace, scene_map: SceneMap) -> tuple[Evaluation, RigScene]:
    from aceg_ros.datasets.bag.rig import open_rig
    from aceg_ros.evaluation.evaluate import evaluate_rig
    from aceg_ros.utils.device import pick_device

    if options.method is not None:
        raise UserError("--method is for one camera: rigs are localized with the map's keyframe database.")
    rig, path = rig_options(options), Path(options.map)
    assert rig is not None
    scene = open_rig(options.scene, rig, options.every, bag_options(options))
    with localizing_bar(len(scene)) as progress:
        return evaluate_rig(scene_map, scene, name=path.name, path=path, device=pick_device(options.device),
                            seed=options.seed, progress=progress), scene
