# SPDX-License-Identifier: Apache-2.0
"""Augmentation: makes training samples of fixed size from a `Pair` by random warps and photometric changes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from aceg_ros.pretraining.encoder.pairs import Pair


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A training sample: images (2, H, W, 3) uint8, points (2, N, 2) pixels inside both; other fields as in `Pair`."""

    images: np.ndarray
    points: np.ndarray
    scene: str
    map_points: np.ndarray | None
    teacher_descriptors: np.ndarray | None


STRONG_SHARE, MAX_ANGLE_RAD, MAX_LOG_SCALE = 0.25, np.radians(45), np.log(2.0)      # warps as when a robot tilts
GREY_SHARE, THERMAL_SHARE = 0.15, 0.05     # of the images: from grey cameras, and as from thermal ones
MIN_POINTS, MIN_SAMPLE_POINTS = 40, 32     # minimum number of points of a pair, and of a sample after cropping
DRAWN_NOISE = 1 << 22                      # numbers, of which each image takes some: drawing them takes long


def make_sample(pair: Pair, rng: np.random.Generator, *, width: int, height: int, count: int) -> Sample | None:
    """Crop both images around a common point, each with different random warps and photometric changes.

    width, height: of the crops, pixels. count: maximum number of points. Returns None if the crops share too few
    points.
    """
    if len(pair.points[0]) < MIN_POINTS:
        return None
    anchor = int(rng.integers(len(pair.points[0])))
    images, points = [], []
    common_scale = np.exp(rng.uniform(np.log(0.6), np.log(1.3)))
    for image, pixels in zip(pair.images, pair.points, strict=True):
        warp = random_warp(rng, pixels[anchor], (width, height), common_scale)
        border = rng.uniform(0, 255, 3).tolist()
        images.append(photometric(cv2.warpPerspective(image, warp, (width, height), flags=cv2.INTER_LINEAR,
                                                      borderValue=border), rng))
        points.append(cv2.perspectiveTransform(pixels[:, None].astype(np.float64), warp)[:, 0])
    inside = np.all([(p > 4).all(1) & (p < (width - 5, height - 5)).all(1) for p in points], axis=0)
    chosen = rng.permutation(np.flatnonzero(inside))[:count]
    if len(chosen) < MIN_SAMPLE_POINTS:
        return None
    descriptors = pair.teacher_descriptors
    return Sample(images=np.stack(images), points=np.stack([p[chosen] for p in points]), scene=pair.scene,
                  map_points=None if pair.map_points is None else pair.map_points[chosen],
                  teacher_descriptors=None if descriptors is None else descriptors[chosen])


def random_warp(rng, anchor, size: tuple[int, int], common_scale: float) -> np.ndarray:
    """Draw a homography that moves anchor near the middle of the crop: scale, in-plane rotation, slight perspective."""
    angle, spread = rng.normal(0, np.radians(14)), 0.25
    if rng.uniform() < STRONG_SHARE:
        angle, spread = rng.uniform(-MAX_ANGLE_RAD, MAX_ANGLE_RAD), 0.45
    scale = common_scale * np.exp(np.clip(rng.normal(0, spread), -MAX_LOG_SCALE, MAX_LOG_SCALE))
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    centre = np.array(size) * rng.uniform(0.25, 0.75, 2)
    to_anchor = np.array([[1, 0, -anchor[0]], [0, 1, -anchor[1]], [0, 0, 1.0]])
    rotate = np.array([[cos, -sin, 0], [sin, cos, 0], [*rng.normal(0, 2.5e-4, 2), 1]])
    to_crop = np.array([[1, 0, centre[0]], [0, 1, centre[1]], [0, 0, 1.0]])
    return to_crop @ rotate @ to_anchor


def relit(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply random exposure, colour temperature, gamma and uneven light to an image."""
    curve = np.linspace(0, 1, 256) ** np.exp(rng.normal(0, 0.3))
    curve = (curve - 0.5) * np.exp(rng.normal(0, 0.25)) + 0.5 + rng.normal(0, 0.08)
    gains = np.exp(rng.normal(0, 0.3) + rng.normal(0, 0.12, 3))
    table = np.clip(curve[:, None] * gains * 255, 0, 255).astype(np.uint8)
    image = cv2.LUT(image, table[None])
    if rng.uniform() < 0.5:
        ramp = _ramp(rng, image.shape[0], image.shape[1])
        image = cv2.multiply(image, cv2.merge([ramp] * image.shape[2]), dtype=cv2.CV_8U)
    return image


def photometric(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply random exposure, colour temperature, gamma, uneven light, blur, noise and JPEG artefacts to an image."""
    if rng.uniform() < GREY_SHARE + THERMAL_SHARE:
        image = _one_channel(image, rng)
    if rng.uniform() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 2.4))
    if rng.uniform() < 0.2:
        image = cv2.filter2D(image, -1, _motion_kernel(rng))
    image = relit(image, rng)
    if rng.uniform() < 0.5:
        image = noisy(image, rng, rng.uniform(1, 9))
    if rng.uniform() < 0.2:
        quality = int(rng.integers(30, 90))
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        image = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))
    return image


def noisy(image: np.ndarray, rng: np.random.Generator, deviation: float, factor: float = 1.0) -> np.ndarray:
    """Multiply an image by a factor, and add normal noise of a standard deviation."""
    drawn = _drawn_noise()
    start = int(rng.integers(len(drawn) - image.size))
    noise = drawn[start:start + image.size].reshape(image.shape)
    return cv2.addWeighted(image.astype(np.float32), factor, noise, deviation, 0.0, dtype=cv2.CV_8U)


@lru_cache(maxsize=1)
def _drawn_noise() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(DRAWN_NOISE, np.float32)


def _one_channel(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make a grey image or, less often, one with equalised and possibly inverted brightness, three equal channels."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if rng.uniform() < THERMAL_SHARE / (GREY_SHARE + THERMAL_SHARE):
        grey = cv2.GaussianBlur(cv2.equalizeHist(grey), (0, 0), 1.2)
        grey = 255 - grey if rng.uniform() < 0.5 else grey
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)


def _motion_kernel(rng) -> np.ndarray:
    size = int(rng.integers(3, 14)) | 1
    kernel = np.zeros((size, size), np.float32)
    angle = rng.uniform(0, np.pi)
    half = size / 2 * np.array([np.cos(angle), np.sin(angle)])
    centre = np.array([size // 2, size // 2])
    start, end = (centre - half).round().astype(int), (centre + half).round().astype(int)
    cv2.line(kernel, (int(start[0]), int(start[1])), (int(end[0]), int(end[1])), 1.0)
    return kernel / kernel.sum()


def _ramp(rng, height: int, width: int) -> np.ndarray:
    """Generate smooth brightness factors (H, W): an upsampled coarse random grid."""
    grid = np.exp(rng.normal(0, 0.25, (3, 4))).astype(np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
