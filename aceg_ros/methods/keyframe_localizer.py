"""The localizer for maps with a keyframe database.

Its steps: extract keypoints, retrieve a shortlist of keyframes, match with their landmarks, estimate hypotheses by
RANSAC, look again for every landmark that should be visible from each, take the most significant pose, verify it.

With a prior, the keyframes near it are matched first, beside the best one retrieved of another place. A good pose there
is the answer, without RANSAC; else all is done as without a prior, and the keyframes near it are matched again if no
pose is accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from aceg_ros.camera import Frame
from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.keypoints import Keypoints, extract_frame_keypoints
from aceg_ros.estimate import ImageCorrespondences, PoseEstimate, PriorPose, Status
from aceg_ros.maps.descriptor_index import LandmarkMatches, ObservationMatcher, match_projections
from aceg_ros.maps.distinctiveness import count_distinctive
from aceg_ros.maps.header import MIN_COVARIANCE_SCALE
from aceg_ros.maps.keyframe_database import SECTION, KeyframeDatabase
from aceg_ros.maps.places import group_by_place, is_elsewhere, is_same_pose, show_place_of, twin_groups
from aceg_ros.maps.retrieval import KeyframeRetrieval, Shortlist
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.localize_frame import localize_frame
from aceg_ros.methods.scene_coordinates import encoder_of
from aceg_ros.pose.config import GateConfig, GuidedConfig, SolverConfig
from aceg_ros.pose.correspondences import CameraFromMap, Correspondences
from aceg_ros.pose.guided import (
    GuidedPose,
    find_hypothesis,
    refine_finally,
    refine_from_prior,
    refine_guided,
    significance_beside,
)
from aceg_ros.pose.significance import Significance
from aceg_ros.pose.verify import blind_consensus, verify_guided_pose
from aceg_ros.utils.device import pick_device
from aceg_ros.utils.stopwatch import Stopwatch

SETTLED_PX = 1.0                                        # of a pose: looking again from it finds the same
PRIOR_SIGMAS = 3.0                                      # of a prior, within which the pose is searched for


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
    for it to be tried. tracked_keyframes: number of keyframes that are matched near a prior. max_tracking_window:
    largest uncertainty of a prior, as a share of the image's width, for it to be tried first. covariance_scale: of the
    map, see `mapping.calibration`. seed: of RANSAC.
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
    tracked_keyframes: int = 2
    max_tracking_window: float = 0.5
    covariance_scale: float = MIN_COVARIANCE_SCALE
    seed: int = 0
    solver: SolverConfig = field(default_factory=lambda: SolverConfig(max_iterations=400, refine_steps=2))
    guided: GuidedConfig = field(default_factory=GuidedConfig)
    gates: GateConfig = field(default_factory=GateConfig)


class KeyframeLocalizer:
    """A `Localizer` that estimates the pose from the landmarks of a keyframe database."""

    def __init__(self, *, encoder: Encoder, database: KeyframeDatabase, config: KeyframeLocalizerConfig):
        self._encoder, self._database, self._config = encoder, database, config
        self._retrieval = KeyframeRetrieval(database, str(encoder.device))

    @classmethod
    def from_map(cls, scene_map: SceneMap, *, device: str = "auto", seed: int = 0) -> KeyframeLocalizer:
        """Make the localizer of a map, with the encoder that it was made with.

        Raises UserError if the encoder has changed since, or the database is damaged.
        """
        encoder = encoder_of(scene_map, pick_device(device))
        config = KeyframeLocalizerConfig(covariance_scale=scene_map.covariance_scale, seed=seed)
        return cls(encoder=encoder, database=KeyframeDatabase.from_section(scene_map.sections[SECTION]), config=config)

    def localize(self, frame: Frame, prior: PriorPose | None = None) -> PoseEstimate:
        """Estimate the pose of the camera in the map, or reject the image. A good prior saves time; a wrong one costs
        some."""
        return localize_frame(frame, self.extract, lambda query, stopwatch: self.localize_keypoints(
            query, stopwatch, prior=prior))

    def extract(self, frame: Frame) -> Keypoints:
        """Extract the keypoints of a frame, which must have passed `reject_image`."""
        return extract_frame_keypoints(frame, self._encoder, self._config.keypoints)

    def greatest_similarity(self, query: Keypoints) -> float:
        """Return how similar, in [0, 1], an image is to the most similar keyframe: to choose one of several maps."""
        return self._retrieval.greatest_similarity(query.descriptors[:self._config.retrieval_keypoints])

    def localize_keypoints(self, query: Keypoints, stopwatch: Stopwatch | None = None, *,
                           prior: PriorPose | None = None) -> PoseEstimate:
        """Estimate the pose of the camera from the keypoints of its image."""
        config, stopwatch = self._config, stopwatch or Stopwatch()
        shortlist = self._retrieval.find(query.descriptors[:config.retrieval_keypoints], config.wide_shortlist)
        stopwatch.lap("retrieve")
        matcher, estimate = ObservationMatcher(query, self._database), None
        if prior is not None:
            estimate = self._track(matcher, shortlist, prior)
            stopwatch.lap("track")
        if estimate is None:
            estimate = self._search(matcher, shortlist, stopwatch, prior)
        return replace(estimate.with_covariance_times(config.covariance_scale), stage_ms=stopwatch.laps_ms)

    def _search(self, matcher: ObservationMatcher, shortlist: Shortlist, stopwatch: Stopwatch,
                prior: PriorPose | None) -> PoseEstimate:
        """Find the pose in the whole map; if none is accepted, at the place of the prior."""
        config, query = self._config, matcher.query
        matches = matcher.match(shortlist.keyframes[:config.shortlist])
        blind = self._correspondences(query, matches)
        stopwatch.lap("match")
        poses = self._new_poses(query, blind, [], chance_is_tried=True)
        good = self._any_good(poses, blind)
        if not good:
            shortlist = self._retrieval.rank_by_landmarks(query.descriptors[:config.ranking_keypoints],
                                                          shortlist.keyframes, config.ranked)
            matches = matcher.match(shortlist.keyframes[:config.ranked_shortlist])
            blind = self._correspondences(query, matches)
            poses += self._new_poses(query, blind, poses)
            good = self._any_good(poses, blind)
        # Where a pose is good, only other places that look alike can tell anything new.
        groups = group_by_place(self._database, shortlist.keyframes[:config.ranked])
        for group in (twin_groups(groups, shortlist, config.twin_similarity) if good else groups)[
                :config.group_hypotheses]:
            poses += self._new_poses(query, self._correspondences(query, matcher.match(
                group[:config.ranked_shortlist])), poses)
        found, competitor = self._most_significant(query, poses)
        stopwatch.lap("solve")
        estimate = self._verify(query, found, competitor, matches)
        stopwatch.lap("gates")
        if prior is not None and not estimate.accepted:
            estimate = self._search_near(matcher, prior, poses) or estimate
            stopwatch.lap("prior")
        return estimate

    def _track(self, matcher: ObservationMatcher, shortlist: Shortlist, prior: PriorPose) -> PoseEstimate | None:
        """Return the pose near a prior if it is good, and as good as those at other places that look alike."""
        config, query = self._config, matcher.query
        near = self._database.nearest_keyframes(prior.map_from_camera, config.tracked_keyframes)
        radius_px = self._window_px(prior, query, near[0])
        if radius_px > config.max_tracking_window * query.camera.width:
            return None
        # At one of two places that look alike, many matches are with keyframes of the other.
        first = shortlist.keyframes[:config.shortlist]
        others = first[~show_place_of(self._database, first, near[0])]
        matches = matcher.match(np.concatenate([near, others[:1]]))
        blind = self._correspondences(query, matches)
        start = CameraFromMap.from_pose(prior.map_from_camera)
        refined = refine_from_prior(blind, start, radius_px, config.guided)
        pose = None if refined is None else self._look(query, refined)
        if pose is None or not self._any_good([pose], blind):
            return None
        poses = [pose]
        groups = [near, *(group for group in group_by_place(self._database, shortlist.keyframes[:config.ranked])
                          if not show_place_of(self._database, group, near[0]).any())]
        for group in twin_groups(groups, shortlist, config.twin_similarity)[:config.group_hypotheses]:
            poses += self._new_poses(query, self._correspondences(query, matcher.match(
                group[:config.ranked_shortlist])), poses)
        estimate = self._verify(query, *self._most_significant(query, poses), matches)
        return estimate if estimate.accepted else None

    def _search_near(self, matcher: ObservationMatcher, prior: PriorPose, poses: list[GuidedPose]
                     ) -> PoseEstimate | None:
        """Return the pose that the keyframes near a prior give, if it is accepted beside all that were found before and
        is where the prior says: nothing else speaks for it."""
        near = self._database.nearest_keyframes(prior.map_from_camera, self._config.ranked_shortlist)
        query, matches = matcher.query, matcher.match(near)
        further = self._new_poses(query, self._correspondences(query, matches), poses)
        if not further:
            return None
        estimate = self._verify(query, *self._most_significant(query, poses + further), matches)
        return estimate if prior.agrees_with(estimate) else None

    def _window_px(self, prior: PriorPose, query: Keypoints, keyframe: int) -> float:
        """Return how far a landmark may be from where the prior puts it: the window of guided matching and a few
        standard deviations."""
        std_rad = prior.rotation_std_rad + prior.position_std_m / self._database.depths_m[keyframe]
        return float(self._config.guided.search_radius_px + PRIOR_SIGMAS * query.camera.fx * std_rad)

    def _verify(self, query: Keypoints, found: GuidedPose | None, competitor: Significance | None,
                matches: LandmarkMatches) -> PoseEstimate:
        """Accept or reject a pose, given the matches from before it was known."""
        blind = self._correspondences(query, matches)
        if found is None:
            estimate, shown = PoseEstimate(
                status=Status.NO_CONSENSUS, message=f"no pose agrees with the {len(blind.pixels)} matches of"
                f" {len(query)} keypoints"), blind
        else:
            # Where most matches agree, no place that only looks alike can have been found.
            distinctive = None if self._any_good([found], blind) else self._count_distinctive(query, matches, found)
            estimate = verify_guided_pose(found, competitor, blind, self._config.gates, distinctive=distinctive)
            shown = found.correspondences
        return replace(estimate, correspondences=ImageCorrespondences(pixels=shown.pixels, points=shown.points,
                                                                      camera=shown.camera))

    def _new_poses(self, query: Keypoints, correspondences: Correspondences, known: list[GuidedPose], *,
                   chance_is_tried: bool = False) -> list[GuidedPose]:
        """Return the pose that RANSAC finds, refined by looking again, if there is one and it is none of those that are
        known; also one that agrees with its matches by chance, if that is tried."""
        config = self._config
        hypothesis = find_hypothesis(correspondences, config.solver, config.guided, seed=config.seed)
        if hypothesis is None or (not chance_is_tried and hypothesis.log10_nfa > config.max_further_log10_nfa):
            return []
        map_from_camera = hypothesis.pose.map_from_camera
        if any(is_same_pose(self._database, map_from_camera, other.pose.map_from_camera) for other in known):
            return []           # looking again would find the same
        pose = self._look(query, hypothesis.pose)
        return [] if pose is None else [pose]

    def _any_good(self, poses: list[GuidedPose], blind: Correspondences) -> bool:
        """Return whether for a pose the landmarks are there, and most matches agree: the copy of a place has only the
        first."""
        return any(pose.overall.log10_nfa < self._config.good_log10_nfa
                   and blind_consensus(pose, blind).inlier_ratio > self._config.good_inlier_ratio for pose in poses)

    def _count_distinctive(self, query: Keypoints, matches: LandmarkMatches, found: GuidedPose) -> float:
        """Count the distinctive ones of the matches from before that agree with a pose."""
        agreeing = blind_consensus(found, self._correspondences(query, matches)).inlier_indices
        return count_distinctive(query.descriptors[matches.keypoints[agreeing]],
                                 self._database.points_array[matches.landmarks[agreeing]], self._database)

    def _most_significant(self, query: Keypoints, poses: list[GuidedPose]
                          ) -> tuple[GuidedPose | None, Significance | None]:
        """Return the most significant pose, and the greatest significance of one at another place; None where there is
        none."""
        if not poses:
            return None, None
        best = min(poses, key=lambda pose: pose.significance.log10_nfa + pose.overall.log10_nfa)
        place = best.pose.map_from_camera
        competing = [other for other in poses if is_elsewhere(self._database, other.pose.map_from_camera, place)]
        for _ in range(self._config.further_looks if best.moved_px > SETTLED_PX else 0):
            again = self._look(query, best.pose)
            if again is None or again.overall.log10_nfa >= best.overall.log10_nfa:
                break
            best = again
        best = refine_finally(best)
        significances = [significance_beside(other, best, self._config.guided) for other in competing]
        return best, min(significances, key=lambda value: value.log10_nfa, default=None)

    def _look(self, query: Keypoints, pose: CameraFromMap) -> GuidedPose | None:
        """Look for the landmarks that should be visible from a pose, and refine it on those found."""
        config, map_from_camera = self._config, pose.map_from_camera
        nearby = self._database.nearest_keyframes(map_from_camera, config.visible_keyframes)
        matches = match_projections(query, self._database, self._database.first_observations(nearby), map_from_camera,
                                    radius_px=config.guided.search_radius_px, max_count=config.visible_landmarks)
        return refine_guided(self._correspondences(query, matches), matches.similarity, pose, config.guided)

    def _correspondences(self, query: Keypoints, matches: LandmarkMatches) -> Correspondences:
        return Correspondences(pixels=query.pixels[matches.keypoints].astype(np.float64),
                               points=self._database.points_array[matches.landmarks], camera=query.camera)
