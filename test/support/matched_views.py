# SPDX-License-Identifier: Apache-2.0
"""Simulated matches of an image with posed keyframes, of different cameras, with wrong ones among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from aceg_ros.camera import Camera
from aceg_ros.geometry import invert, look_at
from aceg_ros.methods.reloc3r_pairs import relative_poses_of
from aceg_ros.pose.epipolar import EpipolarConfig, PairMatches, estimate_pair
from aceg_ros.pose.motion_averaging import RelativePoses

KEY_CAMERA = Camera(width=640, height=480, fx=500.0, fy=510.0, cx=322.0, cy=238.0)
CAMERA = Camera(width=800, height=600, fx=900.0, fy=900.0, cx=390.0, cy=310.0)          # a longer lens
QUERY = look_at(np.array([0.3, -0.2, 0.1]), np.array([0.0, 5.0, 0.0]))
KEYFRAMES = [look_at(np.array(centre), np.array([0.2, 5.0, 0.1])) for centre in
             ((-1.5, -0.5, 0.2), (1.2, 0.3, -0.3), (0.2, -1.5, 0.8), (-0.6, 0.9, -0.5))]


def project(points: np.ndarray, camera: Camera, map_from_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    local = points @ invert(map_from_camera)[:3, :3].T + invert(map_from_camera)[:3, 3]
    return local[:, :2] / local[:, 2:] * (camera.fx, camera.fy) + (camera.cx, camera.cy), local[:, 2]


def matched_views(keyframes: Sequence[np.ndarray] = tuple(KEYFRAMES), *, count: int = 300, noise_px: float = 0.5,
                  wrong: float = 0.3, seed: int = 0, with_depth: bool = False) -> list[PairMatches]:
    """Matches of QUERY with each keyframe; `wrong` of them are random."""
    rng = np.random.default_rng(seed)
    points = rng.uniform((-2.5, 3.0, -2.0), (2.5, 7.0, 2.0), (count, 3))
    pixels, _ = project(points, CAMERA, QUERY)
    pixels += noise_px * rng.standard_normal(pixels.shape)
    found = []
    for number, keyframe in enumerate(keyframes):
        key_pixels, depth = project(points, KEY_CAMERA, keyframe)
        key_pixels += noise_px * rng.standard_normal(pixels.shape)
        random = rng.random(count) < wrong
        key_pixels[random] = rng.uniform((0, 0), (640, 480), (int(random.sum()), 2))
        found.append(PairMatches(
            keyframe=number, map_from_keyframe=keyframe, key_k=KEY_CAMERA.K, camera_k=CAMERA.K, key_pixels=key_pixels,
            pixels=pixels, keypoints=np.arange(count), size=(CAMERA.width, CAMERA.height),
            key_depths_m=np.where(random, np.nan, depth) if with_depth else np.full(count, np.nan)))
    return found


def with_relative_poses(matches: Sequence[PairMatches]) -> tuple[RelativePoses, list[PairMatches]]:
    """Relative poses estimated from the matches of each pair, and the pairs that have one."""
    estimated = [(pair, estimate_pair(pair, EpipolarConfig(), 0)) for pair in matches]
    kept = [(replace(pair, own_log10_nfa=pose.log10_nfa), pose) for pair, pose in estimated
            if pose is not None and pose.log10_nfa < 0.0]
    return relative_poses_of(kept), [pair for pair, _ in kept]
