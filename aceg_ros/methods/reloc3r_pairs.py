# SPDX-License-Identifier: Apache-2.0
"""Where method reloc3r gets relative poses from: matches and an essential matrix, or a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch

from aceg_ros.camera import Camera
from aceg_ros.encoders.feature_map import FeatureMap
from aceg_ros.encoders.keypoints import Keypoints
from aceg_ros.geometry import pixel_rays
from aceg_ros.maps.posed_keyframes import PosedKeyframes
from aceg_ros.pose.epipolar import EpipolarConfig, PairMatches, PairPose, estimate_pair
from aceg_ros.pose.hub_points import closest_on_rays
from aceg_ros.pose.motion_averaging import RelativePoses
from aceg_ros.utils.maxima import column_values, row_maxima


@dataclass(frozen=True, kw_only=True)
class QueryImage:
    """What was extracted of an image: its keypoints, the feature map of the encoder, and the rectified image (H, W, 3)
    uint8 in the encoder's size with its camera."""

    keypoints: Keypoints
    features: FeatureMap
    image: np.ndarray
    camera: Camera


@dataclass(frozen=True, kw_only=True)
class EstimatedPairs:
    """Relative poses to K keyframes: their numbers (K,), and the poses.

    matches: of each pair; empty if the poses come from the published network.
    """

    keyframes: np.ndarray
    relative: RelativePoses
    matches: tuple[PairMatches, ...] = field(default=(), repr=False)

    @classmethod
    def estimated(cls, pairs: Iterable[PairMatches], config: EpipolarConfig, seed: int) -> EstimatedPairs:
        """Estimate each pair from its matches; those that agree with no essential matrix are left out."""
        found: list[tuple[PairMatches, PairPose]] = []
        for matches in pairs:
            pose = estimate_pair(matches, config, seed)
            if pose is not None and pose.log10_nfa < 0.0:
                found.append((replace(matches, own_log10_nfa=pose.log10_nfa), pose))
        return cls(keyframes=np.array([matches.keyframe for matches, _ in found], np.int64),
                   relative=relative_poses_of(found), matches=tuple(matches for matches, _ in found))

    def __len__(self) -> int:
        return len(self.keyframes)


class RelativePoseSource(Protocol):
    """Estimates relative poses of an image. has_matches: whether they come with the matches that agree with them."""

    has_matches: bool

    def estimate(self, query: QueryImage, keyframes: np.ndarray) -> EstimatedPairs:
        """Estimate the relative poses to keyframes (K,); those without one are left out."""


class MatchedPoses:
    """Relative poses from mutual nearest neighbours of descriptors, and the essential matrix that most agree with."""

    has_matches = True

    def __init__(self, keyframes: PosedKeyframes, *, config: EpipolarConfig | None = None, seed: int = 0):
        self._keyframes, self._config, self._seed = keyframes, config or EpipolarConfig(), seed

    def estimate(self, query: QueryImage, keyframes: np.ndarray) -> EstimatedPairs:
        """Match and estimate each pair; pairs whose matches agree with no essential matrix are left out."""
        return EstimatedPairs.estimated((self.match(query.keypoints, int(keyframe)) for keyframe in keyframes),
                                        self._config, self._seed)

    @torch.inference_mode()
    def match(self, query: Keypoints, keyframe: int) -> PairMatches:
        """Match the keypoints of an image and a keyframe: mutual nearest neighbours, the most similar first."""
        stored = self._keyframes.unit_descriptors(keyframe, query.descriptors.device)
        rows = columns = np.zeros(0, np.int64)
        if len(query) and len(stored):
            similarity = query.descriptors.to(stored.dtype) @ stored.T
            best, column = row_maxima(similarity)
            mutual = (best == column_values(similarity)[column]).nonzero()[:, 0]
            mutual = mutual[best[mutual].argsort(descending=True, stable=True)]        # as PROSAC draws them
            rows, columns = mutual.cpu().numpy(), column[mutual].cpu().numpy()
        return pair_matches(self._keyframes, keyframe, query, rows=rows, columns=columns)


def pair_matches(keyframes: PosedKeyframes, keyframe: int, query: Keypoints, *, rows: np.ndarray, columns: np.ndarray
                 ) -> PairMatches:
    """Collect the matches of keypoints of an image, rows (M,), with those of a keyframe, columns (M,)."""
    part = keyframes.keypoints_of(keyframe)
    return PairMatches(
        keyframe=keyframe, map_from_keyframe=keyframes.pose_array[keyframe], key_k=keyframes.matrix_k(keyframe),
        camera_k=query.camera.K, key_pixels=keyframes.pixel_array[part][columns],
        pixels=query.pixels[rows].astype(np.float64), keypoints=rows,
        key_depths_m=keyframes.depth_array[part][columns], size=(query.camera.width, query.camera.height))


def relative_poses_of(found: Sequence[tuple[PairMatches, PairPose]]) -> RelativePoses:
    """Collect relative poses, with the lengths of their baselines where measured depths tell them."""
    poses = np.array([pose.keyframe_from_camera for _, pose in found]).reshape(-1, 4, 4)
    return RelativePoses(
        map_from_keyframe=np.array([matches.map_from_keyframe for matches, _ in found]).reshape(-1, 4, 4),
        rotations=poses[:, :3, :3], directions=poses[:, :3, 3],
        sigma_rad=np.array([pose.sigma_rad for _, pose in found]),
        lengths_m=np.array([_measured_length(matches, pose) for matches, pose in found]))


MIN_DEPTHS = 8                       # inliers with measured depths that tell the length of a baseline
_MIN_SINE = 0.02                     # of the angle between two rays, which have no intersection below


def _measured_length(matches: PairMatches, pose: PairPose) -> float:
    """Return the length of the baseline from the measured depths of the inliers, NaN if there are too few.

    A keypoint's depth in units of the baseline follows from where its two rays meet.
    """
    known = pose.inliers & np.isfinite(matches.key_depths_m)
    rays = pixel_rays(matches.key_pixels[known], matches.key_k)
    others = pixel_rays(matches.pixels[known], matches.camera_k) @ pose.keyframe_from_camera[:3, :3].T
    in_baselines, _, sine = closest_on_rays(pose.keyframe_from_camera[:3, 3], rays, others)
    usable = (sine > _MIN_SINE) & (in_baselines > 0.0)
    if usable.sum() < MIN_DEPTHS:
        return float("nan")
    return float(np.median(matches.key_depths_m[known][usable] / in_baselines[usable]))

