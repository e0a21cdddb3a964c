# SPDX-License-Identifier: Apache-2.0
"""Maps of up to 10,000 keyframes: time of a frame, memory, opening time, recall, wrong poses.

    python -m aceg_ros.benchmarks.large_maps MAP=SCENE -o FOLDER [--foreign MAP ...] [--images SCENE ...]
        [--counts 100 1000 10000] [--own 90] [--every N]

Keyframes of MAP are put beside foreign ones: those of other maps, and posed images, whose keypoints get points at
depths drawn at random. All use the words of MAP. Where there are too few, they are repeated elsewhere, with noise in
the descriptors. The images of SCENE are then localized in each map, in a process of its own; times are of the processor
and contain everything from the image to the pose.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aceg_ros.datasets import open_scene
from aceg_ros.geometry import pose_error
from aceg_ros.maps.keyframe_database import SECTION, KeyframeDatabase, quantised
from aceg_ros.maps.retrieval import assign_words
from aceg_ros.maps.scene_map import SceneMap

RIGHT, WRONG = (0.25, 5.0), (0.5, 10.0)         # units of the scene, degrees
MAX_OBSERVATIONS = 1500                         # of a foreign keyframe
NOISE, SPACING_M = 4.0, 1000.0                  # of repeated descriptors, int8; between foreign keyframes
DEPTHS_M = (1.0, 6.0)                           # drawn for the keypoints of posed images


@dataclass(frozen=True, kw_only=True)
class Keyframe:
    """A keyframe with its n observations, and landmarks of its own: pose (4, 4), intrinsics (4,), size (2,), pixels
    (n, 2) int16, descriptors (n, C) int8, words (n,) int16, points (n, 3)."""

    pose: Tensor
    intrinsics: Tensor
    size: Tensor
    pixels: Tensor
    descriptors: Tensor
    words: Tensor
    points: Tensor


def some_keyframes(database: KeyframeDatabase, count: int) -> KeyframeDatabase:
    """Return a database with `count` evenly chosen keyframes of another, and their landmarks."""
    chosen = np.unique(np.linspace(0, len(database) - 1, min(count, len(database))).round().astype(int))
    rows = torch.from_numpy(database.observations_of(chosen))
    kept, landmarks = torch.unique(database.landmarks[rows].long(), return_inverse=True)
    sizes = torch.from_numpy(np.diff(database.starts)[chosen])
    return replace(database, poses=database.poses[chosen], intrinsics=database.intrinsics[chosen],
                   sizes=database.sizes[chosen], first=torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]),
                   landmarks=landmarks.to(torch.int32), pixels=database.pixels[rows], words=database.words[rows],
                   descriptors=database.descriptors[rows], points=database.points[kept], index=None)


def keyframes_of_map(path: Path, vocabulary: Tensor) -> Iterator[Keyframe]:
    """Yield the keyframes of a map."""
    database = KeyframeDatabase.from_section(SceneMap.load(path).sections[SECTION])
    for keyframe in range(len(database)):
        rows = database.observations_of([keyframe])[:MAX_OBSERVATIONS]
        descriptors = database.descriptors[rows]
        yield Keyframe(pose=database.poses[keyframe], intrinsics=database.intrinsics[keyframe],
                       size=database.sizes[keyframe], pixels=database.pixels[rows], descriptors=descriptors,
                       words=assign_words(descriptors.float() / 127, vocabulary).to(torch.int16),
                       points=database.points[database.landmarks[rows].long()])


def keyframes_of_scene(scene: Path, encoder_source: str, vocabulary: Tensor) -> Iterator[Keyframe]:
    """Yield keyframes of the posed images of a scene, with points at depths drawn at random."""
    from aceg_ros.encoders.base import load_encoder
    from aceg_ros.encoders.keypoints import extract_frame_keypoints

    encoder, rng = load_encoder(encoder_source), np.random.default_rng(0)
    for frame in open_scene(scene):
        found = extract_frame_keypoints(frame, encoder, MAX_OBSERVATIONS)
        pose, camera = frame.map_from_camera, found.camera
        if pose is None or len(found) == 0:
            continue
        points = camera.unproject(found.pixels.astype(float)) * rng.uniform(*DEPTHS_M, (len(found), 1))
        yield Keyframe(pose=torch.from_numpy(pose).float(),
                       intrinsics=torch.tensor([camera.fx, camera.fy, camera.cx, camera.cy]),
                       size=torch.tensor([camera.width, camera.height], dtype=torch.int32),
                       pixels=torch.from_numpy(found.pixels * 16).to(torch.int16),
                       descriptors=quantised(found.descriptors),
                       words=assign_words(found.descriptors, vocabulary).to(torch.int16),
                       points=torch.from_numpy(points @ pose[:3, :3].T + pose[:3, 3]).float())


def with_foreign(own: KeyframeDatabase, foreign: Sequence[Keyframe], count: int) -> KeyframeDatabase:
    """Return a database of `count` keyframes: `own`, and foreign ones, repeated with noise until there are enough."""
    generator = torch.Generator().manual_seed(0)
    added, points, landmark = [], [own.points], len(own.points)
    landmarks = [own.landmarks]
    for number in range(max(0, count - len(own))):
        keyframe, turn = foreign[number % len(foreign)], number // len(foreign)
        aside = torch.tensor([SPACING_M * (1 + number % 97), SPACING_M * (number // 97), 0.0])
        pose = keyframe.pose.clone()
        pose[:3, 3] += aside
        if turn:
            noise = torch.randn(keyframe.descriptors.shape, generator=generator) * NOISE
            keyframe = replace(keyframe, descriptors=(keyframe.descriptors + noise).round().clamp(-127, 127).char())
        added.append(replace(keyframe, pose=pose))
        points.append(keyframe.points + aside)
        landmarks.append(torch.arange(landmark, landmark + len(keyframe.points), dtype=torch.int32))
        landmark += len(keyframe.points)
    sizes = torch.tensor([len(keyframe.words) for keyframe in added], dtype=torch.int64)
    return KeyframeDatabase(
        poses=torch.stack([*own.poses, *(keyframe.pose for keyframe in added)]),
        intrinsics=torch.stack([*own.intrinsics, *(keyframe.intrinsics for keyframe in added)]),
        sizes=torch.stack([*own.sizes, *(keyframe.size for keyframe in added)]),
        first=torch.cat([own.first, own.first[-1] + sizes.cumsum(0)]),
        landmarks=torch.cat(landmarks), points=torch.cat(points), vocabulary=own.vocabulary,
        pixels=torch.cat([own.pixels, *(keyframe.pixels for keyframe in added)]),
        descriptors=torch.cat([own.descriptors, *(keyframe.descriptors for keyframe in added)]),
        words=torch.cat([own.words, *(keyframe.words for keyframe in added)]))


def measure(path: Path, scene: Path, every: int) -> dict[str, float]:
    """Open a map and localize the images of a scene in it. Returns the measurements."""
    from aceg_ros.encoders.base import load_encoder
    from aceg_ros.methods.keyframe_localizer import KeyframeLocalizer

    torch.set_num_threads(1)
    load_encoder(SceneMap.load(path).network("encoder").source)     # is not part of the opening time
    before_mb, started, cpu = resident_mb(), time.perf_counter(), time.process_time()
    localizer = KeyframeLocalizer.from_map(SceneMap.load(path), device="cpu")
    open_s, open_cpu_s, opened_mb = time.perf_counter() - started, time.process_time() - cpu, resident_mb()
    ms, right, wrong, accepted = [], 0, 0, 0
    for number, frame in enumerate(open_scene(scene, every)):
        blind = replace(frame, map_from_camera=None, depth_m=None)
        if number == 0:
            localizer.localize(blind)
        cpu = time.process_time()
        estimate = localizer.localize(blind)
        ms.append((time.process_time() - cpu) * 1e3)
        if estimate.map_from_camera is not None and frame.map_from_camera is not None:
            error = pose_error(estimate.map_from_camera, frame.map_from_camera)
            accepted += 1
            right += error[0] < RIGHT[0] and error[1] < RIGHT[1]
            wrong += error[0] > WRONG[0] or error[1] > WRONG[1]
    p50, p99 = np.percentile(ms, (50, 99))
    return {"keyframes": len(SceneMap.load(path).sections[SECTION]["poses"]), "file_mb": path.stat().st_size / 1e6,
            "open_s": open_s, "open_cpu_s": open_cpu_s, "before_mb": before_mb, "opened_mb": opened_mb,
            "used_mb": resident_mb(), "file_pages_mb": resident_mb("RssFile"), "p50": float(p50), "p99": float(p99),
            "right": right / len(ms), "accepted": accepted, "wrong": wrong, "images": len(ms)}


def resident_mb(kind: str = "RssAnon") -> float:
    """Return the memory of this process in use, MB: RssAnon is its own; RssFile is pages of files, which the kernel
    takes back when it needs them."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{kind}:")[1].split()[0]) / 1000


