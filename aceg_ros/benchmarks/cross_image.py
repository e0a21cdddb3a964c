# SPDX-License-Identifier: Apache-2.0
"""Compares the cross-image regressor with matching in the same keyframe databases, by what has changed in a room, and
measures its coordinates by their distance from the nearest landmark.

    python -m aceg_ros.benchmarks.cross_image -o OUTPUT [--weights FILE] [--rooms N] [--textures DIR]
        [--maps MAP=SCENE ...]

--maps: maps with a keyframe database, and scenes to localize in them. Results that are in OUTPUT already are not
computed again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from aceg_ros.benchmarks.scenes import RECALL_KEYS
from aceg_ros.camera import Frame, lift_pixels, project_map_points
from aceg_ros.datasets import open_scene
from aceg_ros.evaluation.evaluate import evaluate
from aceg_ros.evaluation.metrics import summarize
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.maps.keyframe_database import KeyframeDatabase
from aceg_ros.maps.keyframe_tokens import SECTION as TOKENS
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.build_map import build_map
from aceg_ros.methods.cross_image_localizer import CrossImageLocalizer, CrossImageLocalizerConfig, mix_keyframes
from aceg_ros.methods.registry import make_localizer, names
from aceg_ros.methods.sacreg import DATABASE, FUSIONS, SHIPPED, as_sacreg_map
from aceg_ros.methods.scene_coordinates import encoder_of
from aceg_ros.networks.cross_image_fusion import CrossImageWeights, load_cross_image
from aceg_ros.synthetic.room_changes import CHANGES, render_changed_session
from aceg_ros.synthetic.textures import load_atlas
from aceg_ros.utils.atomic_file import write_json
from aceg_ros.utils.device import pick_device
from aceg_ros.utils.malloc import configure_malloc

ROOM_SEED = 3_100_000               # no training and no other benchmark has rooms with these seeds
MAPPING_S = 60.0
DISTANCES_M = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, np.inf)
GOOD_PX = 5.0
COLUMNS = ("what", "method", "images", "localized", "wrong", "median", *RECALL_KEYS, "ms p50", "ms p95")


def variants(scene_map: SceneMap, weights: CrossImageWeights) -> dict[str, SceneMap]:
    """Return a map as it is, for each fusion, and with tokens stored as bytes and product-quantised, by name."""
    fused = {f"{fusion} fusion": as_sacreg_map(scene_map, weights, fusion=fusion) for fusion in FUSIONS}
    tokens = mix_keyframes(weights.net, KeyframeDatabase.from_section(scene_map.sections[DATABASE]))
    early = fused[f"{FUSIONS[0]} fusion"]
    quantised = replace(early, sections={**early.sections, TOKENS: tokens.to_section(compact=True)})
    return {"matching": scene_map, **fused, f"{FUSIONS[0]} fusion, product-quantised": quantised}


def compare(what: str, scene_map: SceneMap, frames: Sequence[Frame], *, weights: CrossImageWeights, output: Path
            ) -> list[dict[str, Any]]:
    """Localize frames in all variants of a map. Returns a row of statistics each."""
    rows = []
    for name, variant in variants(scene_map, weights).items():
        path = output / f"{what} {name}.json".replace(" ", "_").replace(",", "")
        if not path.exists():
            summary = asdict(summarize(evaluate(make_localizer(variant), list(frames))))
            write_json({"what": what, "method": name} | {key: summary[key] for key in (
                "frames", "localized", "false_accepts", "median_translation_m", "recall", "latency_ms")}, path)
        rows.append(json.loads(path.read_text()))
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table; those of the same thing and method are added up."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for key in dict.fromkeys((row["what"].split(":")[0], row["method"]) for row in rows):
        same = [row for row in rows if (row["what"].split(":")[0], row["method"]) == key]
        frames = sum(row["frames"] for row in same)
        medians = [row["median_translation_m"] for row in same if row["localized"]]
        recall = [f"{sum(row['recall'][name] * row['frames'] for row in same) / frames:.2f}" for name in RECALL_KEYS]
        latency = [f"{np.median([row['latency_ms'][name] for row in same]):.0f}" for name in ("p50", "p95")]
        lines.append("| " + " | ".join([*key, str(frames), str(sum(row["localized"] for row in same)),
                                        str(sum(row["false_accepts"] for row in same)),
                                        f"{np.median(medians):.3f}" if medians else "-", *recall, *latency]) + " |")
    return "\n".join(lines)


def room_map(output: Path, seed: int, change: str, textures: Path | None) -> tuple[SceneMap, list[Frame]]:
    """Return the map of a room, which is made if it is missing, and the frames of the later session."""
    path = output / f"room_{seed}_{'plain' if change == CHANGES[-1] else 'textured'}.map"
    mapping, query = render_changed_session(seed, load_atlas(textures), change)
    if not path.exists():
        scene_map, _ = build_map(names()[0], MappingOptions(trust_poses=True), list(mapping),
                                 MappingBudget.start(MAPPING_S))
        scene_map.save(path)
    return SceneMap.load(path), list(query)


def errors_by_distance(scene_map: SceneMap, weights: CrossImageWeights, frames: Sequence[Frame], *, late: bool
                       ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for the confident keypoints of frames with depth: the distance (N,) of the true point from the nearest
    landmark of the retrieved keyframes, the error (N,) of the regressed point, in metres, and its reprojection error
    (N,)."""
    encoder = encoder_of(scene_map, pick_device("auto"))
    database = KeyframeDatabase.from_section(scene_map.sections[DATABASE])
    localizer = CrossImageLocalizer(encoder=encoder, database=database, net=weights.net,
                                    config=CrossImageLocalizerConfig(late=late))
    found = []
    for frame in frames:
        query = localizer.extract(frame)
        keyframes = localizer.retrieve(query)
        regressed = localizer.regress_query(query, keyframes)
        assert frame.depth_m is not None and frame.map_from_camera is not None
        truth = lift_pixels(regressed.pixels, frame.depth_m, query.camera, frame.map_from_camera)
        landmarks = database.points_array[database.landmark_array[database.observations_of(keyframes)]]
        distance, _ = cKDTree(landmarks).query(np.nan_to_num(truth))
        pixels, _ = project_map_points(regressed.points, query.camera, frame.map_from_camera)
        error_px = np.linalg.norm(pixels - regressed.pixels, axis=1)
        known = np.isfinite(truth).all(1) & regressed.confident
        found.append(np.stack([distance, np.linalg.norm(regressed.points - truth, axis=1), error_px])[:, known])
    distance, error, error_px = np.concatenate(found, axis=1)
    return distance, error, error_px


