# SPDX-License-Identifier: Apache-2.0
"""Maps and evaluates a folder of scenes with what a user would pick instead: structure from motion and PnP.

    pip install aceg_ros[colmap]
    python -m aceg_ros.benchmarks.structure_based SCENES -o OUTPUT [--only NAME ...]

RootSIFT keypoints of the mapping images, matched between images of similar VLAD descriptors (ratio test, mutual, along
the epipolar lines of the given poses) and triangulated at the given poses by pycolmap. A query image is matched with
the images most similar to it; PoseLib estimates its pose, which is accepted at MIN_INLIERS inliers. Results that
are in OUTPUT already are not computed again. Scenes as in aceg_ros.benchmarks.scenes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import poselib
import torch

from aceg_ros.benchmarks.scenes import FIRST_SCENE, RECALL_KEYS
from aceg_ros.benchmarks.triangulate_with_colmap import PosedKeypoints, import_pycolmap, triangulate
from aceg_ros.camera import Frame
from aceg_ros.datasets import open_scene
from aceg_ros.encoders.sift import root_sift
from aceg_ros.errors import UserError
from aceg_ros.evaluation.metrics import FALSE_BOUNDS, RECALL_BOUNDS, percentiles
from aceg_ros.geometry import invert, pose_error, skew
from aceg_ros.utils.atomic_file import without_nan, write_json

KEYPOINTS, CONTRAST, RATIO = 3800, 0.01, 0.8    # a quarter of the contrast that OpenCV asks for, half of COLMAP's
WORDS, VOCABULARY_SAMPLE, VOCABULARY_ROUNDS = 64, 50_000, 12
COVISIBLE_IMAGES, RETRIEVED_IMAGES = 20, 20         # of a mapping image, of a query image
EPIPOLAR_PX, RANSAC_PX, MIN_INLIERS = 4.0, 8.0, 15
DESCRIPTOR_SCALE = 512.0                            # of unit vectors in bytes, as COLMAP stores them
MIN_MATCHES = 10                                    # of a pair of mapping images
COLUMNS = ("scene", "frames", "localized", "wrong", "median", "deg", "0.05/5", "0.1/5", "0.25/5", "0.5/5", "mapping s",
           "map MB", "frame ms p50 / p99")


@dataclass(frozen=True, kw_only=True)
class StructureMap:
    """Keypoints, image by image, with their points, and what finds the images.

    descriptors (N, 128) uint8; landmarks (N,) int32: the point of each, -1 for none; points (T, 3) float32; first
    (F + 1,): where the keypoints of each image begin. vocabulary (W, 128), vlad (F, W * 128) float16.
    """

    descriptors: np.ndarray
    landmarks: np.ndarray
    points: np.ndarray
    first: np.ndarray
    vocabulary: np.ndarray
    vlad: np.ndarray

    def save(self, path: Path) -> None:
        """Write the arrays to a .npz file."""
        np.savez(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> StructureMap:
        """Read a file of `save`."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{name: arrays[name] for name in arrays.files})


# --- keypoints and matches ------------------------------------------------------------------------------------------


def extract(frame: Frame) -> tuple[np.ndarray, np.ndarray, Frame]:
    """Return pixels (N, 2) of RootSIFT keypoints, descriptors (N, 128) uint8, and the rectified frame they are of."""
    frame, valid = frame.rectified()
    mask = None if valid is None else valid.astype(np.uint8) * 255
    keypoints, found = cv2.SIFT.create(nfeatures=KEYPOINTS, contrastThreshold=CONTRAST).detectAndCompute(
        cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY), mask)
    if found is None:
        return np.zeros((0, 2)), np.zeros((0, 128), np.uint8), frame
    rooted = root_sift(found)
    pixels = np.array([keypoint.pt for keypoint in keypoints], np.float64)
    return pixels[:KEYPOINTS], np.minimum(np.round(DESCRIPTOR_SCALE * rooted), 255).astype(np.uint8)[:KEYPOINTS], frame


def unit(descriptors: np.ndarray) -> torch.Tensor:
    """Return stored descriptors as unit vectors."""
    return torch.nn.functional.normalize(torch.from_numpy(descriptors).float(), dim=1)


def match(a: torch.Tensor, b: torch.Tensor, *, mutual: bool) -> tuple[np.ndarray, np.ndarray]:
    """Match descriptors a (N, 128) with b (M, 128): nearest neighbours that pass the ratio test. Returns indices."""
    if len(a) == 0 or len(b) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    similar = a @ b.T
    back = similar.argmax(0) if mutual else None
    best, nearest = similar.max(1)
    rows = torch.arange(len(a))
    similar[rows, nearest] = -2.0
    second = similar.amax(1)
    good = (2.0 - 2.0 * best).clamp(min=0.0) < RATIO**2 * (2.0 - 2.0 * second)
    if back is not None:
        good &= back[nearest] == rows
    return rows[good].numpy(), nearest[good].numpy()


