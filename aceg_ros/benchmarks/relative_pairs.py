# SPDX-License-Identifier: Apache-2.0
"""Relative poses of pairs of images, by how much they overlap: matches with an essential matrix beside a network.

    python -m aceg_ros.benchmarks.relative_pairs PREPARED ... [--scene SCENE ...] [--network FILE] [--pairs N]

PREPARED are scenes as `aceg pretrain sacreg` or `reloc3r` prepares them (npz), of which the training used none. SCENE
has folders mapping/ and query/: pairs of a query image and a keyframe, of 20 each. Overlap is the share of the known
points of an image (of its depths, else of its landmarks) that the other looks at, the smaller one of both directions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from aceg_ros.camera import Frame
from aceg_ros.datasets import open_scene
from aceg_ros.encoders.base import load_encoder
from aceg_ros.geometry import invert, pose_error
from aceg_ros.mapping.build_keyframes import select_views
from aceg_ros.methods.reloc3r_network import most_confident
from aceg_ros.networks.keypoint_relative_pose import KeypointPoseNet, match_keypoints, stack_matches
from aceg_ros.networks.relative_pose_file import load_relative_pose
from aceg_ros.pose.epipolar import EpipolarConfig, PairMatches, estimate_pair, rate_pose
from aceg_ros.pretraining.reloc3r.samples import overlapping_pairs
from aceg_ros.pretraining.sacreg.scenes import KEYFRAME, QUERY, CrossImageScene, make_scene
from aceg_ros.utils.device import half_precision

OVERLAPS = (0.1, 0.25, 0.5, 0.75, 1.01)
AUC_DEG = (5.0, 10.0, 20.0)
EVERY_IMAGES = 20                       # mapping and query images of a scene
NO_POSE = (180.0, 180.0)

RelativePose = Callable[[CrossImageScene, int, int], "np.ndarray | None"]


@dataclass(frozen=True, kw_only=True)
class PairErrors:
    """overlap: of a pair. rotation_deg, direction_deg: errors of its relative pose, 180 without one."""

    overlap: float
    rotation_deg: float
    direction_deg: float


def evaluate(scenes: Sequence[CrossImageScene], estimate: RelativePose, count: int, seed: int = 0) -> list[PairErrors]:
    """Estimate relative poses of at most `count` pairs of each overlap and scene.

    With images of a later session, pairs are of one of these and a keyframe.
    """
    found = []
    for scene in scenes:
        rng = np.random.default_rng(seed)
        images = scene.of_role(KEYFRAME, QUERY)
        pairs, overlap = overlapping_pairs(scene, images.tolist())
        pairs = images[pairs]
        roles = scene.roles[pairs]
        wanted = (roles[:, 0] == KEYFRAME) & (roles[:, 1] == QUERY) if (scene.roles == QUERY).any() \
            else pairs[:, 0] < pairs[:, 1]
        for low, high in pairwise(OVERLAPS):
            chosen = rng.permutation(np.flatnonzero(wanted & (overlap >= low) & (overlap < high)))[:count]
            for (a, b), share in zip(pairs[chosen], overlap[chosen], strict=True):
                rotation, direction = _errors(estimate(scene, int(a), int(b)), scene.poses[a], scene.poses[b])
                found.append(PairErrors(overlap=float(share), rotation_deg=rotation, direction_deg=direction))
    return found


def _errors(pose: np.ndarray | None, first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    if pose is None:
        return NO_POSE
    truth = invert(first) @ second
    cosine = pose[:3, 3] @ truth[:3, 3] / max(float(np.linalg.norm(pose[:3, 3]) * np.linalg.norm(truth[:3, 3])), 1e-12)
    return pose_error(pose, truth)[1], float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))


def by_matches(scene: CrossImageScene, first: int, second: int) -> np.ndarray | None:
    """Return first_from_second (4, 4) from mutual nearest neighbours and an essential matrix, None if it is by chance.
    """
    matches = _matches(scene, first, second)
    found = estimate_pair(matches, EpipolarConfig(), 0)
    return None if found is None or found.log10_nfa >= 0.0 else found.keyframe_from_camera


def _matches(scene: CrossImageScene, first: int, second: int) -> PairMatches:
    rows = [scene.keypoints_of(image) for image in (first, second)]
    a, b = (_unit(scene.descriptors[part]) for part in rows)
    similarity = b @ a.T
    nearest = similarity.argmax(1)
    mutual = np.flatnonzero(similarity.argmax(0)[nearest] == np.arange(len(nearest)))
    mutual = mutual[np.argsort(-similarity[mutual, nearest[mutual]], kind="stable")]
    return _pair_matches(scene, (first, second), rows[0][nearest[mutual]], rows[1][mutual])


def _pair_matches(scene: CrossImageScene, images: tuple[int, int], first: np.ndarray, second: np.ndarray
                  ) -> PairMatches:
    """Collect matches of keypoints (M,) of two images."""
    (a, b), (width, height) = images, scene.sizes[images[1]].tolist()
    return PairMatches(
        keyframe=a, map_from_keyframe=scene.poses[a], key_k=_matrix(scene, a), camera_k=_matrix(scene, b),
        key_pixels=scene.pixels[first].astype(np.float64), pixels=scene.pixels[second].astype(np.float64),
        keypoints=second - scene.first[b], key_depths_m=np.full(len(first), np.nan), size=(int(width), int(height)))


def by_network(net: KeypointPoseNet, *, ransac: bool) -> RelativePose:
    """Return what estimates first_from_second (4, 4) with a network on keypoints: by its weights alone, or by RANSAC on
    the matches that it takes for right."""

    @torch.inference_mode()
    def estimate(scene: CrossImageScene, first: int, second: int) -> np.ndarray | None:
        rows = [scene.keypoints_of(image)[:net.config.keypoints] for image in (first, second)]
        descriptors = [torch.from_numpy(_unit(scene.descriptors[part])) for part in rows]
        found = match_keypoints(descriptors[0], descriptors[1], net.config.matches)
        if len(found.rows) == 0:
            return None
        chosen = [part[side.numpy()] for part, side in zip(rows, (found.rows, found.columns), strict=True)]
        rays = [torch.from_numpy((scene.pixels[part] - scene.intrinsics[image][2:]) / scene.intrinsics[image][:2])
                for part, image in zip(chosen, (first, second), strict=True)]
        both = torch.stack([descriptors[0][found.rows], descriptors[1][found.columns]], 1)
        with half_precision("cpu"):
            predicted = net(stack_matches([(rays[0].float(), rays[1].float(), both, found.statistics)],
                                          net.config.matches))
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = predicted.rotation[0], predicted.direction[0]
        order = most_confident(predicted.weights[0, :len(found.rows)].numpy())
        matches = _pair_matches(scene, (first, second), chosen[0][order], chosen[1][order])
        config = EpipolarConfig()
        result = estimate_pair(matches, config, 0) if ransac else rate_pose(matches, pose, config)
        return None if result is None or result.log10_nfa >= 0.0 else result.keyframe_from_camera

    return estimate


def standing_still(_scene: CrossImageScene, _first: int, _second: int) -> np.ndarray:
    """Return the pose of a camera that only moved ahead: what knowing nothing is worth."""
    pose = np.eye(4)
    pose[2, 3] = 1.0
    return pose


def _matrix(scene: CrossImageScene, image: int) -> np.ndarray:
    fx, fy, cx, cy = scene.intrinsics[image]
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def _unit(descriptors: np.ndarray) -> np.ndarray:
    values = descriptors.astype(np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)


def prepare(scene: Path, encoder: str) -> CrossImageScene:
    """Prepare the mapping images that are farthest from each other, and query images, of a scene."""
    mapping: list[Frame] = [frame for frame in open_scene(scene / "mapping") if frame.map_from_camera is not None]
    poses = np.stack([frame.map_from_camera for frame in mapping if frame.map_from_camera is not None])
    query = list(open_scene(scene / "query"))
    return make_scene([mapping[index] for index in select_views(poses, EVERY_IMAGES)],
                      query[::max(1, len(query) // EVERY_IMAGES)], load_encoder(encoder))


def table(found: Mapping[str, Sequence[PairErrors]]) -> str:
    """Return a table as Markdown text, of the errors by each source of relative poses."""
    rows = ["| overlap | pairs | by | with a pose | rotation deg | direction deg | AUC@5 | @10 | @20 |",
            "|---" * 9 + "|"]
    for low, high in [*pairwise(OVERLAPS), (OVERLAPS[0], OVERLAPS[-1])]:
        for name, errors in found.items():
            chosen = np.array([(each.rotation_deg, each.direction_deg) for each in errors
                               if low <= each.overlap < high]).reshape(-1, 2)
            if len(chosen) == 0:
                continue
            areas = " | ".join(f"{area_under_curve(chosen.max(1), bound):.2f}" for bound in AUC_DEG)
            with_pose = chosen[chosen[:, 0] < NO_POSE[0]]
            medians = "- | -" if len(with_pose) == 0 else "{:.1f} | {:.1f}".format(*np.median(with_pose, axis=0))
            rows.append(f"| {low:.2f} to {min(high, 1.0):.2f} | {len(chosen)} | {name} | {len(with_pose)} | {medians} |"
                        f" {areas} |")
    return "\n".join(rows)


def area_under_curve(errors: np.ndarray, bound: float) -> float:
    """Return the area under the recall curve up to a bound, as a share: the mean of 1 - error / bound, at least 0."""
    return float(np.clip(1.0 - errors / bound, 0.0, 1.0).mean()) if len(errors) else 0.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path, nargs="*")
    parser.add_argument("--scene", type=Path, nargs="*", default=(), help="folders with mapping/ and query/")
    parser.add_argument("--encoder", default="compact4", help="of the scenes that are not prepared")
    parser.add_argument("--network", help="a file from 'aceg pretrain reloc3r'")
    parser.add_argument("--pairs", type=int, default=50, help="of each overlap and scene, at most")
    options = parser.parse_args(arguments)
    scenes = [CrossImageScene.load(path) for path in options.prepared]
    scenes += [prepare(path, options.encoder) for path in options.scene]
    sources: dict[str, RelativePose] = {"matches": by_matches, "nothing": standing_still}
    if options.network:
        net = load_relative_pose(options.network).net
        assert isinstance(net, KeypointPoseNet)
        sources["network, its weights alone"] = by_network(net, ransac=False)
        sources["network"] = by_network(net, ransac=True)
    print(table({name: evaluate(scenes, source, options.pairs) for name, source in sources.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
