# SPDX-License-Identifier: Apache-2.0
"""Relative poses from matches of two images: essential matrix by RANSAC, and its significance."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import poselib
from scipy.spatial.transform import Rotation

from aceg_ros.geometry import invert, skew
from aceg_ros.pose.correspondences import image_blocks
from aceg_ros.pose.significance import effective_counts, log10_false_alarms

MINIMAL_SAMPLE = 5                  # matches that determine an essential matrix
THRESHOLDS_PX = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
STEP = 1e-4                         # of numerical derivatives: radians, or as a share of the distance


@dataclass(frozen=True, kw_only=True)
class PairMatches:
    """M matches of an image with a keyframe, the most similar first.

    keyframe: its number. map_from_keyframe: (4, 4). key_k, camera_k: intrinsics (3, 3). key_pixels, pixels: (M, 2).
    keypoints: (M,) of the image. key_depths_m: (M,) measured z-depths of the keyframe's keypoints, NaN where unknown.
    size: width and height of the image. own_log10_nfa: significance of their own relative pose, once estimated.
    """

    keyframe: int
    map_from_keyframe: np.ndarray
    key_k: np.ndarray
    camera_k: np.ndarray
    key_pixels: np.ndarray
    pixels: np.ndarray
    keypoints: np.ndarray
    key_depths_m: np.ndarray
    size: tuple[int, int]
    own_log10_nfa: float = np.inf

    def __len__(self) -> int:
        return len(self.pixels)

    def subset(self, chosen: np.ndarray) -> PairMatches:
        """Return the chosen matches, by indices or a mask."""
        return replace(self, key_pixels=self.key_pixels[chosen], pixels=self.pixels[chosen],
                       keypoints=self.keypoints[chosen], key_depths_m=self.key_depths_m[chosen])

    def errors_px(self, keyframe_from_camera: np.ndarray) -> np.ndarray:
        """Return the signed Sampson errors (M,) in pixels under a relative pose (4, 4) of any scale."""
        rotation = keyframe_from_camera[:3, :3]
        essential = skew(keyframe_from_camera[:3, 3]) @ rotation               # key^T E image = 0
        fundamental = np.linalg.inv(self.key_k).T @ essential @ np.linalg.inv(self.camera_k)
        lines = self.pixels @ fundamental[:, :2].T + fundamental[:, 2]         # in the keyframe
        back = self.key_pixels @ fundamental[:2] + fundamental[2]              # in the image
        product = (self.key_pixels * lines[:, :2]).sum(1) + lines[:, 2]
        length = np.sqrt(np.square(lines[:, :2]).sum(1) + np.square(back[:, :2]).sum(1))
        return product / np.maximum(length, 1e-12)


@dataclass(frozen=True, kw_only=True)
class EpipolarConfig:
    """threshold_px: of RANSAC, as a Sampson error. iterations: of RANSAC, at most. min_matches: of a pair that is
    tried. noise_factor: by which keypoints are less certain than their independent residuals tell."""

    threshold_px: float = 2.0
    iterations: int = 300
    min_matches: int = 12
    noise_factor: float = 3.0


@dataclass(frozen=True, kw_only=True)
class PairPose:
    """The relative pose of a pair: keyframe_from_camera (4, 4), its translation of unit length; inliers (M,) bool;
    log10_nfa: see `log10_nfa`; sigma_rad: standard deviation of the direction of the translation, at most 1."""

    keyframe_from_camera: np.ndarray
    inliers: np.ndarray
    log10_nfa: float
    sigma_rad: float


def estimate_pair(matches: PairMatches, config: EpipolarConfig, seed: int) -> PairPose | None:
    """Estimate the essential matrix of a pair with PoseLib (5-point LO-RANSAC); None if there are too few matches."""
    if len(matches) < config.min_matches:
        return None
    cameras = [{"model": "PINHOLE", "width": matches.size[0], "height": matches.size[1],
                "params": [k[0, 0], k[1, 1], k[0, 2], k[1, 2]]} for k in (matches.key_k, matches.camera_k)]
    options = {"max_epipolar_error": config.threshold_px, "max_iterations": config.iterations,
               "min_iterations": min(100, config.iterations), "seed": seed, "progressive_sampling": True,
               "max_prosac_iterations": config.iterations}
    found, report = poselib.estimate_relative_pose(matches.key_pixels, matches.pixels, *cameras, options)
    length = float(np.linalg.norm(found.t))
    if report["num_inliers"] <= MINIMAL_SAMPLE or not np.isfinite(length) or length == 0.0:
        return None
    camera_from_keyframe = np.eye(4)
    camera_from_keyframe[:3, :3], camera_from_keyframe[:3, 3] = found.R, found.t / length
    return rate_pose(matches, invert(camera_from_keyframe), config)


def rate_pose(matches: PairMatches, pose: np.ndarray, config: EpipolarConfig) -> PairPose | None:
    """Rate a relative pose (4, 4), keyframe_from_camera, by the matches; None if too few agree with it."""
    errors = matches.errors_px(pose)
    inliers = np.abs(errors) < config.threshold_px
    if inliers.sum() <= MINIMAL_SAMPLE:
        return None
    return PairPose(keyframe_from_camera=pose, inliers=inliers, log10_nfa=log10_nfa(matches, errors),
                    sigma_rad=_direction_sigma(matches.subset(inliers), pose, config))


def log10_nfa(matches: PairMatches, errors_px: np.ndarray) -> float:
    """Return the logarithm of the number of essential matrices that would agree as well with the matches by chance.

    A match that is wrong lies anywhere in the image: within t of its line with a probability of about 2 t times the
    diagonal over the area (Moisan and Stival, IJCV 2004). Matches of an image block count as MAX_PER_BLOCK at most.
    """
    if len(matches) <= MINIMAL_SAMPLE + 1:
        return np.inf
    width, height = matches.size
    thresholds = np.array(THRESHOLDS_PX)
    inliers, total = effective_counts(image_blocks(matches.pixels.T, matches.size), np.abs(errors_px), thresholds,
                                      np.ones((1, len(matches)), bool))
    # A Sampson error is a distance over the square root of two, since both pixels may move.
    chance = 2.0 * np.sqrt(2.0) * thresholds * np.hypot(width, height) / (width * height)
    return float(log10_false_alarms(inliers, total[:, None], chance, MINIMAL_SAMPLE).min())


def _direction_sigma(matches: PairMatches, pose: np.ndarray, config: EpipolarConfig) -> float:
    """Return the standard deviation of the direction, radians: large where the camera hardly moved."""
    direction = pose[:3, 3]
    across = np.linalg.svd(direction[None])[2][1:]                            # (2, 3): the other two axes
    base = matches.errors_px(pose)
    columns = []
    for turn in np.eye(3) * STEP:
        moved = pose.copy()
        moved[:3, :3] = Rotation.from_rotvec(turn).as_matrix() @ pose[:3, :3]
        columns.append((matches.errors_px(moved) - base) / STEP)
    for axis in across * STEP:
        moved = pose.copy()
        moved[:3, 3] += axis
        columns.append((matches.errors_px(moved) - base) / STEP)
    jacobian = np.stack(columns, 1)
    noise = np.square(base).sum() / max(len(base) - MINIMAL_SAMPLE, 1) + 0.1**2
    try:
        covariance = noise * np.linalg.inv(jacobian.T @ jacobian + 1e-9 * np.eye(5))
    except np.linalg.LinAlgError:
        return 1.0
    return float(min(config.noise_factor * np.sqrt(max(np.linalg.eigvalsh(covariance[3:, 3:])[-1], 0.0)), 1.0))
