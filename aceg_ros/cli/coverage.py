# SPDX-License-Identifier: Apache-2.0
"""`aceg coverage`: from where, and in which direction, a map is expected to localize."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from aceg_ros.cli.arguments import add_verb, positive
from aceg_ros.errors import UserError


def add_parser(verbs: Any) -> None:
    verb = add_verb(verbs, "coverage", run, "show from where and in which direction a map is expected to localize")
    verb.add_argument("map", metavar="MAP")
    verb.add_argument("-o", "--output", metavar="FILE.html", help="page to write (default: beside the map)")
    verb.add_argument("--resolution", type=float, metavar="M", help="side of the cells (default: a tenth of the median"
                      " depth)")
    verb.add_argument("--headings", type=positive, default=8, metavar="N", help="number of directions"
                      " (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    from aceg_ros.evaluation.coverage_page import describe_summary, summary, write_coverage_page
    from aceg_ros.maps.coverage import coverage_of_map
    from aceg_ros.maps.scene_map import SceneMap, check_writable

    if options.resolution is not None and not options.resolution > 0:
        raise UserError(f"A resolution of {options.resolution} m is not positive.")
    path = Path(options.map)
    output = Path(options.output) if options.output else path.with_name(f"{path.stem}_coverage.html")
    scene_map = SceneMap.load(path)
    check_writable(output)
    grid = coverage_of_map(scene_map, resolution_m=options.resolution, headings=options.headings)
    write_coverage_page(output, grid, scene_map, path.name)
    print(f"{describe_summary(summary(grid, scene_map), options.headings)}\n{output} shows where.")
    return 0
