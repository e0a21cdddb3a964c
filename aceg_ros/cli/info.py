# SPDX-License-Identifier: Apache-2.0
"""`aceg info`: what a map is and how it was made."""

from __future__ import annotations

import argparse
from typing import Any

from aceg_ros.cli.arguments import add_verb


def add_parser(verbs: Any) -> None:
    verb = add_verb(verbs, "info", run, "show what a map is and how it was made")
    verb.add_argument("map", metavar="MAP")
    verb.add_argument("--verify", action="store_true", help="read the whole map and compare it with its checksums")


def run(options: argparse.Namespace) -> int:
    from aceg_ros.maps.describe import describe

    for name, value in describe(options.map).items():
        print(f"{name:>16}: {value}")
    if options.verify:
        from aceg_ros.maps.scene_map import SceneMap  # describing a map needs no torch
        SceneMap.load(options.map).verify()
        print(f"{'verified':>16}: all sections match their checksums")
    return 0
