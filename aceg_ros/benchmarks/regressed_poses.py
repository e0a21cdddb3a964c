# SPDX-License-Identifier: Apache-2.0
"""Compares a regressed pose, the same refined, what the geometry of all tokens gives without a network, and RANSAC, all
on the same scene coordinates, also with outliers added.

    python -m aceg_ros.benchmarks.regressed_poses MAP=SCENE ... [--regressor FILE] [--every N] [--outliers X ...]

MAP: a map with scene coordinates, that is one with a keyframe database, of ace, or of ace_g with --codes. SCENE: images
with poses that the map was not made from. Added outliers are tokens that get the map point of another one; they come on
top of those that the map's predictions have.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from aceg_ros.datasets import open_scene
from aceg_ros.encoders.preprocess import reject_image
from aceg_ros.geometry import pose_error
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.marepo import as_marepo_map
from aceg_ros.methods.marepo_localizer import MIN_CELLS, MarepoConfig, MarepoLocalizer, refine_pose, tokens_of
from aceg_ros.methods.scene_coordinates import SceneCoordinates
from aceg_ros.networks.pose_regressor import PoseRegressor, load_pose_regressor
from aceg_ros.networks.rotations import nearest_rotation
from aceg_ros.networks.weighing_transformer import WeighingConfig, WeighingTransformer, start_pose
from aceg_ros.pose.correspondences import Correspondences
from aceg_ros.pose.gates import Rejection
from aceg_ros.pose.solver import estimate_pose
from aceg_ros.pose.verify import verify_pose, verify_unrefined_pose

COLUMNS = ("map", "outliers added", "pose", "images", "median m", "median deg", "within 0.25 m, 5 deg", "accepted",
           "accepted: 0.05/5", "0.1/5", "0.25/5", "wrong", "ms")
WRONG_M, WRONG_DEG = 0.5, 10.0
REGRESSED, STARTED = "regressed", "no network"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One pose of one image: errors before the gates, NaN without a pose; whether it was accepted; milliseconds for the
    pose alone, without coordinates and gates."""

    metres: float
    degrees: float
    accepted: bool
    ms: float


Estimator = Callable[[SceneCoordinates, Correspondences], np.ndarray | None]


def run(pairs: Sequence[tuple[Path, Path]], regressor: PoseRegressor | None, *, every: int = 1,
        outliers: Sequence[float] = (0.0, 0.3, 0.5, 0.7)) -> str:
    """Evaluate all maps on their scenes. Returns a table as Markdown text.

    Args:
        pairs: maps, each with a scene.
        regressor: the pose transformer; None for the shipped one.
        every: take every n-th image.
        outliers: shares of tokens that become outliers.
    """
    rows = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for map_path, scene in pairs:
        localizer = MarepoLocalizer.from_map(as_marepo_map(SceneMap.load(map_path), regressor), device="cpu", seed=0)
        frames = [frame for frame in open_scene(scene, every) if reject_image(frame) is None]
        predicted = [localizer.scene_coordinates(frame) for frame in frames]
        truths = [np.asarray(frame.map_from_camera) for frame in frames]
        for share in outliers:
            spoilt = [with_outliers(each, share, seed) for seed, each in enumerate(predicted)]
            for name in estimators(localizer):
                results = [evaluate(localizer, name, each, truth) for each, truth in zip(spoilt, truths, strict=True)]
                rows.append(f"| {map_path.stem} | {share:.0%} | {name} | {_cells(results)} |")
    return "\n".join(rows)


def estimators(localizer: MarepoLocalizer) -> dict[str, Estimator]:
    """Return what estimates a pose from scene coordinates, by name."""
    config, wide = localizer.config, MarepoConfig()

    def regressed(found: SceneCoordinates, correspondences: Correspondences) -> np.ndarray | None:
        return localizer.regress_pose(found)

    def refined(found: SceneCoordinates, correspondences: Correspondences) -> np.ndarray | None:
        pose = localizer.regress_pose(found)
        return None if pose is None else refine_pose(pose, correspondences, config)

    def started(found: SceneCoordinates, correspondences: Correspondences) -> np.ndarray | None:
        return pose_of_geometry(found)

    def started_refined(found: SceneCoordinates, correspondences: Correspondences) -> np.ndarray | None:
        pose = pose_of_geometry(found)
        return None if pose is None else refine_pose(pose, correspondences, wide)

    def ransac(found: SceneCoordinates, correspondences: Correspondences) -> np.ndarray | None:
        hypothesis = estimate_pose(correspondences)
        return None if isinstance(hypothesis, Rejection) else hypothesis.map_from_camera

    return {REGRESSED: regressed, "regressed, refined": refined, STARTED: started,
            f"{STARTED}, refined": started_refined, "RANSAC": ransac}


