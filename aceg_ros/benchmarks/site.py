# SPDX-License-Identifier: Apache-2.0
"""One map of a rendered site of furnished rooms, some of them twins, and images of a later visit: wrong poses.

    python -m aceg_ros.benchmarks.site -o OUTPUT [--rooms N] [--twins N] [--images N] [--queries N] [--textures DIR]

Twins are rooms of which an image may fit two places: they are equal, or differ by a quarter of their objects. A pose is
wrong if it is off by more than 0.5 m or 10 deg; where it lies in the twin room, it is counted there. In the later visit
the light differs, and objects were moved and removed. The map and the rooms that are in OUTPUT are not computed again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aceg_ros.datasets import open_scene, open_scenes, write_ace_scene
from aceg_ros.evaluation.evaluate import evaluate
from aceg_ros.evaluation.metrics import FALSE_BOUNDS
from aceg_ros.geometry import pose_error
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.maps.keyframe_database import SECTION
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.build_map import build_map
from aceg_ros.methods.registry import default_method, make_localizer
from aceg_ros.synthetic.site import SiteRoom, make_site
from aceg_ros.synthetic.textures import load_atlas
from aceg_ros.utils.atomic_file import write_json
from aceg_ros.utils.malloc import configure_malloc

SITE_SEED = 7_000_000
BOUND = (0.05, 5.0)                 # metres and degrees of a recalled image
KINDS = ("like no other", "alike", "equal")


def run(output: Path, *, rooms: int, twins: int, images: int, queries: int, textures: Path | None = None,
        budget_s: float = 900.0) -> str:
    """Render, map and localize; images and queries: of each room. Returns Markdown tables."""
    atlas = load_atlas(textures)
    site = make_site(SITE_SEED, len(atlas), rooms=rooms, twins=twins)
    folders = [output / f"room_{room.number}" for room in site]
    for room, folder in zip(site, folders, strict=True):
        if not (folder / "complete").exists():
            mapping, query = room.render_sessions(atlas, mapping=images, query=queries)
            write_ace_scene(folder / "mapping", mapping, "jpg")
            write_ace_scene(folder / "query", query, "jpg")
            (folder / "complete").touch()
    scene_map = _mapped(output / "site.map", folders, budget_s)
    results = {room.number: _localized(scene_map, room, site, folder)
               for room, folder in zip(site, folders, strict=True)}
    return _tables(scene_map, site, results)


def _mapped(path: Path, folders: Sequence[Path], budget_s: float) -> SceneMap:
    if not path.exists():
        options = MappingOptions(device="cpu", trust_poses=True)
        frames = open_scenes([folder / "mapping" for folder in folders])
        scene_map, _ = build_map(default_method(options, {}), options, frames, MappingBudget.start(budget_s))
        scene_map.save(path)
    return SceneMap.load(path)


def _localized(scene_map: SceneMap, room: SiteRoom, site: Sequence[SiteRoom], folder: Path) -> dict[str, Any]:
    """Return the errors of the images of a room, that of poses in its twin too, and how long each took."""
    file = folder / "results.json"
    if file.exists():
        return json.loads(file.read_text())
    other = _twin_of(room, site)
    found = evaluate(make_localizer(scene_map, "cpu"), open_scene(folder / "query"))
    result: dict[str, Any] = {"statuses": [each.estimate.status.value for each in found], "in_twin": 0,
                              "errors": [each.errors for each in found if each.errors is not None],
                              "ms": [each.latency_ms for each in found]}
    for each in found:
        pose = each.estimate.map_from_camera
        if pose is not None and other is not None:
            copy = other.site_from_room @ np.linalg.inv(room.site_from_room) @ each.truth
            result["in_twin"] += pose_error(pose, copy) <= FALSE_BOUNDS
    write_json(result, file)
    return result


def _twin_of(room: SiteRoom, site: Sequence[SiteRoom]) -> SiteRoom | None:
    """Return the room that is like this one, whichever was drawn first."""
    if room.twin is not None:
        return site[room.twin]
    return next((other for other in site if other.twin == room.number), None)


def _kind(room: SiteRoom, site: Sequence[SiteRoom]) -> str:
    twin = _twin_of(room, site)
    return KINDS[0] if twin is None else KINDS[2] if room.exact or twin.exact else KINDS[1]


def _tables(scene_map: SceneMap, site: Sequence[SiteRoom], results: dict[int, dict[str, Any]]) -> str:
    database = scene_map.sections[SECTION]
    done = scene_map.statistics
    lines = [f"{len(site)} rooms, {done.frames} images mapped in {done.mapping_s:.0f} s:"
             f" {len(database['poses'])} keyframes, {len(database['points'])} landmarks,"
             f" {len(database['descriptors'])} observations", "",
             "| rooms | number | images | accepted | recall 0.05/5 | wrong | wrong, in the twin | ambiguous | p50 ms |",
             "|---" * 9 + "|"]
    for kind in (*KINDS, "all"):
        own = [results[room.number] for room in site if kind in ("all", _kind(room, site))]
        if own:
            lines.append(f"| {kind} | {len(own)} | {_cells(own)} |")
    return "\n".join(lines)


def _cells(results: Sequence[dict[str, Any]]) -> str:
    errors = np.array([error for each in results for error in each["errors"]]).reshape(-1, 2)
    statuses = [status for each in results for status in each["statuses"]]
    return (f"{len(statuses)} | {len(errors)} | {(errors <= BOUND).all(1).sum() / len(statuses):.3f} |"
            f" {int((errors > FALSE_BOUNDS).any(1).sum())} | {sum(each['in_twin'] for each in results)} |"
            f" {statuses.count('ambiguous_pose')} | {np.median([ms for each in results for ms in each['ms']]):.0f}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rooms", type=int, default=50, help="(default: %(default)s)")
    parser.add_argument("--twins", type=int, default=6, help="pairs of twins among them (default: %(default)s)")
    parser.add_argument("--images", type=int, default=200, help="to map, of each room (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=40, help="to localize, of each room (default: %(default)s)")
    parser.add_argument("--textures", type=Path, help="folder of additional texture tiles")
    parser.add_argument("--budget", type=float, default=900.0, help="seconds for the map (default: %(default)s)")
    options = parser.parse_args(arguments)
    configure_malloc()
    print(run(options.output, rooms=options.rooms, twins=options.twins, images=options.images,
              queries=options.queries, textures=options.textures, budget_s=options.budget))
    return 0


if __name__ == "__main__":
    sys.exit(main())
