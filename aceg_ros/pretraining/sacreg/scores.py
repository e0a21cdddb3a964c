# SPDX-License-Identifier: Apache-2.0
"""Scores of a cross-image regressor on held-out scenes, beside matching alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from aceg_ros.camera import Camera, project_map_points
from aceg_ros.encoders.keypoints import spread_over_image
from aceg_ros.geometry import pose_error
from aceg_ros.networks.cross_image_fusion import regress_points
from aceg_ros.networks.cross_image_regressor import CrossImageRegressor, KeyframeTokens
from aceg_ros.pose.correspondences import Correspondences
from aceg_ros.pose.verify import estimate_verified_pose
from aceg_ros.pretraining.sacreg.samples import (
    BLOCK_PX,
    CrossImageSample,
    QueryKeypoints,
    depth_of,
    landmarks_of,
    make_sample,
    nearest_keyframes,
)
from aceg_ros.pretraining.sacreg.scenes import KEYFRAME, QUERY, CrossImageScene

QUERIES = 6                         # images of a scene
GOOD_PX, GOOD_DEPTHS, GOOD_DEG = 5.0, 0.03, 3.0     # of a keypoint; of a pose, in median depths of landmarks


def evaluate(net: CrossImageRegressor, scenes: list[CrossImageScene], device: str, *, late: bool = False
             ) -> dict[str, float]:
    """Compute, by early fusion of the nearest keyframes (late: by late fusion): the share of keypoints with known
    points within 5 px, of all and of the confident ones, the same for the landmark with the most similar descriptor,
    and the share of images with a good pose, from the confident keypoints and from the most similar landmarks."""
    rows = [row for scene in scenes for row in _rows(net, scene, device, late=late)]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}


def held_out_queries(scene: CrossImageScene) -> np.ndarray:
    """Return the query images of a scene, those of a later session if there is one."""
    images = scene.of_role(QUERY) if len(scene.of_role(QUERY)) else scene.of_role(KEYFRAME)
    return images[np.linspace(0, len(images) - 1, min(QUERIES, len(images))).astype(int)]


def evaluation_sample(net: CrossImageRegressor, scene: CrossImageScene, query: int, keyframes: int
                      ) -> CrossImageSample:
    """Make the sample of a query image and the keyframes nearest to it, not augmented."""
    rows = scene.keypoints_of(query)
    rows = rows[spread_over_image(scene.pixels[rows], net.config.query_tokens, BLOCK_PX)]
    near = nearest_keyframes(scene, query)[:keyframes]
    rng = np.random.default_rng(query)
    tokens = [rng.permutation(landmarks_of(scene, int(keyframe)))[:net.config.tokens] for keyframe in near]
    return make_sample(scene, [rows], [each for each in tokens if len(each)], net.config)


def _rows(net: CrossImageRegressor, scene: CrossImageScene, device: str, *, late: bool) -> list[dict[str, float]]:
    scale = net.config.canonical_depth / depth_of(scene)
    rows = []
    for query in map(int, held_out_queries(scene)):
        sample = evaluation_sample(net, scene, query, net.config.late if late else net.config.early)
        with torch.inference_mode():
            tokens = net.mix(sample.descriptors.to(device), sample.positions.to(device), sample.points.to(device),
                             sample.valid.to(device))
        groups = KeyframeTokens(tokens, sample.points.to(device), sample.valid.to(device))
        groups = KeyframeTokens(*(each[:, None] if late else each[None] for each in groups))
        keypoints = sample.queries[0]
        found = regress_points(net, keypoints.descriptors.to(device), keypoints.positions.to(device), groups)
        confident = found.most_confident(net.config.confident_share).cpu()
        known = torch.isfinite(keypoints.truth).all(1)
        view = _View(scene, query, scale)
        error, nearest = view.error_px(keypoints, found.points.cpu()), nearest_points(sample)
        nearest_error = view.error_px(keypoints, nearest)
        rows.append({"within_5px": _share(error < GOOD_PX, known),
                     "confident_within_5px": _share(error < GOOD_PX, known & confident),
                     "nearest_within_5px": _share(nearest_error < GOOD_PX, known),
                     "poses": view.is_good(keypoints, found.points.cpu(), confident),
                     "nearest_poses": view.is_good(keypoints, nearest, None)})
    return rows


def _share(good: Tensor, of: Tensor) -> float:
    return float(good[of].float().mean()) if bool(of.any()) else 0.0


def nearest_points(sample: CrossImageSample) -> Tensor:
    """Return the landmark (N, 3) with the most similar descriptor for each keypoint of the query."""
    keys, points = sample.descriptors[sample.valid], sample.points[sample.valid]
    return points[(sample.queries[0].descriptors @ keys.T).argmax(1)]


class _View:
    """The camera of a query image, in the canonical scale."""

    def __init__(self, scene: CrossImageScene, query: int, scale: float):
        fx, fy, cx, cy = scene.intrinsics[query].tolist()
        width, height = (int(side) for side in scene.sizes[query])
        self._camera = Camera(width=width, height=height, fx=fx, fy=fy, cx=cx, cy=cy)
        self._pose = scene.poses[query].astype(np.float64)
        self._pose[:3, 3] *= scale
        self._depth = scale * depth_of(scene)

    def error_px(self, keypoints: QueryKeypoints, points: Tensor) -> Tensor:
        """Return the distances (N,) of projected points (N, 3) from the pixels of their keypoints."""
        pixels, depth = project_map_points(points.double().numpy(), self._camera, self._pose)
        error = np.linalg.norm(pixels - keypoints.pixels.numpy(), axis=1)
        return torch.from_numpy(np.where(depth > 0, error, np.inf))

    def is_good(self, keypoints: QueryKeypoints, points: Tensor, mask: Tensor | None) -> float:
        """Return 1.0 if the verified pose from points (N, 3) of the keypoints is near the true one, else 0.0."""
        estimate = estimate_verified_pose(Correspondences(
            pixels=keypoints.pixels.numpy().astype(np.float64), points=points.double().numpy(), camera=self._camera,
            mask=None if mask is None else mask.numpy()))
        if estimate.map_from_camera is None:
            return 0.0
        distance, angle = pose_error(estimate.map_from_camera, self._pose)
        return float(distance < GOOD_DEPTHS * self._depth and angle < GOOD_DEG)
