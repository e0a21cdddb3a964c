# SPDX-License-Identifier: Apache-2.0
"""Builds the keyframe database of a map: keypoints of all images, matches of covisible pairs, tracks, keyframes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aceg_ros.encoders.base import Encoder
from aceg_ros.mapping.augmentation import PreparedFrame
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.matching import ExtractedFeatures, extract_mapping_keypoints, measured_depths
from aceg_ros.mapping.pair_matching import MIN_TOLERANCE_PX, covisible_pairs, estimate_tolerance_px, match_pairs
from aceg_ros.mapping.pose_refinement import RefinementProblem, refine_poses
from aceg_ros.mapping.tracks import Observations, Tracks, build_tracks
from aceg_ros.mapping.viewpoints import choose_viewpoints, median_depth
from aceg_ros.maps.keyframe_database import KeyframeDatabase, quantised
from aceg_ros.maps.retrieval import assign_words

_LOG = logging.getLogger("aceg_ros")
EXTRACTION_SHARE, MATCHING_SHARE = 0.4, 0.85        # of the time that is left when they begin, at most
ENOUGH_OBSERVATIONS = 3             # of a landmark; a keyframe with more of them adds nothing
VOCABULARY_SAMPLE, VOCABULARY_ROUNDS = 20_000, 4
REFINEMENT_S, REFINEMENT_OBSERVATIONS = 10.0, 80_000
FINAL_TOLERANCE_PX = 8.0            # of observations, however noisy the poses still are
TOLERANCE_SIGMAS = 2.7              # as TOLERANCE_NOISES, for standard deviations instead of medians
DEPTH_WINDOW, MAX_DEPTH_STEP = 2, 0.05              # at edges (within pixels) measured depths are of either side


@dataclass(frozen=True, kw_only=True)
class DatabaseOptions:
    """images: largest number of images used of a place of a few rooms; most_images: of a larger one. keypoints: of
    each. covisible_images: number of images that each is matched with. observations: largest number in the database, of
    `images`; of more images, as many more. words: of the vocabulary. refine_poses: whether the given poses are refined
    together with the landmarks, if that makes them better."""

    images: int = 400
    most_images: int = 1600
    keypoints: int = 1800
    covisible_images: int = 8
    observations: int = 170_000
    words: int = 4096
    refine_poses: bool = True
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class BuiltDatabase:
    """The database; colours (L, 3) uint8 of its landmarks; encoded: images that were used; tracked_share: share of
    their keypoints that have a landmark; tolerance_px: largest reprojection error of an observation; error_px: the
    median.
    """

    database: KeyframeDatabase
    colours: np.ndarray
    encoded: int
    tracked_share: float
    tolerance_px: float
    error_px: float


def build_database(frames: Sequence[PreparedFrame], encoder: Encoder, options: DatabaseOptions, budget: MappingBudget,
                   *, use_depth: bool = False) -> BuiltDatabase | None:
    """Build the database from posed images within the budget. Returns None if no landmark was found.

    use_depth: landmarks are the keypoints with measured depths, each with one observation, instead of triangulated.
    """
    used, images = extract_some(frames, encoder, options, budget)
    if len(images) == 0:
        return None
    observations = gather_observations(images)
    if use_depth:
        tracks, tolerance_px = measured_tracks(used, images, observations), 0.0
    else:
        pairs = covisible_pairs(images, options.covisible_images, encoder.stride)
        tolerance_px = estimate_tolerance_px(images, pairs, options.seed)
        matches = match_pairs(images, pairs, tolerance_px, seed=options.seed,
                              budget=budget.phase("matching keypoints", share=MATCHING_SHARE))
        tracks = build_tracks(observations, matches, tolerance_px)
        if options.refine_poses:
            observations, tracks, tolerance_px = _refine_poses(
                observations, tracks, matches, tolerance_px=tolerance_px, seed=options.seed,
                budget=budget.phase("refining poses", at_most_s=REFINEMENT_S))
        if tolerance_px > FINAL_TOLERANCE_PX:
            tolerance_px = FINAL_TOLERANCE_PX
            tracks = build_tracks(observations, matches, tolerance_px)
    if len(tracks.points) == 0:
        return None
    more = max(1.0, len(images) / options.images)
    chosen = select_observations(observations.images, tracks.track, round(more * options.observations))
    landmarks, landmark_of = np.unique(tracks.track[chosen], return_inverse=True)
    keyframes, keyframe_of = np.unique(observations.images[chosen], return_inverse=True)
    descriptors = torch.cat([image.features.half() for image in images])[torch.from_numpy(chosen)].float().cpu()
    vocabulary = train_vocabulary(descriptors, options.words, options.seed)
    sizes = np.array([[used[image].camera.width, used[image].camera.height] for image in keyframes])
    database = KeyframeDatabase.from_arrays(
        poses=observations.poses[keyframes], intrinsics=observations.intrinsics[keyframes], sizes=sizes,
        first=np.searchsorted(keyframe_of, np.arange(len(keyframes) + 1)), landmarks=landmark_of,
        pixels=observations.pixels[chosen], points=tracks.points[landmarks], descriptors=quantised(descriptors),
        words=assign_words(descriptors, vocabulary), vocabulary=quantised(vocabulary))
    return BuiltDatabase(database=database, colours=landmark_colours(used, observations, chosen, landmark_of),
                         encoded=len(images), tracked_share=float((tracks.track >= 0).mean()),
                         tolerance_px=tolerance_px, error_px=float(np.median(tracks.errors_px[chosen])))


def extract_images(frames: Sequence[PreparedFrame], order: np.ndarray, encoder: Encoder, *, keypoints: int,
                   budget: MappingBudget) -> tuple[list[int], list[ExtractedFeatures]]:
    """Extract up to `keypoints` of frames, in the order of their numbers (N,), until time is up.

    Returns the numbers of the frames that have any, sorted, and what was extracted of these.
    """
    extracted: dict[int, ExtractedFeatures] = {}
    for done, number in enumerate(order):
        if budget.is_over():
            break
        found = extract_mapping_keypoints(frames[number], encoder, keypoints)
        if len(found.pixels):
            extracted[int(number)] = found
        budget.report(done / len(order))
    return sorted(extracted), [extracted[number] for number in sorted(extracted)]


def extract_some(frames: Sequence[PreparedFrame], encoder: Encoder, options: DatabaseOptions, budget: MappingBudget
                 ) -> tuple[list[PreparedFrame], list[ExtractedFeatures]]:
    """Extract the keypoints of as many frames as the place needs. Returns the frames that have any, and what was
    extracted."""
    order = _choose_frames(frames, options)
    numbers, images = extract_images(frames, order, encoder, keypoints=options.keypoints,
                                     budget=budget.phase("extracting keypoints", share=EXTRACTION_SHARE))
    return [frames[number] for number in numbers], images


def _choose_frames(frames: Sequence[PreparedFrame], options: DatabaseOptions) -> np.ndarray:
    """Return the indices of the frames to use, in the order in which they are to be extracted."""
    if len(frames) > options.images:
        poses = np.stack([frame.map_from_camera for frame in frames])
        depth = median_depth(frames, poses)
        if depth is not None:
            return choose_viewpoints(poses, depth, least=options.images, most=options.most_images, seed=options.seed)
    return np.random.default_rng(options.seed).permutation(len(frames))[:options.images]


def gather_observations(images: Sequence[ExtractedFeatures]) -> Observations:
    """Return the keypoints of posed images as the observations that tracks are built of."""
    poses = np.tile(np.eye(4), (len(images), 1, 1))
    poses[:, :3] = np.stack([image.camera_from_map.cpu().numpy().astype(np.float64) for image in images])
    return Observations(
        images=np.repeat(np.arange(len(images)), [len(image.pixels) for image in images]),
        pixels=torch.cat([image.pixels for image in images]).cpu().numpy().astype(np.float64),
        poses=np.linalg.inv(poses),
        intrinsics=np.stack([image.intrinsics.cpu().numpy().astype(np.float64) for image in images]))


def _refine_poses(observations: Observations, tracks: Tracks, matches: np.ndarray, *, tolerance_px: float, seed: int,
                  budget: MappingBudget) -> tuple[Observations, Tracks, float]:
    """Refine the poses with some of the tracks; if they are better, build the tracks again, with a tolerance to match.

    Returns observations with the poses to use, their tracks and tolerance.
    """
    used = _some_tracks(tracks.track, np.random.default_rng(seed))
    if len(used) == 0 or budget.is_over():
        return observations, tracks, tolerance_px
    landmarks, landmark_of = np.unique(tracks.track[used], return_inverse=True)
    noise_px = np.full(len(used), tolerance_px / TOLERANCE_SIGMAS)
    refined = refine_poses(RefinementProblem(
        intrinsics=observations.intrinsics, map_from_camera=observations.poses, images=observations.images[used],
        tracks=landmark_of, pixels=observations.pixels[used], noise_px=noise_px, points=tracks.points[landmarks]),
        budget, seed=seed)
    _LOG.info(f"poses {'refined' if refined.taken else 'as given'}: {refined.reason}")
    if not refined.taken:
        return observations, tracks, tolerance_px
    observations = replace(observations, poses=refined.map_from_camera)
    tolerance_px = float(np.clip(TOLERANCE_SIGMAS * refined.scale_after_px, MIN_TOLERANCE_PX, tolerance_px))
    return observations, build_tracks(observations, matches, tolerance_px), tolerance_px


def _some_tracks(track: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return keypoints (M,) of whole tracks, drawn at random, at most REFINEMENT_OBSERVATIONS."""
    tracked = np.flatnonzero(track >= 0)
    if len(tracked) <= REFINEMENT_OBSERVATIONS:
        return tracked
    rank = rng.permutation(int(track.max()) + 1)[track[tracked]]
    total = np.cumsum(np.bincount(rank))
    return tracked[rank < np.searchsorted(total, REFINEMENT_OBSERVATIONS)]