def table_row(found: dict[str, float]) -> str:
    return (f"| {found['keyframes']} | {found['file_mb']:.0f} | {found['open_s']:.2f} | {found['open_cpu_s']:.2f} |"
            f" {found['before_mb']:.0f} | {found['opened_mb']:.0f} | {found['used_mb']:.0f} |"
            f" {found['file_pages_mb']:.0f} | {found['p50']:.1f} | {found['p99']:.1f} | {found['right']:.3f} |"
            f" {found['accepted']} of {found['images']} | {found['wrong']} |")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", metavar="MAP=SCENE")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--foreign", nargs="*", type=Path, default=(), help="maps whose keyframes are added")
    parser.add_argument("--images", nargs="*", type=Path, default=(), help="scenes whose posed images are added")
    parser.add_argument("--counts", nargs="*", type=int, default=(100, 1000, 10_000))
    parser.add_argument("--own", type=int, default=90, help="keyframes of MAP")
    parser.add_argument("--every", type=int, default=1, help="localize every n-th image")
    options = parser.parse_args(arguments)
    map_path, scene = map(Path, options.pair.split("=", 1))
    if options.output is None:                              # in the child process
        print(json.dumps(measure(map_path, scene, options.every)))
        return 0
    scene_map = SceneMap.load(map_path)
    own = some_keyframes(KeyframeDatabase.from_section(scene_map.sections[SECTION]), options.own)
    vocabulary = torch.nn.functional.normalize(own.vocabulary.float(), dim=1)
    foreign = [keyframe for path in options.foreign for keyframe in keyframes_of_map(path, vocabulary)]
    for path in options.images:
        foreign += keyframes_of_scene(path, scene_map.network("encoder").source, vocabulary)
    print(f"{len(own)} own keyframes, {len(foreign)} different foreign ones\n\n| keyframes | file MB | opening s |"
          " CPU s | MB before | opened | used | pages of files | p50 ms | p99 ms | right | accepted | wrong |\n"
          + "|---" * 13 + "|",
          flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    for count in options.counts:
        path = options.output / f"{count}.map"
        replace(scene_map, sections={SECTION: with_foreign(own, foreign, count).to_section()}).save(path)
        done = subprocess.run(
            [sys.executable, "-m", "aceg_ros.benchmarks.large_maps", f"{path}={scene}", "--every", str(options.every)],
            check=True, capture_output=True, text=True)
        print(table_row(json.loads(done.stdout)), flush=True)
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
