# SPDX-License-Identifier: Apache-2.0
"""`aceg view`: a map, and how a scene is localized in it, in Rerun."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from aceg_ros.cli.arguments import SCENE_HELP, add_computing_flags, add_scene_flags, add_verb, bag_options
from aceg_ros.cli.console import frame_bar


def add_parser(verbs: Any) -> None:
    verb = add_verb(verbs, "view", run, "show a map, and how a scene is localized in it, in Rerun")
    verb.add_argument("map", metavar="MAP")
    verb.add_argument("scene", metavar="SCENE", nargs="?", help=SCENE_HELP)
    verb.add_argument("--save", metavar="FILE.rrd", help="save instead of opening a window")
    add_scene_flags(verb)
    add_computing_flags(verb)


def run(options: argparse.Namespace) -> int:
    from aceg_ros.datasets import open_scene
    from aceg_ros.maps.scene_map import SceneMap, check_writable
    from aceg_ros.methods.registry import make_localizer
    from aceg_ros.visualization.rerun_viewer import show

    scene_map = SceneMap.load(options.map)
    frames = () if options.scene is None else open_scene(options.scene, options.every, bag_options(options))
    localizer = None if options.scene is None else make_localizer(scene_map, options.device, options.seed)
    if options.save:
        check_writable(options.save)
    count = show(scene_map, localizer, frame_bar(frames, "localizing"),
                 None if options.save is None else Path(options.save))
    print(f"{options.map}: {len(scene_map.cloud_xyz)} points, {count} frames shown"
          + (f"; saved as {options.save}, open it with 'rerun {options.save}'." if options.save else "."))
    return 0
