# SPDX-License-Identifier: Apache-2.0
"""`aceg map`: posed images to a map file."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aceg_ros.cli.arguments import (
    SCENE_HELP,
    add_computing_flags,
    add_mapping_flags,
    add_rig_flags,
    add_scene_flags,
    add_verb,
    open_recording,
    parsed_by,
    seconds,
)
from aceg_ros.cli.console import StopOnInterrupt, frame_bar, mapping_progress, print_skipped
from aceg_ros.cli.reconstruct import add_reconstruction_flags, reconstruct_to
from aceg_ros.encoders import SHIPPED_ENCODERS
from aceg_ros.errors import UserError
from aceg_ros.methods import registry
from aceg_ros.methods.base import MappingOptions

if TYPE_CHECKING:
    from aceg_ros.datasets.scene import PosedFrames
    from aceg_ros.mapping.budget import MappingBudget
    from aceg_ros.maps.header import MappingStatistics
    from aceg_ros.maps.scene_map import SceneMap


def add_parser(verbs: Any) -> None:
    verb = add_verb(verbs, "map", run, "make a map from posed images")
    verb.add_argument("scenes", metavar="SCENE", nargs="+", help=f"{SCENE_HELP}; of several, the poses must be in one"
                      " map frame; or a video or a folder of images without poses, which are found first, as by"
                      " 'aceg reconstruct'")
    verb.add_argument("-o", "--output", metavar="MAP", required=True, help="map file to write")
    described = ", ".join(f"{spec.name} ({spec.summary})" for spec in registry.specs())
    verb.add_argument("--method", metavar="METHOD", help=f"mapping method: {described}; by default, the first of"
                      f" {', '.join(registry.default_names())} that supports the encoder and the given flags")
    verb.add_argument("--encoder", help=f"shipped encoder ({', '.join(SHIPPED_ENCODERS)}) or a file from 'aceg import'"
                      " (default: the one that suits the method best)")
    verb.add_argument("--budget", type=seconds, metavar="S", help="time limit in seconds for reading and mapping"
                      " (default: 300 on a CPU, 120 on a GPU)")
    conflicting = {"use_depth": verb.add_mutually_exclusive_group()}
    conflicting["use_depth"].add_argument("--use-depth", action="store_true", help="use the scene's depth images"
                                          " as well")
    _add_method_flags(verb, conflicting)
    add_mapping_flags(verb)
    add_scene_flags(verb)
    add_rig_flags(verb)
    add_reconstruction_flags(verb)
    add_computing_flags(verb)


def _add_method_flags(verb: argparse.ArgumentParser, conflicting: dict[str, Any]) -> None:
    """Add a flag for each option of any method. The parsed arguments contain only those that were given.

    conflicting: groups of mutually exclusive flags, by the name of the common option in each.
    """
    for name, by_method in registry.all_options().items():
        option = next(iter(by_method.values()))
        target = verb if option.conflicts_with is None else conflicting[option.conflicts_with]
        text = "; ".join(f"of --method {method}: {each.help}" for method, each in by_method.items())
        if option.kind is bool:
            target.add_argument(option.flag, dest=name, action="store_true", default=argparse.SUPPRESS, help=text)
        else:
            parse = option.parse if len(by_method) == 1 else option.convert     # `make_method_options` checks it
            target.add_argument(option.flag, dest=name, type=parsed_by(parse), default=argparse.SUPPRESS, help=text,
                                metavar=option.metavar)


def run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    from aceg_ros.datasets import SceneGroup
    from aceg_ros.mapping.budget import MappingBudget, default_budget_s
    from aceg_ros.maps.scene_map import check_writable
    from aceg_ros.reconstruction.sources import is_unposed
    from aceg_ros.utils.device import pick_device

    given = {name: getattr(options, name) for name in registry.all_options() if hasattr(options, name)}
    if options.method is not None:
        registry.make_method_options(options.method, given)          # reports errors before the scene is opened
    device = pick_device(options.device)
    total_s = default_budget_s(device) if options.budget is None else options.budget
    opening = time.monotonic()
    scenes = [_open(options, path) for path in options.scenes]
    if is_unposed(Path(options.scenes[0])):
        started += time.monotonic() - opening               # the budget is for mapping: finding poses has taken its own
    scene = scenes[0] if len(scenes) == 1 else SceneGroup(scenes)
    check_writable(options.output)
    mapping = MappingOptions(encoder=options.encoder, seed=options.seed, device=device, use_depth=options.use_depth,
                             trust_poses=options.trust_poses)
    method = options.method or registry.default_method(mapping, given)
    method_options = registry.make_method_options(method, given)
    with StopOnInterrupt() as stop, mapping_progress(options) as bar:
        budget = MappingBudget.start(total_s, progress=bar.show, should_stop=stop.is_requested, started=started)
        scene_map = _build(method, mapping, method_options, scene=scene, budget=budget)
    size = scene_map.save(options.output)
    _warn_if_budget_was_short(scene_map.statistics, total_s)
    print(f"{options.output}: {size / 1e6:.1f} MB, {_summary(options.output, scene_map.statistics)},"
          f" {time.monotonic() - started:.0f} s")
    return 0


def _open(options: argparse.Namespace, path: str) -> PosedFrames:
    """Open a recording; of images without poses, these are found first."""
    from aceg_ros.datasets import open_scene
    from aceg_ros.reconstruction.sources import is_unposed

    if options.cameras or not is_unposed(Path(path)):
        return open_recording(options, path)
    if len(options.scenes) > 1:
        raise UserError(f"{path} has no poses: reconstruct it alone, as its poses would be in a frame of their own.")
    recording = Path(options.output).with_name(f"{Path(options.output).stem}_recording")
    print(f"{recording}: {reconstruct_to(Path(path), recording, options)}")
    return open_scene(recording)


def _build(method: str, mapping: MappingOptions, method_options: Any, *, scene: PosedFrames,
           budget: MappingBudget) -> SceneMap:
    from aceg_ros.methods.build_map import build_map

    frames = frame_bar(scene, "reading frames")
    scene_map, skipped = build_map(method, mapping, frames, budget, method_options=method_options)
    print_skipped(skipped, len(scene))
    return scene_map


def _warn_if_budget_was_short(done: MappingStatistics, total_s: float) -> None:
    """Print a warning if the budget was too short for all images."""
    if done.encoded < done.frames and done.mapping_s > 0.75 * total_s:
        print(f"aceg: there was time for {done.encoded} of {done.frames} images only: give more with --budget, or take"
              " fewer with --every.", file=sys.stderr)


def _summary(path: str, done: MappingStatistics) -> str:
    from aceg_ros.maps.describe import describe

    parts = [describe(path)["holds"], f"made from {done.frames} images"]
    if done.iterations:
        parts.append(f"{done.iterations} iterations, training reprojection error {done.reprojection_px:.1f} px")
    if done.held_out:
        parts.append(f"{done.held_out} more calibrated the covariances")
    if not done.complete:
        parts.append("stopped early: incomplete")
    return "; ".join(parts)
