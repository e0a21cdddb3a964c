# SPDX-License-Identifier: Apache-2.0
"""Training samples of SACReg: keypoints of a query image, keyframes near it with their landmarks, and augmentation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from aceg_ros.encoders.keypoints import spread_over_image
from aceg_ros.networks.cross_image_regressor import CrossImageConfig
from aceg_ros.networks.keyframe_mixer import existing, padded
from aceg_ros.pretraining.sacreg.scenes import KEYFRAME, QUERY, VARIANT, CrossImageScene

BLOCK_PX = 16                       # keypoints are spread over blocks of this size
CANDIDATES = 14                     # keyframes nearest to the query, of which some are drawn
OTHER_SHARE, SINGLE_SHARE = 0.15, 0.3           # of keyframes from anywhere; of samples with a single keyframe
CROP_SHARE, VARIANT_SHARE = 0.3, 0.5            # of samples with a part of the image, and with a changed image
SCALES, SHIFT, NOISY_SHARE, NOISE = (0.5, 2.0), 1000.0, 0.05, 1.0      # as published; noise in canonical units
MIN_KNOWN, MIN_TOKENS = 12, 20      # keypoints with known points in a sample, landmarks of a keyframe


@dataclass(frozen=True, kw_only=True)
class QueryKeypoints:
    """Keypoints of a query image: descriptors (N, C), positions (N, 2) and pixels (N, 2), truth (N, 3), the points that
    they show, NaN if unknown."""

    descriptors: Tensor
    positions: Tensor
    pixels: Tensor
    truth: Tensor


@dataclass(frozen=True, kw_only=True)
class CrossImageSample:
    """Query images, and K keyframes with T tokens, in a random coordinate system that they share.

    queries: one or more, since keyframes are mixed once for all. descriptors, positions, points, valid: (K, T, C),
    (K, T, 2), (K, T, 3), (K, T) of the keyframes.
    """

    queries: tuple[QueryKeypoints, ...]
    descriptors: Tensor
    positions: Tensor
    points: Tensor
    valid: Tensor


@dataclass(frozen=True, kw_only=True)
class SampleSize:
    """queries: of a sample. keyframes: largest number. keypoints: of a query. tokens: of a keyframe."""

    queries: int = 3
    keyframes: int = 6
    keypoints: int = 256
    tokens: int = 256


def draw_sample(scene: CrossImageScene, rng: np.random.Generator, size: SampleSize, config: CrossImageConfig
                ) -> CrossImageSample | None:
    """Draw queries, keyframes and an augmentation; None if the draw is of no use."""
    query = _draw_image(scene, rng)
    near = nearest_keyframes(scene, query)
    if len(near) < 3:
        return None
    count = 1 if rng.random() < SINGLE_SHARE else int(rng.integers(2, size.keyframes + 1))
    chosen = rng.permutation(near[:CANDIDATES])[:count]
    chosen = np.where(rng.random(len(chosen)) < OTHER_SHARE, near[rng.integers(len(near), size=len(chosen))], chosen)
    queries = [query, *_others_near(scene, query, chosen, rng)][:size.queries]
    rows = [some for some in (_draw_keypoints(scene, image, rng, size.keypoints) for image in queries)
            if np.isfinite(scene.truth[some]).all(1).sum() >= MIN_KNOWN]
    tokens = [rng.permutation(landmarks_of(scene, int(keyframe)))[:size.tokens] for keyframe in np.unique(chosen)]
    tokens = [each for each in tokens if len(each) >= MIN_TOKENS]
    return make_sample(scene, rows, tokens, config, rng=rng) if tokens and rows else None


def _draw_image(scene: CrossImageScene, rng: np.random.Generator) -> int:
    role = VARIANT if rng.random() < VARIANT_SHARE else (KEYFRAME, QUERY)[int(rng.integers(2))]
    images = scene.of_role(role) if len(scene.of_role(role)) else scene.of_role(KEYFRAME)
    return int(images[rng.integers(len(images))])


def _others_near(scene: CrossImageScene, query: int, keyframes: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Return images near a query, in random order, none of which is of a keyframe that was chosen."""
    free = np.flatnonzero(~np.isin(scene.source, [*keyframes, scene.source[query]]))
    order = free[np.argsort(_distances(scene, query, free), kind="stable")][:CANDIDATES]
    return [int(image) for image in rng.permutation(order)]


