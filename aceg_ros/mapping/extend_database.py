# SPDX-License-Identifier: Apache-2.0
"""Extends a keyframe database by a recording: new observations of its landmarks beside the old ones, and new landmarks.

The known landmarks stay where they are. New keypoints that match their observations and agree with them are attached;
new landmarks are triangulated of those that are left. The poses of the recording are refined against the map, if
matches that are held out then agree better.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from aceg_ros.encoders.base import Encoder
from aceg_ros.mapping.augmentation import PreparedFrame
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.build_database import (
    FINAL_TOLERANCE_PX,
    MATCHING_SHARE,
    DatabaseOptions,
    extract_some,
    gather_observations,
    landmark_colours,
    measured_tracks,
)
from aceg_ros.mapping.covisibility import CovisibilityFeatures, select_covisible_images
from aceg_ros.mapping.fading import Visit, count_missed
from aceg_ros.mapping.matching import ExtractedFeatures
from aceg_ros.mapping.observation_table import ObservationTable
from aceg_ros.mapping.pair_matching import covisible_pairs, estimate_tolerance_px, match_pairs
from aceg_ros.mapping.select_keyframes import KeyframeChoice, select_keyframes
from aceg_ros.mapping.tracks import (
    Observations,
    Tracks,
    attach_keypoints,
    best_of_image,
    build_tracks,
    reprojection_errors,
)
from aceg_ros.maps.keyframe_database import quantised
from aceg_ros.pose.correspondences import CameraFromMap, Correspondences
from aceg_ros.pose.refinement import refine

_LOG = logging.getLogger("aceg_ros")
KNOWN_IMAGES = 6                    # keyframes of the map that each new image is matched with
MIN_ATTACHED = 30                   # keypoints of an image that its pose is refined on
HELD_OUT = 5                        # every n-th of them only tells whether the refined pose is better
MIN_IMPROVEMENT = 0.05              # of their median error
REFINEMENT_STEPS = 4                # at each of two scales
ATTACHING_ROUNDS = 2                # keypoints that match attached ones are attached in the second


@dataclass(frozen=True, kw_only=True)
class GrowthOptions:
    """images, keypoints, covisible_images, words, observations: as for `DatabaseOptions`. fade_after: visits that
    should have seen a landmark and did not, after which it is dropped; 0 for never."""

    database: DatabaseOptions
    fade_after: int = 3


@dataclass(frozen=True, kw_only=True)
class ExtendedDatabase:
    """The database as a table, and what happened.

    new_points (P, 3), new_colours (P, 3) uint8: of the new landmarks, for display. encoded: images that were used.
    attached: new keypoints of known landmarks. faded: landmarks that were dropped. refined: whether the poses of the
    recording were. kept: new keyframes in the map.
    """

    table: ObservationTable
    new_points: np.ndarray
    new_colours: np.ndarray
    encoded: int
    attached: int
    faded: int
    refined: bool
    kept: int


@dataclass(frozen=True, kw_only=True)
class _Extension:
    """The F keyframes that are known, and V new images.

    observations: of the keyframes, then of the images. matches (M, 2) between these. matched: for each image, the
    keyframes that it was matched with. tolerance_px: of reprojection errors.
    """

    known: ObservationTable
    images: Sequence[ExtractedFeatures]
    observations: Observations
    matches: np.ndarray
    matched: list[np.ndarray]
    tolerance_px: float

    @property
    def new_rows(self) -> slice:
        """Which observations are of the new images."""
        return slice(len(self.known), None)


def extend_database(known: ObservationTable, frames: Sequence[PreparedFrame], encoder: Encoder, *,
                    options: GrowthOptions, budget: MappingBudget, use_depth: bool = False) -> ExtendedDatabase | None:
    """Extend a database by posed images within the budget. Returns None if they show nothing that can be used.

    use_depth: new landmarks are the keypoints with measured depths, instead of triangulated.
    """
    used, images = extract_some(frames, encoder, options.database, budget)
    if len(images) == 0:
        return None
    extension = _match(known, images, options.database, stride=encoder.stride, budget=budget)
    track = _attach(extension)
    observations, refined = _refine_poses(extension, track, used)
    if refined:
        extension = replace(extension, observations=observations)
        track = _attach(extension)
    measured = measured_tracks(used, images, gather_observations(images)) if use_depth else None
    attached = int((track[extension.new_rows] >= 0).sum())
    track, points = _add_landmarks(extension, track, measured)
    if (track[extension.new_rows] < 0).all():
        return None
    table = _table(extension, track, points, used)
    colours = landmark_colours(used, replace(observations, images=observations.images - len(known.poses)),
                               np.flatnonzero(track >= len(known.points)), track[track >= len(known.points)]
                               - len(known.points))
    return _finish(extension, table, options, ExtendedDatabase(
        table=table, new_points=points[len(known.points):], new_colours=colours, encoded=len(images),
        attached=attached, faded=0, refined=refined, kept=0))


def _match(known: ObservationTable, images: Sequence[ExtractedFeatures], options: DatabaseOptions, *, stride: int,
           budget: MappingBudget) -> _Extension:
    """Match the new images with each other and with covisible keyframes."""
    keyframes = known.features(images[0].features.device)
    stacked, count = CovisibilityFeatures.stack(keyframes), len(keyframes)
    matched = [np.array(select_covisible_images(image, stacked, KNOWN_IMAGES, stride), np.int64) for image in images]
    across = [np.column_stack([others, np.full(len(others), count + number)]) for number, others in enumerate(matched)]
    pairs = np.concatenate([*across, covisible_pairs(images, options.covisible_images, stride) + count])
    both = [*keyframes, *images]
    tolerance_px = estimate_tolerance_px(both, pairs, options.seed)
    matches = match_pairs(both, pairs, tolerance_px, seed=options.seed,
                          budget=budget.phase("matching keypoints", share=MATCHING_SHARE))
    old, new = known.observations(), gather_observations(images)
    observations = Observations(
        images=np.concatenate([old.images, new.images + count]), pixels=np.concatenate([old.pixels, new.pixels]),
        poses=np.concatenate([old.poses, new.poses]), intrinsics=np.concatenate([old.intrinsics, new.intrinsics]))
    return _Extension(known=known, images=images, observations=observations, matches=matches, matched=matched,
                      tolerance_px=tolerance_px)


def _attach(extension: _Extension) -> np.ndarray:
    """Attach new keypoints to known landmarks, at most one of an image to each. Returns the landmark (N,) of each
    observation, -1 for none."""
    known, observations = extension.known, extension.observations
    track = np.concatenate([known.landmarks, np.full(len(observations) - len(known), -1)])
    for _ in range(ATTACHING_ROUNDS):
        track = attach_keypoints(observations, extension.matches, track, known.points,
                                 tolerance_px=extension.tolerance_px)
    rows = np.flatnonzero(track >= 0)
    rows = rows[rows >= len(known)]
    errors = reprojection_errors(observations, rows, known.points[track[rows]])
    track[rows[~best_of_image(track[rows], observations.images[rows], errors)]] = -1
    return track


def _refine_poses(extension: _Extension, track: np.ndarray, frames: Sequence[PreparedFrame]
                  ) -> tuple[Observations, bool]:
    """Refine the poses of new images on the landmarks attached to them, each by itself.

    Returns the observations with the poses to use, and whether these are the refined ones: keypoints that are held out
    must agree better with them.
    """
    observations, known = extension.observations, extension.known
    poses, before, after = observations.poses.copy(), [], []
    tolerance_px = extension.tolerance_px
    for number, frame in enumerate(frames):
        image = len(known.poses) + number
        rows = np.flatnonzero((observations.images == image) & (track >= 0))
        if len(rows) < MIN_ATTACHED:
            continue
        used = np.arange(len(rows)) % HELD_OUT > 0
        points, test = known.points[track[rows]], rows[~used]
        data = Correspondences(pixels=observations.pixels[rows[used]], points=points[used], camera=frame.camera)
        start = CameraFromMap.from_pose(poses[image])
        pose = refine(data.usable, start, (tolerance_px, 0.5 * tolerance_px), REFINEMENT_STEPS)
        before.append(reprojection_errors(observations, test, points[~used]))
        poses[image] = pose.map_from_camera
        after.append(reprojection_errors(replace(observations, poses=poses), test, points[~used]))
    if not before:
        return observations, False
    medians = np.median(np.concatenate(before)), np.median(np.concatenate(after))
    refined = bool(medians[1] < (1.0 - MIN_IMPROVEMENT) * medians[0])
    return (replace(observations, poses=poses) if refined else observations), refined


def _add_landmarks(extension: _Extension, track: np.ndarray, measured: Tracks | None
                   ) -> tuple[np.ndarray, np.ndarray]:
    """Make landmarks of new keypoints that have none. Returns the landmark (N,) of each observation and all points."""
    known = extension.known
    free = track < 0
    if measured is None:
        matches = extension.matches[free[extension.matches].all(1)]
        made = build_tracks(extension.observations, matches, min(extension.tolerance_px, FINAL_TOLERANCE_PX))
    else:
        before = np.full(len(known), -1)
        made = replace(measured, track=np.where(free, np.concatenate([before, measured.track]), -1))
    return (np.where(free & (made.track >= 0), made.track + len(known.points), track),
            np.concatenate([known.points, made.points]))


def _table(extension: _Extension, track: np.ndarray, points: np.ndarray, frames: Sequence[PreparedFrame]
           ) -> ObservationTable:
    """Make the table of all observations that have a landmark, also of keyframes that will not be kept."""
    known, observations = extension.known, extension.observations
    used = np.flatnonzero(track >= 0)
    descriptors = torch.cat([known.descriptors, *(quantised(image.features).cpu() for image in extension.images)])
    sizes = np.array([[frame.camera.width, frame.camera.height] for frame in frames])
    visits = np.full(len(frames), known.visits.max() + 1)
    return ObservationTable(
        poses=observations.poses, intrinsics=observations.intrinsics, sizes=np.concatenate([known.sizes, sizes]),
        visits=np.concatenate([known.visits, visits]), points=points,
        missed=np.concatenate([known.missed, np.zeros(len(points) - len(known.points), np.int64)]),
        keyframes=observations.images[used], landmarks=track[used], pixels=observations.pixels[used],
        descriptors=descriptors[torch.from_numpy(used)])


def _finish(extension: _Extension, table: ObservationTable, options: GrowthOptions, result: ExtendedDatabase
            ) -> ExtendedDatabase:
    """Let landmarks fade that the recording missed, and choose the keyframes that are kept."""
    known, count = extension.known, len(extension.known.poses)
    starts = table.starts[count:]
    seen = [table.landmarks[first:last] for first, last in pairwise(starts)]
    seen = [landmarks[landmarks < len(known.points)] for landmarks in seen]
    missed = count_missed(known, Visit(
        poses=table.poses[count:], intrinsics=table.intrinsics[count:], sizes=table.sizes[count:],
        matched=extension.matched, seen=seen))
    table = replace(table, missed=np.concatenate([missed, table.missed[len(known.points):]]))
    faded = (table.missed >= options.fade_after) & (options.fade_after > 0)
    _LOG.info(f"{result.attached} keypoints of known landmarks, {len(result.new_points)} new landmarks,"
              f" {int((missed > known.missed).sum())} missed, {int(faded.sum())} of them dropped;"
              f" poses {'refined' if result.refined else 'as given'}, at most {extension.tolerance_px:.1f} px")
    is_known = np.arange(len(table.poses)) < count
    table = table.subset(~faded[table.landmarks])
    # Keyframes without any landmark left are gone; the others keep their order.
    remaining = np.unique(result.table.keyframes[~faded[result.table.landmarks]])
    chosen = select_keyframes(table, KeyframeChoice(count=options.database.observations, known=is_known[remaining]))
    table = table.subset(chosen)
    return replace(result, table=table, faded=int(faded.sum()),
                   kept=int((table.visits == known.visits.max() + 1).sum()))
