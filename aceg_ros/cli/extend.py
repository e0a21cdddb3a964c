# SPDX-License-Identifier: Apache-2.0
"""`aceg extend`: a map grows by further recordings."""

from __future__ import annotations

import argparse
import time
from typing import Any

from aceg_ros.cli.arguments import (
    SCENE_HELP,
    add_computing_flags,
    add_mapping_flags,
    add_rig_flags,
    add_scene_flags,
    add_verb,
    open_recording,
    seconds,
    whole_number,
)
from aceg_ros.cli.console import StopOnInterrupt, frame_bar, mapping_progress, print_skipped


def add_parser(verbs: Any) -> None:
    verb = add_verb(verbs, "extend", run, "extend a map by further recordings")
    verb.description = ("Extend a map with a keyframe database by further recordings, with poses in its frame: another"
                        " light, another wing, things moved. New observations stand beside the old ones, and landmarks"
                        " that recordings should have seen and did not are dropped in the end. The map file is replaced"
                        " when the new one is complete.")
    verb.add_argument("map", metavar="MAP")
    verb.add_argument("scenes", metavar="RECORDING", nargs="+", help=f"{SCENE_HELP}; of several, one is added after the"
                      " other")
    verb.add_argument("-o", "--output", metavar="MAP", help="map file to write (default: MAP itself)")
    verb.add_argument("--fade-after", type=whole_number, default=3, metavar="N", help="drop a landmark when N"
                      " recordings, one after the other, should have seen it and did not; 0 for never (default:"
                      " %(default)s)")
    verb.add_argument("--budget", type=seconds, metavar="S", help="time limit in seconds for reading and mapping"
                      " each recording (default: 300 on a CPU, 120 on a GPU)")
    verb.add_argument("--use-depth", action="store_true", help="use the recording's depth images as well")
    add_mapping_flags(verb)
    add_scene_flags(verb)
    add_rig_flags(verb)
    add_computing_flags(verb)


def run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    from aceg_ros.mapping.budget import MappingBudget, default_budget_s
    from aceg_ros.maps.keyframe_database import SECTION
    from aceg_ros.maps.scene_map import SceneMap, check_writable
    from aceg_ros.methods.base import MappingOptions
    from aceg_ros.methods.build_map import extend_map
    from aceg_ros.utils.device import pick_device

    output = options.output or options.map
    scene_map = SceneMap.load(options.map)
    scenes = [open_recording(options, path) for path in options.scenes]
    check_writable(output)
    device = pick_device(options.device)
    mapping = MappingOptions(seed=options.seed, device=device, use_depth=options.use_depth,
                             trust_poses=options.trust_poses)
    total_s = default_budget_s(device) if options.budget is None else options.budget
    for scene in scenes:
        with StopOnInterrupt() as stop, mapping_progress(options) as bar:
            budget = MappingBudget.start(total_s, progress=bar.show, should_stop=stop.is_requested)
            frames = frame_bar(scene, "reading frames")
            scene_map, skipped = extend_map(scene_map, mapping, frames, budget, fade_after=options.fade_after)
        print_skipped(skipped, len(scene))
    size = scene_map.save(output)
    database, statistics = scene_map.sections[SECTION], scene_map.statistics
    note = "" if statistics.complete else " (stopped early: incomplete)"
    print(f"{output}: {statistics.frames} frames, {len(database['poses'])} keyframes, {len(database['points'])}"
          f" landmarks, {statistics.patches} observations, {time.monotonic() - started:.0f} s,"
          f" {size / 1e6:.1f} MB{note}")
    return 0