def measured_tracks(frames: Sequence[PreparedFrame], images: Sequence[ExtractedFeatures], observations: Observations
                     ) -> Tracks:
    """Make a track of each keypoint whose depth was measured, except at the edges of objects."""
    depth = torch.cat([_reliable_depths(frame, image) for frame, image in zip(frames, images, strict=True)]).cpu()
    rays = torch.cat([image.rays for image in images]).cpu()
    centres = np.repeat([image.centre.cpu().numpy() for image in images], [len(image.pixels) for image in images], 0)
    known = torch.isfinite(depth).numpy()
    track = np.where(known, np.cumsum(known) - 1, -1)
    points = (rays * depth[:, None]).numpy().astype(np.float64)[known] + centres[known]
    return Tracks(track=track, points=points, errors_px=np.where(known, 0.0, np.nan))


def _reliable_depths(frame: PreparedFrame, image: ExtractedFeatures) -> Tensor:
    """Return the measured depths (N,) of an image's keypoints, NaN if unknown or at an edge."""
    depth = measured_depths(frame, image)
    shifted = []
    for x, y in ((-DEPTH_WINDOW, 0), (DEPTH_WINDOW, 0), (0, -DEPTH_WINDOW), (0, DEPTH_WINDOW)):
        shifted.append(measured_depths(frame, image, offset=(x, y)))
    step = (torch.stack(shifted) - depth).abs().amax(0)
    return torch.where(step < MAX_DEPTH_STEP * depth, depth, float("nan"))