def distance_table(found: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> str:
    """Return a Markdown table of errors by distance from the nearest landmark."""
    distance, error, error_px = (np.concatenate(each) for each in zip(*found, strict=True))
    lines = ["| distance m | keypoints | median error m | 75 % | within 5 px |", "|---|---|---|---|---|"]
    for low, high in pairwise(DISTANCES_M):
        inside = (distance >= low) & (distance < high)
        if inside.any():
            middle, upper = np.quantile(error[inside], (0.5, 0.75))
            lines.append(f"| {low:g} to {high:g} | {inside.sum()} | {middle:.3f} | {upper:.3f} |"
                         f" {(error_px[inside] < GOOD_PX).mean():.2f} |")
    return "\n".join(lines)


def bytes_table(scene_map: SceneMap, weights: CrossImageWeights) -> str:
    """Return a Markdown table of the bytes per keyframe of a map's tokens, by how they are stored."""
    database = KeyframeDatabase.from_section(scene_map.sections[DATABASE])
    tokens = mix_keyframes(weights.net, database)
    width, count = tokens.vectors.shape[1], len(tokens.landmarks) / len(database)
    stored = {"fp16": 2.0 * width * count}
    for name, compact in (("a byte for each entry", False), ("product-quantised", True)):
        section = tokens.to_section(compact)
        stored[name] = sum(section[key].nbytes for key in ("vectors", "codebook") if key in section) / len(database)
    lines = [f"| tokens ({count:.0f} a keyframe, {width}-D) | bytes per keyframe |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {value:.0f} |" for name, value in stored.items()])


def main(arguments: list[str] | None = None) -> int:
    configure_malloc()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--weights", default=SHIPPED[0], help="(default: %(default)s)")
    parser.add_argument("--rooms", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--textures", type=Path, help="folder of additional texture tiles")
    parser.add_argument("--maps", nargs="*", default=(), metavar="MAP=SCENE")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    weights, rows, errors = load_cross_image(options.weights), [], []
    for seed in range(ROOM_SEED, ROOM_SEED + options.rooms):
        for change in CHANGES:
            scene_map, frames = room_map(options.output, seed, change, options.textures)
            rows += compare(f"{change}: {seed}", scene_map, frames, weights=weights, output=options.output)
            errors.append(errors_by_distance(scene_map, weights, frames, late=False))
    for pair in options.maps:
        path, _, scene = pair.partition("=")
        scene_map = SceneMap.load(path)
        rows += compare(Path(path).stem, scene_map, list(open_scene(scene)), weights=weights,
                        output=options.output)
        print(f"{path}\n{bytes_table(scene_map, weights)}\n")
    print(table(rows))
    if errors:
        print("\n" + distance_table(errors))
    return 0


if __name__ == "__main__":
    sys.exit(main())
