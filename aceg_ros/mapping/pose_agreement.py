# SPDX-License-Identifier: Apache-2.0
"""Checks that images and poses agree, on a few pairs of images, before minutes are spent on mapping.

Pairs and their matches are found without the poses. By the poses, a point of the first image must be on an arc in the
second one: the part of its epipolar line from the point at infinity towards the epipole. The distance of matches from
their arcs, relative to their motion between the images, is below 0.05 for correct poses and around 1 for poses of
another convention. If it is small under another convention, the error message names that convention.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from aceg_ros.errors import UserError
from aceg_ros.geometry import invert
from aceg_ros.mapping.augmentation import PreparedFrame
from aceg_ros.mapping.image_pairs import ImagePair, PairFinder
from aceg_ros.mapping.pose_conventions import Convention, conventions, orders, turned_camera
from aceg_ros.mapping.pose_scale import depths_by_poses, scale_hint, scale_problem

MIN_PAIRS = 3                   # needed to compare conventions
MIN_PAIRS_AT_ALL = 5            # needed to reject poses under all conventions, or to estimate a rotation of the camera
CONTRADICTION = 0.12            # median disagreement of the pairs above which other conventions are tried
OTHER_ORDER = 0.3               # ... above which other orders of the poses are tried
NO_AGREEMENT = 0.4              # ... above which poses are rejected even if no convention agrees
PAIR_CONTRADICTION = 0.25       # disagreement above which a pair contradicts the poses
AGREEMENT = 0.15                # largest median disagreement under a convention that agrees
MIN_RATIO = 3.0                 # smallest ratio of the disagreement as read to that under the convention
SHARE_OF_PAIRS = 2 / 3          # of the pairs that must agree better under a convention
CONTRADICTING_SHARE = 0.55      # of the pairs that must contradict poses that are rejected under all conventions
MAX_PARALLAX_RAD = np.radians(45.0)
MIN_TURN_RAD = np.radians(2.0)  # smallest rotation of a pair whose axis is reliable


@dataclass(frozen=True, kw_only=True)
class PoseAgreement:
    """The agreement of poses with pairs of images. disagreement (P,): of each pair. problem: a sentence if the poses
    must be wrong, else None."""

    pairs: list[ImagePair]
    disagreement: np.ndarray
    problem: str | None = None


def check_poses(frames: Sequence[PreparedFrame], measured_depths_m: Sequence[float | None]) -> str | None:
    """Check the poses of mapping images against matches of a few pairs of images. Takes about a second.

    Args:
        frames: mapping frames in the order in which they were taken.
        measured_depths_m: median measured depth of each image, None if it has none.

    Returns:
        A warning if the poses are implausible, or None.

    Raises:
        UserError: the poses are wrong; the message names the convention that agrees with the images, if there is one.
    """
    poses = np.stack([frame.map_from_camera for frame in frames])
    agreement = compare(PairFinder(frames).find(), poses)
    problem = agreement.problem
    if problem is None:
        agreeing = [pair for pair, value in zip(agreement.pairs, agreement.disagreement, strict=True)
                    if value < CONTRADICTION]
        depths = depths_by_poses(agreeing, poses)
        problem = scale_problem(depths, measured_depths_m)
    if problem is not None:
        raise UserError(problem)
    return scale_hint(depths, poses[:, :3, 3])


def compare(pairs: Sequence[ImagePair], poses: np.ndarray) -> PoseAgreement:
    """Compare the poses (F, 4, 4) of all images with the pairs."""
    pairs = list(pairs)
    as_read = disagreements(pairs, poses)
    problem = None
    if len(pairs) >= MIN_PAIRS and np.median(as_read) > CONTRADICTION:
        problem = _problem(pairs, poses, as_read)
    return PoseAgreement(pairs=pairs, disagreement=as_read, problem=problem)


def disagreements(pairs: Sequence[ImagePair], poses: np.ndarray) -> np.ndarray:
    """Return, for each pair, the median distance of its matches from their arcs, relative to their median motion."""
    return np.array([np.median(_distance_from_arc(pair, invert(poses[pair.b]) @ poses[pair.a]))
                     / np.median(pair.motion_rad) for pair in pairs])


def _problem(pairs: list[ImagePair], poses: np.ndarray, as_read: np.ndarray) -> str | None:
    middle = float(np.median(as_read))
    contradicting = int((as_read > PAIR_CONTRADICTION).sum())
    found = f"The images and the poses do not agree ({contradicting} of {len(pairs)} pairs of images contradict them)"
    best = _best(conventions(), pairs, poses, as_read) or _best(_turned_cameras(pairs, poses), pairs, poses, as_read)
    if best is None and middle > OTHER_ORDER and len(pairs) >= MIN_PAIRS_AT_ALL:
        best = _best(orders(len(poses)), pairs, poses, as_read)
    if best is not None:
        return f"{found}: {best.advice}."
    if middle > NO_AGREEMENT and len(pairs) >= MIN_PAIRS_AT_ALL and contradicting >= CONTRADICTING_SHARE * len(pairs):
        return (f"{found}, under no known convention either: check that each image has its own pose (same order, same"
                " names, same clock), that poses are camera-to-world with x right, y down, z forward, and that the"
                " focal length is right.")
    return None


def _best(candidates: Iterable[Convention], pairs: list[ImagePair], poses: np.ndarray,
          as_read: np.ndarray) -> Convention | None:
    """Return the convention that agrees best, if it agrees well and much better than the poses as read, else None."""
    scored = [(float(np.median(values)), number, candidate, values) for number, (candidate, values) in enumerate(
        (candidate, disagreements(pairs, candidate.convert(poses))) for candidate in candidates)]
    if not scored:
        return None
    middle, _, best, values = min(scored)
    better = (values < as_read / 2.0).mean() >= SHARE_OF_PAIRS
    agrees = middle < AGREEMENT and middle * MIN_RATIO < np.median(as_read)
    return best if agrees and better else None


def _turned_cameras(pairs: list[ImagePair], poses: np.ndarray) -> list[Convention]:
    """Estimate the constant rotation between posed frame and camera from the rotations of pairs, as a convention.

    Returns an empty list if too few pairs rotate enough.
    """
    seen = np.stack([Rotation.from_matrix(pair.rotation).as_rotvec() for pair in pairs])
    told = np.stack([Rotation.from_matrix(poses[pair.b, :3, :3].T @ poses[pair.a, :3, :3]).as_rotvec()
                     for pair in pairs])
    turning = np.minimum(np.linalg.norm(seen, axis=1), np.linalg.norm(told, axis=1)) > MIN_TURN_RAD
    if turning.sum() < MIN_PAIRS_AT_ALL:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)        # ambiguous if all rotate about one axis; the score decides
        camera_from_frame, _ = Rotation.align_vectors(seen[turning], told[turning])
    return [turned_camera(camera_from_frame.as_matrix())]


def _distance_from_arc(pair: ImagePair, b_from_a: np.ndarray) -> np.ndarray:
    """Return the angles (N,) between the matches in b and their arcs, which extend from the direction of the point at
    infinity towards camera a, up to MAX_PARALLAX_RAD."""
    far = pair.rays_a @ b_from_a[:3, :3].T
    baseline = np.linalg.norm(b_from_a[:3, 3])
    if baseline < 1e-9:
        return _angle(far, pair.rays_b)
    direction = np.broadcast_to(b_from_a[:3, 3] / baseline, far.shape)
    normal = np.cross(far, direction)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    sideways = np.cross(normal, far)
    parallax = np.minimum(_angle(far, direction), MAX_PARALLAX_RAD)[:, None]
    near = np.cos(parallax) * far + np.sin(parallax) * sideways
    between = (_dot(sideways, pair.rays_b) > 0) & (_dot(np.cross(near, normal), pair.rays_b) > 0)
    from_plane = np.arcsin(np.clip(np.abs(_dot(normal, pair.rays_b)), 0.0, 1.0))
    return np.where(between, from_plane, np.minimum(_angle(far, pair.rays_b), _angle(near, pair.rays_b)))


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1)


def _angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.arccos(np.clip(_dot(a, b), -1.0, 1.0))
