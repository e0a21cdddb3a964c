"""What encoders put up with: matching and localization under fixed changes of the query pictures, in one run.

    python -m aceg_ros.benchmarks.encoders ../shared/scenes/redkitchen7s -o DIR --encoder compact sift

Matching: share of patches whose nearest feature in the changed picture lies within 12 px of the right place, on pairs
of views of rendered rooms that no training saw (other viewpoint and light as well) and on the scene's query pictures
against themselves. Localization: the scene's mapping part mapped with each encoder, its query part changed.
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
POINTS, NEAR_PX = 400, 12.0


@dataclass(frozen=True)
class MatchingPair:
    """Two frames that share a view. pixels (N, 2) of the first, seen (N, 2): the same surface points in the second."""

    first: Frame
    second: Frame
    pixels: np.ndarray
    seen: np.ndarray


def room_pairs(count: int) -> Iterable[MatchingPair]:
    """Pairs of views of rendered rooms under two lights, with exact correspondences."""
    atlas = make_atlas(paint_tiles(TILES, TILE_SEED))
    for number in range(count):
        views = render_views(ROOM_SEED + number, atlas, width=640, height=480, count=2)
        camera = views.camera
        first, second = (Frame(image=views.images[i], camera=camera, map_from_camera=views.poses[i]) for i in (0, 1))
        pixels = _some_cells(camera, number)
        found = transfer_pixels(views, pixels, 0, 1)
        visible = found.visible & _inside(found.pixels, camera)
        if visible.sum() > 40:
            yield MatchingPair(first, second, pixels[visible], found.pixels[visible])


def picture_pairs(scene: Path, count: int) -> Iterable[MatchingPair]:
    """Pictures of a scene against themselves."""
    every = max(1, len(open_scene(scene)) // count)
    for number, frame in enumerate(islice(open_scene(scene, every=every), count)):
        rectified = frame.rectified()[0]
        pixels = _some_cells(rectified.camera, number)
        yield MatchingPair(rectified, rectified, pixels, pixels)


def _some_cells(camera: Camera, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.integers(1, camera.width // 8 - 1, POINTS),
                            rng.integers(1, camera.height // 8 - 1, POINTS)]) * 8 + 3.5


def _inside(pixels: np.ndarray, camera: Camera) -> np.ndarray:
    return np.all((pixels > 4) & (pixels < (camera.width - 5, camera.height - 5)), axis=1)


def matching(encoder: Encoder, pairs: list[MatchingPair]) -> dict[str, float]:
    """By change: share of points whose nearest feature in the changed second frame is near the right place."""
    hits: dict[str, list[bool]] = {name: [] for name in CORRUPTIONS}
    for pair in pairs:
        looked_for = _cells_at(*_grid(encoder, pair.first), pair.pixels)
        for name, change in CORRUPTIONS.items():
            changed = change(pair.second)
            there = cv2.perspectiveTransform(pair.seen[:, None], changed.pixels_from_original)[:, 0]
            kept = _inside(there, pair.second.camera)
            cells, centres = _grid(encoder, changed.frame)
            nearest = centres[(looked_for[torch.from_numpy(kept)] @ cells.flatten(1)).argmax(1).cpu().numpy()]
            hits[name] += (np.linalg.norm(nearest - there[kept], axis=1) < NEAR_PX).tolist()
    return {name: float(np.mean(found)) for name, found in hits.items()}


def _grid(encoder: Encoder, frame: Frame) -> tuple[torch.Tensor, np.ndarray]:
    """Features (C, h, w), and the pixel (h w, 2) of the frame that each cell stands for."""
    picture = prepare_frame(frame, encoder.short_side_px, encoder.stride)
    image = image_to_tensor(picture.image, encoder.device)
    features = torch.nn.functional.normalize(encoder(image)[0], dim=0)
    rows, columns = np.mgrid[0:features.shape[1], 0:features.shape[2]]
    scale = (frame.camera.width / picture.camera.width, frame.camera.height / picture.camera.height)
    centres = (np.stack([columns.ravel(), rows.ravel()], 1) + 0.5) * encoder.stride * scale - 0.5
    return features, centres


def _cells_at(features: torch.Tensor, centres: np.ndarray, pixels: np.ndarray) -> torch.Tensor:
    """Features (N, C) of the cells whose centres are nearest to the pixels."""
    width = features.shape[2]
    step = centres[1, 0] - centres[0, 0], centres[width, 1] - centres[0, 1]
    column, row = ((pixels - centres[0]) / step).round().astype(int).T
    return features[:, row.clip(0, features.shape[1] - 1), column.clip(0, width - 1)].T


def localization(encoder: str, scene: Path, corruptions: Iterable[str], budget_s: float, every: int,
                 device: str) -> dict[str, dict]:
    """Map a scene with an encoder, then localize its query pictures, changed in each way. The method is the one that
    asks least of an encoder: it has to read all of them."""
    method = default_names()[-1]
    scene_map, _ = build_map(method, MappingOptions(encoder=encoder, device=device), open_scene(scene / "mapping"),
                             MappingBudget.start(budget_s))
    return _localize_changed(scene_map, scene, corruptions, every, device)


def _localize_changed(scene_map: SceneMap, scene: Path, corruptions: Iterable[str], every: int,
                      device: str) -> dict[str, dict]:
    localizer = make_localizer(scene_map, device)
    frames = [frame.rectified()[0] for frame in open_scene(scene / "query", every=every)]
    result = {}
    for name in corruptions:
        found = summarize(evaluate(localizer, [CORRUPTIONS[name](frame).frame for frame in frames]))
        result[name] = asdict(found)
        encoder = scene_map.network("encoder").identity
        print(f"{encoder} {name}: {found.localized} of {found.frames}, {found.recall}", flush=True)
    return result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path, help="folder with mapping/ and query/")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for encoders.json and encoders.md")
    parser.add_argument("--encoder", nargs="+", default=["compact", "sift"])
    parser.add_argument("--budget", type=float, default=300.0, help="seconds for mapping; 0: matching only")
    parser.add_argument("--maps", nargs="*", default=(), metavar="MAP", help="maps of the scene that there are already:"
                        " those encoders are not mapped with again")
    parser.add_argument("--every", type=int, default=1, help="localize every n-th query picture")
    parser.add_argument("--pairs", type=int, default=20, help="rooms, and pictures of the scene, to match in")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    configure_malloc()
    cv2.setNumThreads(1)
    device = pick_device(options.device)
    pairs = {"rooms": list(room_pairs(options.pairs)),
             "pictures": list(picture_pairs(options.scene / "query", options.pairs))}
    report: dict[str, dict] = {}
    given = {scene_map.network("encoder").source: scene_map for scene_map in map(SceneMap.load, options.maps)}
    encoders = {source: load_encoder(source, device) for source in options.encoder}
    for source, encoder in encoders.items():
        report[source] = {kind: matching(encoder, some) for kind, some in pairs.items()}
        print(source, report[source], flush=True)
        if source in given:
            report[source]["localization"] = _localize_changed(given[source], options.scene, CORRUPTIONS,
                                                               options.every, device)
        elif options.budget:
            report[source]["localization"] = localization(source, options.scene, CORRUPTIONS, options.budget,
                                                           options.every, device)
        write_json(without_nan(report), options.output / "encoders.json")
        write_text(options.output / "encoders.md", table(report))
    print(table(report))
    return 0


def table(report: dict[str, dict]) -> str:
    """One row per change, one group of columns per encoder: matching in rooms / of pictures / recall 5 cm, 10 cm."""
    names = [f"{Path(source).stem}: rooms | pictures | 5 cm/5 deg | 10 cm/5 deg" for source in report]
    lines = ["| change | " + " | ".join(names) + " |", "|---" * (1 + 4 * len(names)) + "|"]
    for change in CORRUPTIONS:
        cells = []
        for found in report.values():
            located = found.get("localization", {}).get(change, {})
            cells += [f"{found['rooms'][change]:.2f}", f"{found['pictures'][change]:.2f}",
                      *(f"{located['recall'][key]:.2f}" if located else "-" for key in ("0.05m_5deg", "0.1m_5deg"))]
        lines.append(f"| {change} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
