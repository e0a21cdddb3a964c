# SPDX-License-Identifier: Apache-2.0
"""What each part of the keyframe database and its localizer is worth, on held-out chunks of mapping parts.

    python -m aceg_ros.benchmarks.keyframe_ablations SCENES [--only NAME ...] [-o TABLE.md]

SCENES contains folders with mapping/. Three tenths of each are held out, in three chunks, and localized in maps of the
rest: query parts take no part. A row is everything as shipped but for one thing. Rows are printed as they are ready.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from aceg_ros.api import build_map
from aceg_ros.camera import Frame
from aceg_ros.datasets import open_scene
from aceg_ros.encoders.base import BestKeypoints, Encoder, load_encoder
from aceg_ros.encoders.feature_map import FeatureMap
from aceg_ros.encoders.keypoints import Keypoints
from aceg_ros.estimate import PoseEstimate, PriorPose
from aceg_ros.evaluation.metrics import FALSE_BOUNDS
from aceg_ros.geometry import pose_error
from aceg_ros.mapping.augmentation import prepare_frame
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.build_database import DatabaseOptions, build_database
from aceg_ros.maps.descriptor_index import ObservationMatcher
from aceg_ros.maps.keyframe_database import KeyframeDatabase
from aceg_ros.methods.ace_g_mapper import COMPACT_OBSERVATIONS, DATABASE_ENCODER
from aceg_ros.methods.keyframe_localizer import KeyframeLocalizer
from aceg_ros.methods.landmark_search import KeyframeLocalizerConfig
from aceg_ros.methods.localize_frame import localize_frame
from aceg_ros.methods.registry import make_localizer
from aceg_ros.pose.verify import estimate_verified_pose
from aceg_ros.utils.stopwatch import Stopwatch

CHUNKS, CHUNK_SHARE = (0.15, 0.45, 0.75), 0.1       # where the held-out chunks begin, and their length
UNLIMITED = 1e9
SHIPPED = KeyframeLocalizerConfig()

Localize = Callable[[Frame], PoseEstimate]


@dataclass(frozen=True, kw_only=True)
class CellCentres(Encoder):
    """An encoder without keypoints: descriptors at the centres of cells."""

    def detect(self, images: Tensor) -> FeatureMap:
        return self.extract(images)

    def detect_best(self, images: Tensor, choose: Callable[[Tensor], Tensor]) -> BestKeypoints | None:
        return None


class FirstLook(KeyframeLocalizer):
    """Without a second look: the pose from the matches with the shortlist, and the gates of poses from scene
    coordinates, with a fixed inlier threshold."""

    def localize(self, frame: Frame, prior: PriorPose | None = None) -> PoseEstimate:
        return localize_frame(frame, self.extract, self._localize)

    def _localize(self, query: Keypoints, stopwatch: Stopwatch | None = None) -> PoseEstimate:
        search = self._search
        matches = ObservationMatcher(query, search.database).match(
            search.shortlist(query).keyframes[:SHIPPED.ranked_shortlist])
        return estimate_verified_pose(search.correspondences(query, matches))


def localizer_variants() -> dict[str, tuple[type[KeyframeLocalizer], KeyframeLocalizerConfig]]:
    """Return the localizers that are tried on the database as shipped."""
    guided, gates = SHIPPED.guided, SHIPPED.gates
    undemanding = replace(gates, min_distinctive_inliers=0, min_distinctive_share=0.0)
    configs = {
        "as shipped": SHIPPED,
        **{f"{count} keypoints": replace(SHIPPED, keypoints=count) for count in (600, 1000, 2400)},
        **{f"first shortlist of {count}": replace(SHIPPED, shortlist=count) for count in (1, 2, 8, 20)},
        "not ranked by landmarks": replace(SHIPPED, wide_shortlist=SHIPPED.ranked_shortlist),
        "no further hypotheses": replace(SHIPPED, group_hypotheses=0),
        "images only as they are": replace(SHIPPED, other_views=False),
        "windows of 8 px": replace(SHIPPED, guided=replace(guided, search_radius_px=8.0)),
        "RANSAC at 4 px only": replace(SHIPPED, guided=replace(guided, ransac_thresholds_px=(4.0,))),
        "all matches, however dissimilar": replace(SHIPPED, guided=replace(guided, min_similarities=())),
        "no confirmation": replace(SHIPPED, gates=replace(
            undemanding, max_overall_log10_nfa=UNLIMITED, min_supporting_inliers=0)),
        "distinctive or not": replace(SHIPPED, gates=undemanding),
        "no competitor": replace(SHIPPED, gates=replace(gates, max_competitor_significance=UNLIMITED)),
    }
    return {name: (KeyframeLocalizer, config) for name, config in configs.items()} | {
        "no second look, fixed threshold and ratios": (FirstLook, SHIPPED)}


def localizers(frames: Sequence[Frame], encoder: Encoder) -> dict[str, Callable[[], Localize]]:
    """Return functions that make the localizers of all rows from the mapping images."""
    database = _database(frames, encoder, DatabaseOptions())
    made: dict[str, Callable[[], Localize]] = {}
    for name, (kind, config) in localizer_variants().items():
        made[name] = partial(_localize_in, database, encoder, kind=kind, config=config)
    made["32 bytes a descriptor"] = lambda: _localize_in(
        KeyframeDatabase.from_section(database.to_section(compact=True)), encoder)
    made["compact map (also fewer observations)"] = lambda: _localize_in(KeyframeDatabase.from_section(
        _database(frames, encoder, DatabaseOptions(observations=COMPACT_OBSERVATIONS)).to_section(compact=True)),
        encoder)
    made["poses not refined"] = lambda: _localize_in(_database(frames, encoder, DatabaseOptions(refine_poses=False)),
                                                     encoder)
    centres = CellCentres(**{name: getattr(encoder, name) for name in Encoder.__dataclass_fields__})
    made["centres of cells"] = lambda: _localize_in(_database(frames, centres, DatabaseOptions()), centres)
    made["encoder compact, with corners"] = lambda: _localize_in(
        _database(frames, load_encoder("compact"), DatabaseOptions()), load_encoder("compact"))
    made["clusters and a regressor, no database"] = lambda: make_localizer(
        build_map(frames, method="ace_g", regressor="ace_g", budget_s=300.0)).localize
    return made


def _database(frames: Sequence[Frame], encoder: Encoder, options: DatabaseOptions) -> KeyframeDatabase:
    prepared = [prepare_frame(frame, encoder.short_side_px, encoder.stride) for frame in frames]
    built = build_database(prepared, encoder, options, MappingBudget.start())
    assert built is not None
    return built.database


def _localize_in(database: KeyframeDatabase, encoder: Encoder, *, kind: type[KeyframeLocalizer] = KeyframeLocalizer,
                 config: KeyframeLocalizerConfig = SHIPPED) -> Localize:
    return kind(encoder=encoder, database=database, config=config).localize


def split(frames: Sequence[Frame]) -> tuple[list[Frame], list[Frame]]:
    """Return the mapping images and the held-out ones."""
    share = np.arange(len(frames)) / len(frames)
    held = np.any([(share >= start) & (share < start + CHUNK_SHARE) for start in CHUNKS], axis=0)
    return ([frame for frame, out in zip(frames, held, strict=True) if not out],
            [frame for frame, out in zip(frames, held, strict=True) if out])


def row(localize: Localize, frames: Sequence[Frame]) -> tuple[float, float, int]:
    """Return the recall at 0.1 and at 0.25 (and 5 deg), and the number of wrong poses."""
    near = good = wrong = 0
    for frame in frames:
        estimate = localize(replace(frame, map_from_camera=None, depth_m=None))
        if estimate.map_from_camera is None:
            continue
        assert frame.map_from_camera is not None
        distance, angle_deg = pose_error(estimate.map_from_camera, frame.map_from_camera)
        near += distance < 0.1 and angle_deg < 5.0
        good += distance < 0.25 and angle_deg < 5.0
        wrong += distance > FALSE_BOUNDS[0] or angle_deg > FALSE_BOUNDS[1]
    return near / len(frames), good / len(frames), wrong


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("--only", nargs="*", default=(), help="names of the scenes")
    parser.add_argument("-o", "--output", type=Path, help="write the table to this file as well")
    options = parser.parse_args(arguments)
    encoder = load_encoder(DATABASE_ENCODER)
    table: dict[str, dict[str, str]] = {}
    wrong: dict[str, int] = {}
    names = sorted(path.name for path in options.scenes.iterdir()
                   if (path / "mapping").is_dir() and (not options.only or path.name in options.only))
    for scene in names:
        mapping, held_out = split(list(open_scene(options.scenes / scene / "mapping")))
        for variant, make in localizers(mapping, encoder).items():
            near, good, count = row(make(), held_out)
            table.setdefault(variant, {})[scene] = f"{near:.2f} / {good:.2f}"
            wrong[variant] = wrong.get(variant, 0) + count
            print(f"{scene}: {variant}: {near:.2f} / {good:.2f}, {count} wrong", flush=True)
    lines = ["| | " + " | ".join(names) + " | wrong |", "|---" * (len(names) + 2) + "|"]
    lines += [f"| {variant} | " + " | ".join(cells[name] for name in names) + f" | {wrong[variant]} |"
              for variant, cells in table.items()]
    print("\n".join(lines))
    if options.output is not None:
        options.output.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