def _draw_keypoints(scene: CrossImageScene, image: int, rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw keypoints (N,) of an image, sometimes of a part of it."""
    rows = scene.keypoints_of(image)
    if len(rows) and rng.random() < CROP_SHARE:
        middle, half = scene.pixels[rows[rng.integers(len(rows))]], scene.sizes[image] * rng.uniform(0.2, 0.5)
        rows = rows[(np.abs(scene.pixels[rows] - middle) < half).all(1)]
    rows = rows[spread_over_image(scene.pixels[rows], 2 * count, BLOCK_PX)]
    return np.sort(rng.permutation(rows)[:count])


def nearest_keyframes(scene: CrossImageScene, query: int) -> np.ndarray:
    """Return the keyframes that are not the query itself, those that see most alike first."""
    keyframes = scene.of_role(KEYFRAME)
    keyframes = keyframes[keyframes != scene.source[query]]
    return keyframes[np.argsort(_distances(scene, query, keyframes), kind="stable")]


def _distances(scene: CrossImageScene, query: int, images: np.ndarray) -> np.ndarray:
    """Return how differently images (F,) see from a query: distance in depths, plus angle in radians."""
    poses, pose = scene.poses[images], scene.poses[query]
    distance = np.linalg.norm(poses[:, :3, 3] - pose[:3, 3], axis=1) / depth_of(scene)
    return distance + np.arccos(np.clip(poses[:, :3, 2] @ pose[:3, 2], -1.0, 1.0))


def depth_of(scene: CrossImageScene) -> float:
    """Return the median depth of the landmarks in the keyframes."""
    observed = np.flatnonzero(scene.track >= 0)
    poses = scene.poses[np.searchsorted(scene.first, observed, side="right") - 1]
    depth = ((scene.points[scene.track[observed]] - poses[:, :3, 3]) * poses[:, :3, 2]).sum(1)
    return max(float(np.median(depth)), 1e-6)


def landmarks_of(scene: CrossImageScene, keyframe: int) -> np.ndarray:
    """Return the keypoints of a keyframe that observe landmarks."""
    rows = scene.keypoints_of(keyframe)
    return rows[scene.track[rows] >= 0]


def make_sample(scene: CrossImageScene, queries: list[np.ndarray], tokens: list[np.ndarray], config: CrossImageConfig,
                *, rng: np.random.Generator | None = None) -> CrossImageSample:
    """Make a sample of keypoints: those of each query, and tokens of each keyframe. With a generator it is augmented:
    rotation, scale, shift and noisy points as published."""
    scale = config.canonical_depth / depth_of(scene)
    points = [scale * scene.points[scene.track[each]].astype(np.float64) for each in tokens]
    truths = [scale * scene.truth[rows].astype(np.float64) for rows in queries]
    if rng is not None:
        points = [each + (rng.random((len(each), 1)) < NOISY_SHARE) * rng.normal(0, NOISE, each.shape)
                  for each in points]
        turn = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix() * np.exp(rng.uniform(*np.log(SCALES)))
        origin, shift = points[0].mean(0), rng.uniform(-SHIFT, SHIFT, 3)
        points, truths = ([(each - origin) @ turn.T + shift for each in parts] for parts in (points, truths))
    length = max(len(each) for each in tokens)
    return CrossImageSample(
        queries=tuple(QueryKeypoints(
            descriptors=_descriptors(scene, rows), positions=_positions(scene, rows, config),
            pixels=torch.from_numpy(scene.pixels[rows]), truth=torch.from_numpy(truth))
            for rows, truth in zip(queries, truths, strict=True)),
        descriptors=padded([_descriptors(scene, each) for each in tokens], length),
        positions=padded([_positions(scene, each, config) for each in tokens], length),
        points=padded([torch.from_numpy(each) for each in points], length),
        valid=existing([torch.from_numpy(each) for each in tokens], length))


def _descriptors(scene: CrossImageScene, rows: np.ndarray) -> Tensor:
    return functional.normalize(torch.from_numpy(scene.descriptors[rows]).float(), dim=1)


def _positions(scene: CrossImageScene, rows: np.ndarray, config: CrossImageConfig) -> Tensor:
    return torch.from_numpy(scene.pixels[rows]) / config.position_px