def train_vocabulary(descriptors: Sequence[np.ndarray], seed: int = 0) -> np.ndarray:
    """Cluster RootSIFT descriptors by spherical k-means: (WORDS, 128) float16."""
    rng = np.random.default_rng(seed)
    stacked = np.concatenate(descriptors)
    sample = unit(stacked[rng.permutation(len(stacked))[:VOCABULARY_SAMPLE]])
    centres = sample[:WORDS].clone()
    for _ in range(VOCABULARY_ROUNDS):
        sums = torch.zeros_like(centres).index_add_(0, (sample @ centres.T).argmax(1), sample)
        centres = torch.nn.functional.normalize(centres * 1e-6 + sums, dim=1)
    return centres.numpy().astype(np.float16)


def vlad(descriptors: np.ndarray, vocabulary: np.ndarray) -> np.ndarray:
    """Return the VLAD descriptor (W * 128,) float16, normalized word by word (Arandjelovic & Zisserman 2013)."""
    vectors, centres = unit(descriptors), torch.from_numpy(vocabulary).float()
    words = (vectors @ centres.T).argmax(1)
    sums = torch.zeros_like(centres).index_add_(0, words, vectors - centres[words])
    sums = torch.nn.functional.normalize(sums, dim=1).flatten()
    return torch.nn.functional.normalize(sums, dim=0).numpy().astype(np.float16)


# --- mapping --------------------------------------------------------------------------------------------------------


def build_map(frames: Sequence[Frame], workspace: Path) -> StructureMap:
    """Build the map of posed frames. workspace: a folder for COLMAP's files. Raises UserError without pycolmap."""
    import_pycolmap()
    images = [extract(frame) for frame in frames]
    vocabulary = train_vocabulary([descriptors for _, descriptors, _ in images])
    global_descriptors = np.stack([vlad(descriptors, vocabulary) for _, descriptors, _ in images])
    posed = [PosedKeypoints(pixels=pixels, camera=frame.camera, map_from_camera=frame.map_from_camera)
             for pixels, _, frame in images if frame.map_from_camera is not None]
    vectors = [unit(descriptors) for _, descriptors, _ in images]
    matches = {}
    for a, b in covisible_pairs(global_descriptors):
        rows = np.column_stack(match(vectors[a], vectors[b], mutual=True))
        rows = rows[on_epipolar_lines(posed[a], posed[b], rows)]
        if len(rows) >= MIN_MATCHES:
            matches[a, b] = rows
    seen = np.concatenate(triangulate(posed, matches, workspace))
    known = np.isfinite(seen[:, 0])
    points, numbers = np.unique(seen[known], axis=0, return_inverse=True)
    landmarks = np.full(len(seen), -1, np.int32)
    landmarks[known] = numbers.ravel()
    return StructureMap(descriptors=np.concatenate([descriptors for _, descriptors, _ in images]), landmarks=landmarks,
                        points=points.astype(np.float32), vocabulary=vocabulary, vlad=global_descriptors,
                        first=np.concatenate([[0], np.cumsum([len(pixels) for pixels, _, _ in images])]))


def covisible_pairs(global_descriptors: np.ndarray) -> list[tuple[int, int]]:
    """Return the pairs (a, b), a < b, of images where one is among the COVISIBLE_IMAGES most similar to the other."""
    vectors = global_descriptors.astype(np.float32)
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -np.inf)
    nearest = np.argsort(-similar, axis=1)[:, :min(COVISIBLE_IMAGES, len(similar) - 1)]
    return sorted({(min(a, b), max(a, b)) for a, row in enumerate(nearest.tolist()) for b in row})


def on_epipolar_lines(a: PosedKeypoints, b: PosedKeypoints, rows: np.ndarray) -> np.ndarray:
    """Return which matches (M, 2) are within EPIPOLAR_PX of the epipolar line in image b."""
    b_from_a = invert(b.map_from_camera) @ a.map_from_camera
    essential = skew(b_from_a[:3, 3]) @ b_from_a[:3, :3]
    fundamental = np.linalg.inv(b.camera.K).T @ essential @ np.linalg.inv(a.camera.K)
    lines = np.column_stack([a.pixels[rows[:, 0]], np.ones(len(rows))]) @ fundamental.T
    seen = np.column_stack([b.pixels[rows[:, 1]], np.ones(len(rows))])
    return np.abs((lines * seen).sum(1)) < EPIPOLAR_PX * np.linalg.norm(lines[:, :2], axis=1)


# --- localization ---------------------------------------------------------------------------------------------------