def select_observations(images: np.ndarray, track: np.ndarray, count: int) -> np.ndarray:
    """Select keyframes by what they add, and return their observations, ordered by keyframe.

    As long as the observations fit, the image is chosen that has the most landmarks with fewer than
    ENOUGH_OBSERVATIONS yet.

    Args:
        images: (N,) the image of each keypoint, ascending.
        track: (N,) its landmark, -1 for none.
        count: largest number of observations.

    Returns:
        (M,) indices of keypoints, ascending.
    """
    tracked = np.flatnonzero(track >= 0)
    if len(tracked) <= count:
        return tracked
    image, landmark = images[tracked], track[tracked]
    sizes = np.bincount(image, minlength=int(image.max()) + 1)
    seen = np.zeros(int(landmark.max()) + 1, np.int64)
    chosen = np.zeros(len(sizes), bool)
    total = 0
    while True:
        gain = np.bincount(image, (seen < ENOUGH_OBSERVATIONS)[landmark], minlength=len(sizes))
        gain[chosen | (total + sizes > count)] = -1.0
        best = int(np.argmax(gain))
        if gain[best] <= 0.0:
            break
        chosen[best] = True
        total += int(sizes[best])
        seen[landmark[image == best]] += 1
    return tracked[chosen[image]]


def train_vocabulary(descriptors: Tensor, words: int, seed: int) -> Tensor:
    """Cluster descriptors (N, C) of unit length to at most `words` visual words (W, C), by spherical k-means."""
    generator = torch.Generator().manual_seed(seed)
    sample = descriptors[torch.randperm(len(descriptors), generator=generator)[:VOCABULARY_SAMPLE]]
    centres = sample[:words].clone()
    for _ in range(VOCABULARY_ROUNDS):
        nearest = assign_words(sample, centres)
        centres = functional.normalize(centres * 1e-6 + torch.zeros_like(centres).index_add_(0, nearest, sample), dim=1)
    return centres


def landmark_colours(frames: Sequence[PreparedFrame], observations: Observations, chosen: np.ndarray,
                     landmark_of: np.ndarray) -> np.ndarray:
    """Return the colour (L, 3) uint8 of each landmark, from its last observation."""
    colours = np.zeros((int(landmark_of.max(initial=-1)) + 1, 3), np.uint8)
    image_of = observations.images[chosen]
    for number in np.unique(image_of):
        seen = image_of == number
        image = frames[number].image
        column, row = np.clip(observations.pixels[chosen][seen].round().astype(int).T, 0,
                              [[image.shape[1] - 1], [image.shape[0] - 1]])
        colours[landmark_of[seen]] = image[row, column]
    return colours