@torch.inference_mode()
def pose_of_geometry(found: SceneCoordinates) -> np.ndarray | None:
    """Return the pose (4, 4) that our network starts from, without it. What the network adds shows in comparison."""
    tokens = tokens_of(found, 1, WeighingTransformer(WeighingConfig(layers=0)))
    if len(tokens.points) < MIN_CELLS:
        return None
    middle = np.median(tokens.points, 0)
    points, rays = (torch.from_numpy(each)[None] for each in (tokens.points - middle, tokens.rays))
    start = start_pose(points, rays)
    pose = np.eye(4)
    pose[:3, :3] = nearest_rotation(start.rotation.double())[0].T
    pose[:3, 3] = middle - pose[:3, :3] @ start.translation[0].double().numpy()
    return pose


def evaluate(localizer: MarepoLocalizer, name: str, found: SceneCoordinates, truth: np.ndarray) -> Result:
    """Estimate the pose of one image by the estimator of this name, and verify it."""
    estimator, unrefined = estimators(localizer)[name], name in (REGRESSED, STARTED)
    correspondences = localizer.most_reliable(found)
    _ = correspondences.usable                              # not part of the time
    started = perf_counter()
    pose = estimator(found, correspondences)
    ms = 1e3 * (perf_counter() - started)
    if pose is None:
        return Result(metres=np.nan, degrees=np.nan, accepted=False, ms=ms)
    config = MarepoConfig() if name == STARTED else localizer.config
    estimate = verify_pose(pose, correspondences) if not unrefined else verify_unrefined_pose(
        pose, refine_pose(pose, correspondences, config), correspondences, threshold_px=config.regressed_threshold_px)
    metres, degrees = pose_error(pose, truth)
    return Result(metres=metres, degrees=degrees, accepted=estimate.accepted, ms=ms)


def with_outliers(found: SceneCoordinates, share: float, seed: int) -> SceneCoordinates:
    """Give this share of the tokens the map point of another one."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(found.points)) < share
    return replace(found, points=np.where(wrong[:, None], found.points[rng.permutation(len(wrong))], found.points))


def _cells(results: Sequence[Result]) -> str:
    """Return the cells of a row. Images without a pose have infinite errors."""
    metres, degrees, accepted = (np.array([getattr(each, name) for each in results])
                                 for name in ("metres", "degrees", "accepted"))
    metres, degrees = np.nan_to_num(metres, nan=np.inf), np.nan_to_num(degrees, nan=np.inf)

    def share(limit_m: float, chosen: np.ndarray) -> str:
        return f"{(chosen & (metres < limit_m) & (degrees < 5)).mean():.2f}"

    wrong = int((accepted & ((metres > WRONG_M) | (degrees > WRONG_DEG))).sum())
    recalls = " | ".join(share(limit, accepted) for limit in (0.05, 0.1, 0.25))
    return (f"{len(results)} | {np.median(metres):.3f} | {np.median(degrees):.1f} |"
            f" {share(0.25, np.ones(len(results), bool))} | {int(accepted.sum())} | {recalls} | {wrong} |"
            f" {np.median([each.ms for each in results]):.0f}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="MAP=SCENE")
    parser.add_argument("--regressor", metavar="FILE", help="pose transformer (default: the shipped one)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th image only")
    parser.add_argument("--outliers", type=float, nargs="+", default=(0.0, 0.3, 0.5, 0.7), metavar="X")
    options = parser.parse_args(arguments)
    pairs = [tuple(map(Path, pair.split("=", 1))) for pair in options.pairs]
    regressor = None if options.regressor is None else load_pose_regressor(options.regressor)
    print(run(pairs, regressor, every=options.every, outliers=options.outliers))  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    sys.exit(main())
