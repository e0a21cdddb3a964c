# SPDX-License-Identifier: Apache-2.0
"""The steps that localizing in a keyframe database takes, for one camera or for several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from aceg_ros.encoders.keypoints import Keypoints
from aceg_ros.maps.descriptor_index import LandmarkMatches, match_projections
from aceg_ros.maps.distinctiveness import count_distinctive
from aceg_ros.maps.header import MIN_COVARIANCE_SCALE
from aceg_ros.maps.keyframe_database import KeyframeDatabase, camera_of
from aceg_ros.maps.places import group_by_place, is_elsewhere, is_same_pose, twin_groups
from aceg_ros.maps.retrieval import KeyframeRetrieval, Shortlist
from aceg_ros.pose.config import GateConfig, GuidedConfig, SolverConfig
from aceg_ros.pose.correspondences import CameraFromMap, Correspondences
from aceg_ros.pose.guided import GuidedPose, Hypothesis, blind_significance, find_hypothesis, refine_finally
from aceg_ros.pose.verify import blind_consensus

SETTLED_PX = 1.0                                        # of a pose: looking again from it finds the same


@dataclass(frozen=True, kw_only=True)
class KeyframeLocalizerConfig:
    """Settings of the localizer.

    keypoints: number of the most reliable keypoints that are matched. retrieval_keypoints: number of them that
    keyframes are retrieved by. shortlist, ranked_shortlist: number of keyframes that are matched at first, and after
    ranking or of a group. wide_shortlist: number retrieved by visual words. ranking_keypoints, ranked: number of
    keypoints by which these are ranked again if the first pose is not good, and of keyframes kept. visible_keyframes,
    visible_landmarks: number of keyframes near a pose, and of those of their landmarks that should be visible, that are
    searched for. good_log10_nfa, good_inlier_ratio: significance with all matches, and share of the matches from before
    that agree, from which a pose is good: then only keyframes of other places can tell anything new, with a similarity
    of more than twin_similarity, as a share of the best. further_looks: at most, as long as the best pose becomes more
    significant. group_hypotheses: number of further hypotheses from groups of keyframes that show the same place.
    max_further_log10_nfa: largest logarithm of the number of poses that agree by chance as well as a further hypothesis
    for it to be tried. tracked_scale: of the sides of an image with a prior. tracked_keyframes, tracked_keypoints,
    tracked_landmarks: number of keyframes that are matched near the prior, of the most reliable keypoints, and of
    landmarks that are then searched for: where these are not enough, all is done as without one. max_tracking_window:
    largest uncertainty of a prior, as a share of the image's width, for it to be tried first. max_tracked_std_depths:
    largest standard deviation of the position that is found then, in depths of the nearest keyframe or, if less, of the
    median. other_views: an image that is rejected is tried smaller and turned. covariance_scale: of the map, see
    `mapping.calibration`. seed: of RANSAC.
    """

    keypoints: int = 1500
    retrieval_keypoints: int = 600
    shortlist: int = 4
    ranked_shortlist: int = 8
    wide_shortlist: int = 60
    ranking_keypoints: int = 600
    ranked: int = 20
    visible_keyframes: int = 10
    visible_landmarks: int = 4000
    good_log10_nfa: float = -15.0
    good_inlier_ratio: float = 0.5
    twin_similarity: float = 0.6
    further_looks: int = 1
    group_hypotheses: int = 2
    max_further_log10_nfa: float = 0.0
    tracked_scale: float = 0.6
    tracked_keyframes: int = 2
    tracked_keypoints: int = 500
    tracked_landmarks: int = 1000
    max_tracking_window: float = 0.5
    max_tracked_std_depths: float = 0.02
    other_views: bool = True
    covariance_scale: float = MIN_COVARIANCE_SCALE
    seed: int = 0
    solver: SolverConfig = field(
        default_factory=lambda: SolverConfig(min_iterations=50, max_iterations=400, refine_steps=2))
    guided: GuidedConfig = field(default_factory=GuidedConfig)
    gates: GateConfig = field(default_factory=GateConfig)


@dataclass(frozen=True, kw_only=True)
class FirstMatches:
    """N matches from before any pose was known.

    correspondences: of the pixels and points. descriptors: (N, C) of their keypoints. landmarks: (N,). total: number of
    keypoints that were matched.
    """

    correspondences: Correspondences
    descriptors: Tensor
    landmarks: np.ndarray
    total: int

    def __str__(self) -> str:
        return f"{len(self.landmarks)} matches of {self.total} keypoints"


class LandmarkSearch:
    """Finds keyframes, matches, and what speaks for a pose, in one database.

    Attributes:
        database, config: as given.
    """

    def __init__(self, database: KeyframeDatabase, config: KeyframeLocalizerConfig, device: str):
        self.database, self.config = database, config
        self._device = torch.device(device)
        self._retrieval = KeyframeRetrieval(database, device)

    # --- keyframes ---

    def shortlist(self, query: Keypoints) -> Shortlist:
        """Return the keyframes most similar to an image by visual words."""
        return self._retrieval.find(query.descriptors[:self.config.retrieval_keypoints], self.config.wide_shortlist)

    def ranked(self, query: Keypoints, shortlist: Shortlist) -> Shortlist:
        """Rank the keyframes of a shortlist by votes of landmarks."""
        return self._retrieval.rank_by_landmarks(query.descriptors[:self.config.ranking_keypoints],
                                                 shortlist.keyframes, self.config.ranked)

    def other_places(self, shortlist: Shortlist, good: bool) -> list[np.ndarray]:
        """Return groups of keyframes that each show one place. Where a pose is good, only other places that look alike
        can tell anything new."""
        groups = group_by_place(self.database, shortlist.keyframes[:self.config.ranked])
        return twin_groups(groups, shortlist, self.config.twin_similarity) if good else groups

    def keypoints_of_a_keyframe(self, stride: int) -> tuple[Keypoints, np.ndarray]:
        """Return the observations of the keyframe with the most of them as the keypoints of an image, and its pose."""
        database = self.database
        keyframe = int(np.argmax(np.diff(database.starts)))
        rows = torch.from_numpy(database.observations_of([keyframe]))
        camera = camera_of(database.intrinsics[keyframe].numpy(), database.sizes[keyframe].numpy())
        pixels = database.pixels_of(keyframe)
        map_size = (camera.height // stride, camera.width // stride)
        column, row = (np.clip((pixels[:, axis] + 0.5) // stride, 0, map_size[1 - axis] - 1) for axis in (0, 1))
        found = Keypoints(pixels=pixels.astype(np.float32), camera=camera, stride=stride, map_size=map_size,
                          cells=(row * map_size[1] + column).astype(np.int64),
                          descriptors=database.unit_descriptors(self._device)[rows].float())
        return found.best(self.config.keypoints), database.pose_array[keyframe]

    def warm_up(self, query: Keypoints) -> None:
        """Take the steps that images without a good pose at the most similar keyframes need."""
        self.ranked(query, self.shortlist(query))
        count_distinctive(query.descriptors[:1], self.database.points_array[:1], self.database, self._retrieval)

    def greatest_similarity(self, query: Keypoints) -> float:
        """Return how similar, in [0, 1], an image is to the most similar keyframe."""
        return self._retrieval.greatest_similarity(query.descriptors[:self.config.retrieval_keypoints])

    # --- matches ---

    def first_matches(self, query: Keypoints, matches: LandmarkMatches) -> FirstMatches:
        return FirstMatches(correspondences=self.correspondences(query, matches), landmarks=matches.landmarks,
                            descriptors=query.descriptors[matches.keypoints], total=len(query))

    def look_for_visible(self, query: Keypoints, map_from_camera: np.ndarray, count: int | None = None
                         ) -> tuple[Correspondences, np.ndarray]:
        """Look for the landmarks that should be visible from a pose, at most count (None: visible_landmarks). Returns
        the matches, and their similarity (N,)."""
        nearby = self.database.nearest_keyframes(map_from_camera, self.config.visible_keyframes)
        matches = match_projections(query, self.database, self.database.first_observations(nearby), map_from_camera,
                                    radius_px=self.config.guided.search_radius_px,
                                    max_count=count or self.config.visible_landmarks)
        return self.correspondences(query, matches), matches.similarity

    def correspondences(self, query: Keypoints, matches: LandmarkMatches) -> Correspondences:
        return Correspondences(pixels=query.pixels[matches.keypoints].astype(np.float64),
                               points=self.database.points_array[matches.landmarks], camera=query.camera)

    # --- poses ---

    def find_hypothesis(self, correspondences: Correspondences, *, chance_is_tried: bool) -> Hypothesis | None:
        """Return the pose that RANSAC finds; one that agrees with its matches by chance only if that is tried."""
        config = self.config
        found = find_hypothesis(correspondences, config.solver, config.guided, seed=config.seed)
        tried = found is not None and (chance_is_tried or found.log10_nfa <= config.max_further_log10_nfa)
        return found if tried else None

    def is_known(self, pose: CameraFromMap, known: Iterable[GuidedPose]) -> bool:
        """Return whether a pose is one of those known: looking again would find the same."""
        return any(is_same_pose(self.database, pose.map_from_camera, other.pose.map_from_camera) for other in known)

    def is_explained(self, correspondences: Correspondences, known: Iterable[GuidedPose]) -> bool:
        """Return whether matches agree with a known pose so clearly that RANSAC would only find it again. It must be
        significant: else that which RANSAC finds may be the one from which more landmarks are found."""
        return any(blind_significance(correspondences, other.pose).log10_nfa < self.config.guided.clear_log10_nfa
                   for other in self._significant(known))

    def is_place_known(self, group: np.ndarray, known: Iterable[GuidedPose]) -> bool:
        """Return whether a significant pose is known among a group of keyframes that show one place."""
        return any(self.database.nearest_keyframes(pose.pose.map_from_camera, 1)[0] in group
                   for pose in self._significant(known))

    def _significant(self, known: Iterable[GuidedPose]) -> list[GuidedPose]:
        return [pose for pose in known if pose.overall.log10_nfa < self.config.good_log10_nfa]

    def is_any_good(self, poses: Iterable[GuidedPose], first: FirstMatches) -> bool:
        """Return whether for a pose the landmarks are there, and most matches agree: the copy of a place has only the
        first."""
        return any(pose.overall.log10_nfa < self.config.good_log10_nfa
                   and blind_consensus(pose, first.correspondences).inlier_ratio > self.config.good_inlier_ratio
                   for pose in poses)

    def count_distinctive(self, found: GuidedPose, first: FirstMatches) -> float | None:
        """Count the distinctive ones of the matches that agree with a pose. None where most agree: no place that only
        looks alike can have been found there."""
        if self.is_any_good([found], first):
            return None
        agreeing = blind_consensus(found, first.correspondences).inlier_indices
        points = self.database.points_array[first.landmarks[agreeing]]
        return count_distinctive(first.descriptors[agreeing], points, self.database, self._retrieval)

    def elsewhere(self, poses: Sequence[GuidedPose], best: GuidedPose) -> list[GuidedPose]:
        """Return the poses at other places than the best one, which compete with it."""
        place = best.pose.map_from_camera
        return [other for other in poses if is_elsewhere(self.database, other.pose.map_from_camera, place)]

    def settle(self, best: GuidedPose, look: Callable[[CameraFromMap], GuidedPose | None]) -> GuidedPose:
        """Look again from a pose as long as that makes it more significant, and refine it finally."""
        for _ in range(self.config.further_looks if best.moved_px > SETTLED_PX else 0):
            again = look(best.pose)
            if again is None or again.overall.log10_nfa >= best.overall.log10_nfa:
                break
            best = again
        return refine_finally(best)
