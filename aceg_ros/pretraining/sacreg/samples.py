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
class CrossImageSample:
    """Keypoints of a query and K keyframes with T tokens, in a random coordinate system.

    Attributes:
        descriptors, positions, truth: (N, C), (N, 2), (N, 3) of the query's keypoints; points are NaN if unknown.
        key_descriptors, key_positions, points, valid: (K, T, C), (K, T, 2), (K, T, 3), (K, T) of the keyframes.
        pixels: (N, 2) of the keypoints in the query image.
    """

    descriptors: Tensor
    positions: Tensor
    truth: Tensor
    key_descriptors: Tensor
    key_positions: Tensor
    points: Tensor
    valid: Tensor
    pixels: Tensor


@dataclass(frozen=True, kw_only=True)
class SampleSize:
    """keyframes: largest number. keypoints: of the query. tokens: of a keyframe."""

    keyframes: int = 6
    keypoints: int = 256
    tokens: int = 256


def draw_sample(scene: CrossImageScene, rng: np.random.Generator, size: SampleSize, config: CrossImageConfig
                ) -> CrossImageSample | None:
    """Draw a query, keyframes and an augmentation; None if the draw is of no use."""
    role = VARIANT if rng.random() < VARIANT_SHARE else (KEYFRAME, QUERY)[int(rng.integers(2))]
    images = scene.of_role(role) if len(scene.of_role(role)) else scene.of_role(KEYFRAME)
    query = int(images[rng.integers(len(images))])
    near = nearest_keyframes(scene, query)
    if len(near) < 3:
        return None
    count = 1 if rng.random() < SINGLE_SHARE else int(rng.integers(2, size.keyframes + 1))
    chosen = rng.permutation(near[:CANDIDATES])[:count]
    chosen = np.where(rng.random(len(chosen)) < OTHER_SHARE, near[rng.integers(len(near), size=len(chosen))], chosen)
    rows = scene.keypoints_of(query)
    if rng.random() < CROP_SHARE:
        middle, half = scene.pixels[rows[rng.integers(len(rows))]], scene.sizes[query] * rng.uniform(0.2, 0.5)
        rows = rows[(np.abs(scene.pixels[rows] - middle) < half).all(1)]
    rows = rows[spread_over_image(scene.pixels[rows], 2 * size.keypoints, BLOCK_PX)]
    rows = np.sort(rng.permutation(rows)[:size.keypoints])
    if np.isfinite(scene.truth[rows]).all(1).sum() < MIN_KNOWN:
        return None
    tokens = [rng.permutation(landmarks_of(scene, int(keyframe)))[:size.tokens] for keyframe in np.unique(chosen)]
    tokens = [each for each in tokens if len(each) >= MIN_TOKENS]
    return make_sample(scene, rows, tokens, config, rng=rng) if tokens else None


def nearest_keyframes(scene: CrossImageScene, query: int) -> np.ndarray:
    """Return the keyframes that are not the query itself, those that see most alike first."""
    keyframes = scene.of_role(KEYFRAME)
    keyframes = keyframes[keyframes != scene.source[query]]
    poses, pose = scene.poses[keyframes], scene.poses[query]
    distance = np.linalg.norm(poses[:, :3, 3] - pose[:3, 3], axis=1) / depth_of(scene)
    angle = np.arccos(np.clip(poses[:, :3, 2] @ pose[:3, 2], -1.0, 1.0))
    return keyframes[np.argsort(distance + angle, kind="stable")]


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


def make_sample(scene: CrossImageScene, rows: np.ndarray, tokens: list[np.ndarray], config: CrossImageConfig, *,
                rng: np.random.Generator | None = None) -> CrossImageSample:
    """Make a sample of keypoints: rows of the query, and tokens of each keyframe. With a generator it is augmented:
    rotation, scale, shift and noisy points as published."""
    scale = config.canonical_depth / depth_of(scene)
    points = [scale * scene.points[scene.track[each]].astype(np.float64) for each in tokens]
    truth = scale * scene.truth[rows].astype(np.float64)
    if rng is not None:
        points = [each + (rng.random((len(each), 1)) < NOISY_SHARE) * rng.normal(0, NOISE, each.shape)
                  for each in points]
        turn = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix() * np.exp(rng.uniform(*np.log(SCALES)))
        origin, shift = points[0].mean(0), rng.uniform(-SHIFT, SHIFT, 3)
        points = [(each - origin) @ turn.T + shift for each in points]
        truth = (truth - origin) @ turn.T + shift
    length = max(len(each) for each in tokens)
    return CrossImageSample(
        descriptors=_descriptors(scene, rows), positions=_positions(scene, rows, config), truth=torch.from_numpy(truth),
        key_descriptors=padded([_descriptors(scene, each) for each in tokens], length),
        key_positions=padded([_positions(scene, each, config) for each in tokens], length),
        points=padded([torch.from_numpy(each) for each in points], length),
        valid=existing([torch.from_numpy(each) for each in tokens], length),
        pixels=torch.from_numpy(scene.pixels[rows]))


def _descriptors(scene: CrossImageScene, rows: np.ndarray) -> Tensor:
    return functional.normalize(torch.from_numpy(scene.descriptors[rows]).float(), dim=1)


def _positions(scene: CrossImageScene, rows: np.ndarray, config: CrossImageConfig) -> Tensor:
    return torch.from_numpy(scene.pixels[rows]) / config.position_px
