# SPDX-License-Identifier: Apache-2.0
"""Measures the robustness of encoders: matching and localization under fixed corruptions of the query images.

    python -m aceg_ros.benchmarks.encoders ../shared/scenes/redkitchen7s -o DIR --encoder compact sift

Matching: share of patches whose nearest descriptor in the corrupted image is within 12 px of the true match, on pairs
of views (with different viewpoint and light) of rendered rooms that are not in the training data, and on query images
of the scene paired with themselves. Localization: of corrupted query images of the scene in a map made with each
encoder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch

from aceg_ros.benchmarks.corruptions import CORRUPTIONS
from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets import open_scene
from aceg_ros.encoders.base import Encoder, load_encoder
from aceg_ros.encoders.preprocess import image_to_tensor
from aceg_ros.evaluation.evaluate import evaluate
from aceg_ros.evaluation.metrics import summarize
from aceg_ros.mapping.augmentation import prepare_frame
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.build_map import build_map
from aceg_ros.methods.registry import default_names, make_localizer
from aceg_ros.pretraining.encoder.rendered_pairs import render_views, transfer_pixels
from aceg_ros.synthetic.textures import make_atlas, paint_tiles
from aceg_ros.utils.atomic_file import without_nan, write_json, write_text
from aceg_ros.utils.device import pick_device
from aceg_ros.utils.malloc import configure_malloc

ROOM_SEED, TILE_SEED, TILES = 5_000_000, 77, 256          # training rooms have seeds from 1,000,000 and other tiles
POINTS, MAX_MATCH_PX = 400, 12.0


@dataclass(frozen=True, kw_only=True)
class MatchingPair:
    """Two frames of one scene, and pixels (N, 2) of each that show the same surface points."""

    first: Frame
    second: Frame
    first_pixels: np.ndarray
    second_pixels: np.ndarray


def rendered_pairs(count: int) -> Iterable[MatchingPair]:
    """Pairs of views of rendered rooms under two lights, with exact matches."""
    atlas = make_atlas(paint_tiles(TILES, TILE_SEED))
    for number in range(count):
        views = render_views(ROOM_SEED + number, atlas, width=640, height=480, count=2)
        camera = views.camera
        first, second = (Frame(image=views.images[i], camera=camera, map_from_camera=views.poses[i]) for i in (0, 1))
        pixels = _random_centres(camera, number)
        found = transfer_pixels(views, pixels, 0, 1)
        visible = found.visible & _inside(found.pixels, camera)
        if visible.sum() > 40:
            yield MatchingPair(first=first, second=second, first_pixels=pixels[visible],
                               second_pixels=found.pixels[visible])


def self_pairs(scene: Path, count: int) -> Iterable[MatchingPair]:
    """Images of a scene paired with themselves."""
    every = max(1, len(open_scene(scene)) // count)
    for number, frame in enumerate(islice(open_scene(scene, every=every), count)):
        rectified = frame.rectified()[0]
        pixels = _random_centres(rectified.camera, number)
        yield MatchingPair(first=rectified, second=rectified, first_pixels=pixels, second_pixels=pixels)


def _random_centres(camera: Camera, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.integers(1, camera.width // 8 - 1, POINTS),
                            rng.integers(1, camera.height // 8 - 1, POINTS)]) * 8 + 3.5


def _inside(pixels: np.ndarray, camera: Camera) -> np.ndarray:
    return np.all((pixels > 4) & (pixels < (camera.width - 5, camera.height - 5)), axis=1)


def matching(encoder: Encoder, pairs: list[MatchingPair]) -> dict[str, float]:
    """Compute, for each corruption, the share of pixels of the first frames whose nearest descriptor in the corrupted
    second frame is close to their match."""
    hits: dict[str, list[bool]] = {name: [] for name in CORRUPTIONS}
    for pair in pairs:
        descriptors = _descriptors_at(*_dense_descriptors(encoder, pair.first), pair.first_pixels)
        for name, corrupt in CORRUPTIONS.items():
            corrupted = corrupt(pair.second)
            match = cv2.perspectiveTransform(pair.second_pixels[:, None], corrupted.pixels_from_original)[:, 0]
            inside = _inside(match, pair.second.camera)
            cells, centres = _dense_descriptors(encoder, corrupted.frame)
            nearest = centres[(descriptors[torch.from_numpy(inside)] @ cells.flatten(1)).argmax(1).cpu().numpy()]
            hits[name] += (np.linalg.norm(nearest - match[inside], axis=1) < MAX_MATCH_PX).tolist()
    return {name: float(np.mean(found)) for name, found in hits.items()}


def _dense_descriptors(encoder: Encoder, frame: Frame) -> tuple[torch.Tensor, np.ndarray]:
    """Return unit descriptors (C, h, w) of a frame, and the pixels (h w, 2) of the centres of their cells."""
    prepared = prepare_frame(frame, encoder.short_side_px, encoder.stride)
    image = image_to_tensor(prepared.image, encoder.device)
    features = torch.nn.functional.normalize(encoder(image)[0], dim=0)
    rows, columns = np.mgrid[0:features.shape[1], 0:features.shape[2]]
    scale = (frame.camera.width / prepared.camera.width, frame.camera.height / prepared.camera.height)
    centres = (np.stack([columns.ravel(), rows.ravel()], 1) + 0.5) * encoder.stride * scale - 0.5
    return features, centres


def _descriptors_at(features: torch.Tensor, centres: np.ndarray, pixels: np.ndarray) -> torch.Tensor:
    """Return the descriptors (N, C) of the cells whose centres are nearest to the pixels (N, 2)."""
    width = features.shape[2]
    step = centres[1, 0] - centres[0, 0], centres[width, 1] - centres[0, 1]
    column, row = ((pixels - centres[0]) / step).round().astype(int).T
    return features[:, row.clip(0, features.shape[1] - 1), column.clip(0, width - 1)].T


def localization(encoder: str, scene: Path, *, budget_s: float, every: int, device: str) -> dict[str, dict]:
    """Map a scene with an encoder, then localize its query images under each corruption.

    Uses the default method of lowest priority, which works with every encoder.
    """
    method = default_names()[-1]
    scene_map, _ = build_map(method, MappingOptions(encoder=encoder, device=device), open_scene(scene / "mapping"),
                             MappingBudget.start(budget_s))
    return localize_corrupted(scene_map, scene, every, device)


def localize_corrupted(scene_map: SceneMap, scene: Path, every: int, device: str) -> dict[str, dict]:
    """Localize every n-th query image of a scene in a map of it, under each corruption. Returns the statistics."""
    localizer = make_localizer(scene_map, device)
    frames = [frame.rectified()[0] for frame in open_scene(scene / "query", every=every)]
    result = {}
    for name, corrupt in CORRUPTIONS.items():
        scores = summarize(evaluate(localizer, [corrupt(frame).frame for frame in frames]))
        result[name] = asdict(scores)
        encoder = scene_map.network("encoder").identity
        print(f"{encoder} {name}: {scores.localized} of {scores.frames}, {scores.recall}", flush=True)
    return result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path, help="folder with mapping/ and query/")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for encoders.json and encoders.md")
    parser.add_argument("--encoder", nargs="+", default=["compact", "sift"])
    parser.add_argument("--budget", type=float, default=300.0, help="seconds for mapping; 0: matching only")
    parser.add_argument("--maps", nargs="*", default=(), metavar="MAP", help="existing maps of the scene, to use for"
                        " their encoders")
    parser.add_argument("--every", type=int, default=1, help="localize every n-th query image")
    parser.add_argument("--pairs", type=int, default=20, help="number of rooms, and of images of the scene, for"
                        " matching")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    configure_malloc()
    cv2.setNumThreads(1)
    device = pick_device(options.device)
    pairs = {"rooms": list(rendered_pairs(options.pairs)),
             "images": list(self_pairs(options.scene / "query", options.pairs))}
    report: dict[str, dict] = {}
    given = {scene_map.network("encoder").source: scene_map for scene_map in map(SceneMap.load, options.maps)}
    encoders = {source: load_encoder(source, device) for source in options.encoder}
    for source, encoder in encoders.items():
        report[source] = {kind: matching(encoder, some) for kind, some in pairs.items()}
        print(source, report[source], flush=True)
        if source in given:
            report[source]["localization"] = localize_corrupted(given[source], options.scene, options.every, device)
        elif options.budget:
            report[source]["localization"] = localization(source, options.scene, budget_s=options.budget,
                                                           every=options.every, device=device)
        write_json(without_nan(report), options.output / "encoders.json")
        write_text(options.output / "encoders.md", table(report))
    print(table(report))
    return 0


def table(report: dict[str, dict]) -> str:
    """Return a table with a row per corruption, four columns per encoder: matching in rooms and images, two recalls."""
    names = [f"{Path(source).stem}: rooms | images | 5 cm/5 deg | 10 cm/5 deg" for source in report]
    lines = ["| corruption | " + " | ".join(names) + " |", "|---" * (1 + 4 * len(names)) + "|"]
    for corruption in CORRUPTIONS:
        cells = []
        for scores in report.values():
            localized = scores.get("localization", {}).get(corruption, {})
            cells += [f"{scores['rooms'][corruption]:.2f}", f"{scores['images'][corruption]:.2f}",
                      *(f"{localized['recall'][key]:.2f}" if localized else "-" for key in ("0.05m_5deg", "0.1m_5deg"))]
        lines.append(f"| {corruption} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
