# SPDX-License-Identifier: Apache-2.0
"""Tracks: keypoints of several images that match each other become one landmark, triangulated from all views.

Matches alone do not make tracks: a few wrong ones, or chains of neighbouring corners, join everything to one component.
So every keypoint is first triangulated with its own matches, and those that agree with the point form a track, where
most agree first. Then keypoints that were left out are attached, and each point is fitted to all its keypoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MIN_VIEWS = 3                       # images that must agree on a point
MIN_PARALLAX_RAD = np.radians(1.0)
SCALES = (16.0, 8.0, 4.0, 2.0, 1.0, 1.0, 0.5, 0.5)      # of the robust loss, in tolerances; a step each
BATCH = 20_000                      # keypoints that are triangulated at once, which bounds the memory
FAR_PX = 1e6                        # error of points behind a camera
MIN_DEPTH = 1e-6


@dataclass(frozen=True, kw_only=True)
class Observations:
    """N keypoints of V posed images.

    images: (N,) index of the image. pixels: (N, 2). poses: (V, 4, 4) map_from_camera. intrinsics: (V, 4) fx, fy, cx,
    cy.
    """

    images: np.ndarray
    pixels: np.ndarray
    poses: np.ndarray
    intrinsics: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """T points with the keypoints that see them.

    track: (N,) index of the point that each keypoint sees, -1 for none. points: (T, 3) in the map. errors_px: (N,)
    reprojection error of each keypoint, NaN without a track.
    """

    track: np.ndarray
    points: np.ndarray
    errors_px: np.ndarray


def build_tracks(observations: Observations, matches: np.ndarray, tolerance_px: float) -> Tracks:
    """Join matched keypoints to tracks and triangulate them.

    Args:
        observations: keypoints of posed images.
        matches: (M, 2) indices of keypoints of different images that match.
        tolerance_px: largest reprojection error of a keypoint of a track.

    Returns:
        Tracks with at least MIN_VIEWS images, no image twice, and enough parallax.
    """
    track = np.full(len(observations), -1)
    points = np.zeros((0, 3))
    if len(matches):
        track, points = _gather(observations, matches, tolerance_px)
        track = attach_keypoints(observations, matches, track, points, tolerance_px=tolerance_px)
    errors = np.full(len(observations), np.nan)
    rows = np.flatnonzero(track >= 0)
    if len(rows) == 0:
        return Tracks(track=track, points=points, errors_px=errors)
    fit = _triangulate(_Rays.of(observations, rows), track[rows], observations.images[rows], tolerance_px)
    members = rows[fit.kept]
    used, renumbered = np.unique(track[members], return_inverse=True)
    track = np.full(len(observations), -1)
    track[members], errors[members] = renumbered, fit.errors_px[fit.kept]
    return Tracks(track=track, points=fit.points[used], errors_px=errors)


def _gather(observations: Observations, matches: np.ndarray, tolerance_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Triangulate each keypoint with its matches, and let the points gather the keypoints that agree with them,
    those with the most keypoints first. Returns the track (N,) of each keypoint, -1 for none, and the points (T, 3)."""
    count = len(observations)
    both = np.concatenate([matches, matches[:, ::-1]])
    both = both[np.bincount(both[:, 0], minlength=count)[both[:, 0]] >= MIN_VIEWS - 1]
    both = both[np.argsort(both[:, 0], kind="stable")]
    own, first = np.unique(both[:, 0], return_index=True)
    track = np.full(count, -1)
    if len(own) == 0:
        return track, np.zeros((0, 3))
    parts = [(own[start:start + BATCH], both[first[start]:first[start + BATCH] if start + BATCH < len(own) else None])
             for start in range(0, len(own), BATCH)]
    fits = [_triangulate_with_matches(observations, some, matched, tolerance_px) for some, matched in parts]
    points = np.concatenate([fitted for fitted, _ in fits])
    members = [agreeing for _, lists in fits for agreeing in lists]
    free = [True] * count
    centres: list[int] = []
    for candidate in np.argsort([-len(some) for some in members], kind="stable"):
        gathered = [keypoint for keypoint in members[candidate].tolist() if free[keypoint]]
        if len(gathered) < MIN_VIEWS:
            continue
        track[gathered] = len(centres)
        centres.append(int(candidate))
        for keypoint in gathered:
            free[keypoint] = False
    return track, points[centres]


def _triangulate_with_matches(observations: Observations, own: np.ndarray, matches: np.ndarray, tolerance_px: float
                              ) -> tuple[np.ndarray, list[np.ndarray]]:
    """Triangulate keypoints `own` (K,), ascending, each with its matches (M, 2), own ones first.

    Returns:
        The points (K, 3), and for each the keypoints that agree with it; none if it is not to be kept.
    """
    centre = np.concatenate([np.arange(len(own)), np.searchsorted(own, matches[:, 0])])
    member = np.concatenate([own, matches[:, 1]])
    fit = _triangulate(_Rays.of(observations, member), centre, observations.images[member], tolerance_px)
    centre, member = centre[fit.kept], member[fit.kept]
    order = np.argsort(centre, kind="stable")
    return fit.points, np.split(member[order], np.cumsum(np.bincount(centre, minlength=len(own)))[:-1])


