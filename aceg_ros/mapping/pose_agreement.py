"""Whether images and poses agree: asked of a few pairs of images before minutes are spent on mapping.

The pairs are found in the images alone. Where a point of the first image can be in the second is an arc, by the poses:
from where it would be at infinity towards the other camera (a part of the epipolar line). How far the
matches are from their arcs, relative to how far they move from image to image, is below 0.05 for good poses, and
around 1 for poses that mean something else. If it is low under another convention, that is the one to name.
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

MIN_PAIRS = 3                   # that contradict the poses before another convention is named
MIN_PAIRS_AT_ALL = 5            # ... before it is said that none agrees
CONTRADICTION = 0.12            # median disagreement of the pairs, from which on conventions are compared
OTHER_ORDER = 0.3               # ... from which on other orders are: poses may come a little late
NO_AGREEMENT = 0.5              # ... from which on poses are rejected although no convention agrees
PAIR_CONTRADICTION = 0.25       # of one pair
AGREEMENT = 0.15                # median disagreement under a convention that agrees, at most
MIN_RATIO = 3.0                 # of the disagreement as read and under the convention
SHARE_OF_PAIRS = 2 / 3          # that have to say the same
MAX_PARALLAX_RAD = np.radians(45.0)
MIN_TURN_RAD = np.radians(2.0)  # of a pair, to tell the direction of its axis


@dataclass(frozen=True, kw_only=True)
class PoseAgreement:
    """What a few pairs of images say of the poses. disagreement (P,): of each pair; problem: a sentence if the poses
    cannot be right, else None."""

    pairs: list[ImagePair]
    disagreement: np.ndarray
    problem: str | None = None


def check_poses(frames: Sequence[PreparedFrame], measured_depths_m: Sequence[float | None]) -> str | None:
    """Compare the poses of mapping images with what a few pairs of them show. Takes a second, and draws no random
    numbers.

    Args:
        frames: in the order in which they were taken.
        measured_depths_m: the median measured depth of each image, None if it has none.

    Returns:
        A sentence of what is unlikely about the poses, or None.

    Raises:
        UserError: the poses cannot be right; it says which convention would agree.
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
    """What the pairs say of the poses (F, 4, 4) of all images."""
    pairs = list(pairs)
    as_read = disagreements(pairs, poses)
    problem = None
    if len(pairs) >= MIN_PAIRS and np.median(as_read) > CONTRADICTION:
        problem = _problem(pairs, poses, as_read)
    return PoseAgreement(pairs=pairs, disagreement=as_read, problem=problem)


def disagreements(pairs: Sequence[ImagePair], poses: np.ndarray) -> np.ndarray:
    """For each pair, the median distance of its matches from their arcs by the poses, relative to their motion."""
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
    if middle > NO_AGREEMENT and len(pairs) >= MIN_PAIRS_AT_ALL and contradicting >= SHARE_OF_PAIRS * len(pairs):
        return (f"{found}, under no known convention either: check that each image has its own pose (same order, same"
                " names, same clock), that poses are camera-to-world with x right, y down, z forward, and that the"
                " focal length is right.")
    return None


def _best(candidates: Iterable[Convention], pairs: list[ImagePair], poses: np.ndarray,
          as_read: np.ndarray) -> Convention | None:
    """The convention that agrees best, if one agrees that well and that much better than the poses as read."""
    scored = [(float(np.median(values)), number, candidate, values) for number, (candidate, values) in enumerate(
        (candidate, disagreements(pairs, candidate.convert(poses))) for candidate in candidates)]
    if not scored:
        return None
    middle, _, best, values = min(scored)
    better = (values < as_read / 2.0).mean() >= SHARE_OF_PAIRS
    agrees = middle < AGREEMENT and middle * MIN_RATIO < np.median(as_read)
    return best if agrees and better else None


def _turned_cameras(pairs: list[ImagePair], poses: np.ndarray) -> list[Convention]:
    """The constant rotation between the frame of the poses and the camera that explains best how both turn."""
    seen = np.stack([Rotation.from_matrix(pair.rotation).as_rotvec() for pair in pairs])
    told = np.stack([Rotation.from_matrix(poses[pair.b, :3, :3].T @ poses[pair.a, :3, :3]).as_rotvec()
                     for pair in pairs])
    turning = np.minimum(np.linalg.norm(seen, axis=1), np.linalg.norm(told, axis=1)) > MIN_TURN_RAD
    if turning.sum() < MIN_PAIRS_AT_ALL:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)        # of turns about one axis: the score decides
        camera_from_frame, _ = Rotation.align_vectors(seen[turning], told[turning])
    return [turned_camera(camera_from_frame.as_matrix())]


def _distance_from_arc(pair: ImagePair, b_from_a: np.ndarray) -> np.ndarray:
    """Angles (N,) between the matches in b and the arcs on which they can be: from the direction of a point at
    infinity towards that of camera a, up to the largest parallax under which a point is recognised."""
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