def localize(structure: StructureMap, frame: Frame) -> tuple[np.ndarray | None, int]:
    """Return the pose map_from_camera (4, 4) of a frame, None if it has too few inliers; and the number of inliers."""
    pixels, descriptors, frame = extract(frame)
    if len(pixels) < 4:
        return None, 0
    similar = structure.vlad.astype(np.float32) @ vlad(descriptors, structure.vocabulary).astype(np.float32)
    vectors = unit(descriptors)
    found = []
    for image in np.argsort(-similar)[:RETRIEVED_IMAGES]:
        first, last = structure.first[image:image + 2]
        # The ratio test needs the keypoints without a point, too.
        own, theirs = match(vectors, unit(structure.descriptors[first:last]), mutual=False)
        found.append(np.column_stack([own, structure.landmarks[first:last][theirs]]))
    pairs = np.unique(np.concatenate(found), axis=0)
    pairs = pairs[pairs[:, 1] >= 0]
    if len(pairs) < 4:
        return None, 0
    camera = frame.camera
    model = {"model": "PINHOLE", "width": camera.width, "height": camera.height,
             "params": [camera.fx, camera.fy, camera.cx, camera.cy]}
    pose, report = poselib.estimate_absolute_pose(
        pixels[pairs[:, 0]], structure.points[pairs[:, 1]].astype(np.float64), model,
        {"max_reproj_error": RANSAC_PX, "seed": 0}, {})
    inliers = int(report["num_inliers"])
    if inliers < MIN_INLIERS:
        return None, inliers
    camera_from_map = np.eye(4)
    camera_from_map[:3, :3], camera_from_map[:3, 3] = pose.R, pose.t
    return invert(camera_from_map), inliers


# --- evaluation -----------------------------------------------------------------------------------------------------


def map_and_evaluate(scene: Path, output: Path) -> dict[str, Any]:
    """Map a scene's mapping/ and evaluate its query/, unless there are results in the folder `output`."""
    result, map_path = output / f"{scene.name}.json", output / f"{scene.name}.npz"
    if not result.exists():
        output.mkdir(parents=True, exist_ok=True)
        seconds = output / f"{scene.name}.seconds"
        if not map_path.exists() or not seconds.exists():
            started = time.monotonic()
            build_map(list(open_scene(scene / "mapping")), output / f"{scene.name}_colmap").save(map_path)
            seconds.write_text(f"{time.monotonic() - started:.1f}\n")
        statistics = evaluate(StructureMap.load(map_path), list(open_scene(scene / "query")))
        write_json(without_nan(statistics | {"mapping_s": float(seconds.read_text()),
                                             "map_bytes": map_path.stat().st_size}), result)
    return json.loads(result.read_text())


def evaluate(structure: StructureMap, frames: Sequence[Frame]) -> dict[str, Any]:
    """Localize frames and compute the statistics that `aceg evaluate` has under the same keys."""
    errors, latency_ms, counts = [], [], []
    for frame in frames:
        assert frame.map_from_camera is not None
        started = time.perf_counter()
        pose, inliers = localize(structure, frame)
        latency_ms.append(1e3 * (time.perf_counter() - started))
        counts.append(inliers)
        if pose is not None:
            errors.append(pose_error(pose, frame.map_from_camera))
    table = np.array(errors).reshape(-1, 2)
    medians = np.median(table, axis=0) if len(table) else np.full(2, np.nan)
    return {"frames": len(frames), "localized": len(table), "false_accepts": int((table > FALSE_BOUNDS).any(1).sum()),
            "median_translation_m": float(medians[0]), "median_rotation_deg": float(medians[1]),
            "recall": {f"{metres:g}m_{degrees:g}deg": float((table <= (metres, degrees)).all(1).sum() / len(frames))
                       for metres, degrees in RECALL_BOUNDS},
            "latency_ms": percentiles(latency_ms), "inliers": counts}


def row(name: str, result: dict[str, Any]) -> str:
    """Return the row of a scene in the table."""
    recall = " | ".join(f"{result['recall'][key]:.2f}" for key in RECALL_KEYS)
    median = "- | -" if result["median_translation_m"] is None else \
        f"{result['median_translation_m']:.4f} | {result['median_rotation_deg']:.2f}"
    latency = result["latency_ms"]
    costs = f"{result['mapping_s']:.0f} | {result['map_bytes'] / 1e6:.1f} | {latency['p50']:.0f} / {latency['p99']:.0f}"
    counts = f"{result['frames']} | {result['localized']} | {result['false_accepts']}"
    return f"| {name} | {counts} | {median} | {recall} | {costs} |"


def run(scenes: Path, output: Path, only: Sequence[str] = ()) -> str:
    """Map and evaluate the scenes of a folder, all or the named. Returns the table as Markdown text."""
    chosen = sorted((path.name for path in scenes.iterdir()
                     if (path / "mapping").is_dir() and (not only or path.name in only)),
                    key=lambda name: (name != FIRST_SCENE, name))
    rows = [row(name, map_and_evaluate(scenes / name, output)) for name in chosen]
    return "\n".join(["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|", *rows])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=(), help="names of the scenes")
    options = parser.parse_args(arguments)
    try:
        print(run(options.scenes, options.output, options.only))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