def attach_keypoints(observations: Observations, matches: np.ndarray, track: np.ndarray, points: np.ndarray, *,
                     tolerance_px: float) -> np.ndarray:
    """Attach keypoints without a track to those of their matches that they agree with. Returns the new track (N,)."""
    both = np.concatenate([matches, matches[:, ::-1]])
    both = both[(track[both[:, 0]] < 0) & (track[both[:, 1]] >= 0)]
    if len(both) == 0:
        return track
    keypoints, wanted = both[:, 0], track[both[:, 1]]
    error, _ = _Rays.of(observations, keypoints).errors(points[wanted])
    order = np.lexsort((error, keypoints))
    order = order[np.r_[True, np.diff(keypoints[order]) > 0] & (error[order] < tolerance_px)]
    result = track.copy()
    result[keypoints[order]] = wanted[order]
    return result


class _Fit(NamedTuple):
    """points (C, 3) of components; kept (N,), which rays agree with a point that may be kept; errors_px (N,)."""

    points: np.ndarray
    kept: np.ndarray
    errors_px: np.ndarray


def reprojection_errors(observations: Observations, rows: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the reprojection errors (M,) in pixels of points (M, 3), each in one observation, rows (M,)."""
    return _Rays.of(observations, rows).errors(points)[0]


def _triangulate(view: _Rays, component: np.ndarray, images: np.ndarray, tolerance_px: float) -> _Fit:
    """Fit the points of all components at once.

    Iteratively reweighted midpoints of rays, with weights that make distances from rays reprojection errors, on a
    Geman-McClure loss of decreasing scale. component (N,): of each ray. images (N,): of each.
    """
    count = int(component.max()) + 1
    points = view.midpoints(component, np.ones(len(component)), count)
    for scale in SCALES:
        error, depth = view.errors(points[component])
        robust = 1.0 / (1.0 + np.square(error / (scale * tolerance_px))) ** 2
        weights = robust * np.square(view.focal / np.maximum(depth, MIN_DEPTH)) + 1e-12
        points = view.midpoints(component, weights, count)
    error, _ = view.errors(points[component])
    good = error < tolerance_px
    good &= best_of_image(component, images, np.where(good, error, FAR_PX))
    views = np.bincount(component[good], minlength=count)
    complete = (views >= MIN_VIEWS) & (_largest_parallax(view, points, component, good) > MIN_PARALLAX_RAD)
    return _Fit(points, good & complete[component], error)


def best_of_image(landmarks: np.ndarray, images: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Return which observations (N,) have the smallest error of those of their landmark in their image."""
    order = np.lexsort((errors, images, landmarks))
    first = np.ones(len(order), bool)
    first[1:] = (landmarks[order][1:] != landmarks[order][:-1]) | (images[order][1:] != images[order][:-1])
    result = np.zeros(len(order), bool)
    result[order[first]] = True
    return result


def _largest_parallax(view: _Rays, points: np.ndarray, component: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Return about the largest angle (C,) between two rays of each component: twice the largest from their mean."""
    directions = points[component] - view.centres
    directions = directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    mean = np.stack([np.bincount(component[good], directions[good, axis], len(points)) for axis in range(3)], 1)
    mean = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
    angle = np.arccos(np.clip((directions * mean[component]).sum(1), -1.0, 1.0))
    largest = np.zeros(len(points))
    np.maximum.at(largest, component[good], angle[good])
    return 2.0 * largest


@dataclass(frozen=True, kw_only=True)
class _Rays:
    """N rays of keypoints: centres (N, 3) and unit directions (N, 3) in the map; rotations (N, 3, 3) camera_from_map,
    pixels (N, 2), intrinsics (N, 4), focal (N,)."""

    centres: np.ndarray
    directions: np.ndarray
    rotations: np.ndarray
    pixels: np.ndarray
    intrinsics: np.ndarray
    focal: np.ndarray

    @classmethod
    def of(cls, observations: Observations, rows: np.ndarray) -> _Rays:
        images = observations.images[rows]
        pose, intrinsics = observations.poses[images], observations.intrinsics[images]
        pixels = observations.pixels[rows]
        local = np.column_stack([(pixels - intrinsics[:, 2:]) / intrinsics[:, :2], np.ones(len(rows))])
        directions = np.einsum("nij,nj->ni", pose[:, :3, :3], local)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        return cls(centres=pose[:, :3, 3], directions=directions, rotations=pose[:, :3, :3].transpose(0, 2, 1),
                   pixels=pixels, intrinsics=intrinsics, focal=intrinsics[:, :2].mean(1))

    def midpoints(self, component: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
        """Return the points (count, 3) nearest to the weighted rays of each component."""
        across = np.eye(3) - self.directions[:, :, None] * self.directions[:, None]
        normal, right = np.empty((count, 3, 3)), np.empty((count, 3))
        offset = np.einsum("nij,nj->ni", across, self.centres)
        for i in range(3):
            right[:, i] = np.bincount(component, weights * offset[:, i], count)
            for j in range(3):
                normal[:, i, j] = np.bincount(component, weights * across[:, i, j], count)
        normal += 1e-9 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(3) + 1e-12 * np.eye(3)
        return np.linalg.solve(normal, right[..., None])[..., 0]

    def errors(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the reprojection errors (N,) in pixels of the points (N, 3) of all rays, and their depths (N,)."""
        local = np.einsum("nij,nj->ni", self.rotations, points - self.centres)
        depth = local[:, 2]
        safe = np.where(depth > MIN_DEPTH, depth, 1.0)
        projected = local[:, :2] / safe[:, None] * self.intrinsics[:, :2] + self.intrinsics[:, 2:]
        return np.where(depth > MIN_DEPTH, np.linalg.norm(projected - self.pixels, axis=1), FAR_PX), depth
