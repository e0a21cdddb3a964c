# SPDX-License-Identifier: Apache-2.0
"""Points from the matches of one image with several keyframes: the image is the hub that links their keypoints.

A keypoint of the image that matches in two keyframes with known poses has a point where these see it, without any
landmark in the map. It knows nothing of the pose of the image, so that the pose can be estimated and verified with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aceg_ros.geometry import pixel_rays
from aceg_ros.pose.epipolar import PairMatches

MAX_ERROR_PX = 3.0              # reprojection error in each of both keyframes
MIN_PARALLAX_RAD = 0.015        # angle between the two rays
BEHIND_PX = 1e3                 # the error of a point behind the camera


@dataclass(frozen=True, kw_only=True)
class HubPoints:
    """pixels (N, 2) of the image, points (N, 3) in the map, and sigma_px (N,): how far the uncertainty of each point
    moves its projection, if keypoints are accurate to a pixel and the image is seen from about as far."""

    pixels: np.ndarray
    points: np.ndarray
    sigma_px: np.ndarray

    def __len__(self) -> int:
        return len(self.points)

    def best(self, count: int) -> HubPoints:
        """Return the `count` most certain points."""
        chosen = np.argsort(self.sigma_px, kind="stable")[:count]
        return HubPoints(pixels=self.pixels[chosen], points=self.points[chosen], sigma_px=self.sigma_px[chosen])

    def errors_px(self, map_from_camera: np.ndarray, camera_k: np.ndarray) -> np.ndarray:
        """Return the reprojection errors (2 N,) in x, then in y, divided by what is expected for each point; those
        behind the camera are BEHIND_PX."""
        local = (self.points - map_from_camera[:3, 3]) @ map_from_camera[:3, :3]
        in_front = local[:, 2] > 1e-9
        projected = local[:, :2] / np.where(in_front, local[:, 2], 1.0)[:, None] * np.diag(camera_k)[:2]
        errors = projected + camera_k[:2, 2] - self.pixels
        return np.where(in_front, (errors / np.sqrt(1.0 + np.square(self.sigma_px))[:, None]).T, BEHIND_PX).ravel()


def find_hub_points(pairs: Sequence[PairMatches]) -> HubPoints:
    """Triangulate the keypoints that match in two keyframes or more, each by two; measured depths give points too.

    Of several that see it, the two with the largest angle between their rays give the point.
    """
    rays = [pixel_rays(pair.key_pixels, pair.key_k) @ pair.map_from_keyframe[:3, :3].T for pair in pairs]
    found_pixels, found_points, found_sigma, found_keypoints = [], [], [], []
    for a in range(len(pairs)):
        for b in range(a + 1, len(pairs)):
            shared, left, right = np.intersect1d(pairs[a].keypoints, pairs[b].keypoints, assume_unique=True,
                                                 return_indices=True)
            if len(shared) == 0:
                continue
            points, sine = _midpoints(pairs[a].map_from_keyframe[:3, 3], rays[a][left],
                                      pairs[b].map_from_keyframe[:3, 3], rays[b][right])
            error = np.maximum(_reprojection_px(pairs[a], points, left), _reprojection_px(pairs[b], points, right))
            good = (error < MAX_ERROR_PX) & (sine > MIN_PARALLAX_RAD)
            found_pixels.append(pairs[a].pixels[left][good])
            found_points.append(points[good])
            # Depth is uncertain by a pixel over the parallax; seen from the side by about as much, it shows.
            found_sigma.append(np.minimum(1.0 / (sine[good] * 10.0), 10.0))
            found_keypoints.append(shared[good])
    for pair, ray in zip(pairs, rays, strict=True):
        known = np.isfinite(pair.key_depths_m)                          # measured depths are better than any parallax
        found_pixels.append(pair.pixels[known])
        found_points.append(pair.map_from_keyframe[:3, 3] + ray[known] * pair.key_depths_m[known][:, None])
        found_sigma.append(np.full(int(known.sum()), 0.5))
        found_keypoints.append(pair.keypoints[known])
    if not found_points:
        return HubPoints(pixels=np.zeros((0, 2)), points=np.zeros((0, 3)), sigma_px=np.zeros(0))
    keypoints, sigma = np.concatenate(found_keypoints), np.concatenate(found_sigma)
    order = np.lexsort((sigma, keypoints))
    first = order[np.unique(keypoints[order], return_index=True)[1]]
    return HubPoints(pixels=np.concatenate(found_pixels)[first], points=np.concatenate(found_points)[first],
                     sigma_px=sigma[first])


def _midpoints(centre_a: np.ndarray, rays_a: np.ndarray, centre_b: np.ndarray, rays_b: np.ndarray
               ) -> tuple[np.ndarray, np.ndarray]:
    """Return the midpoints (N, 3) of the shortest lines between rays, and the sine of the angle between these."""
    along_a, along_b, sine = closest_on_rays(centre_b - centre_a, rays_a, rays_b)
    return 0.5 * (centre_a + along_a[:, None] * rays_a + centre_b + along_b[:, None] * rays_b), sine


def closest_on_rays(baseline: np.ndarray, rays_a: np.ndarray, rays_b: np.ndarray
                    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find where rays (N, 3) of two cameras come the closest to each other.

    baseline: (3,) from the first camera to the second. Returns how far along its ray that is in each, (N,) in lengths
    of the rays, and the sine (N,) of the angle between the rays.
    """
    normal = np.cross(rays_a, rays_b)
    squared = np.maximum(np.square(normal).sum(1), 1e-18)
    along_a, along_b = ((np.cross(baseline, rays) * normal).sum(1) / squared for rays in (rays_b, rays_a))
    return along_a, along_b, np.sqrt(squared) / (np.linalg.norm(rays_a, axis=1) * np.linalg.norm(rays_b, axis=1))


def _reprojection_px(pair: PairMatches, points: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return the errors (N,) of points in a keyframe, infinite behind it."""
    local = (points - pair.map_from_keyframe[:3, 3]) @ pair.map_from_keyframe[:3, :3]
    depth = np.where(local[:, 2] > 1e-9, local[:, 2], np.nan)
    projected = (local[:, :2] / depth[:, None]) * np.diag(pair.key_k)[:2] + pair.key_k[:2, 2]
    return np.nan_to_num(np.linalg.norm(projected - pair.key_pixels[index], axis=1), nan=np.inf)
