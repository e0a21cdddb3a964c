"""The localizer of rigs of cameras, for maps with a keyframe database.

Its steps are those of one camera (`keyframe_localizer`), with one pose of the base for all images: extract and match
each image, estimate hypotheses by RANSAC on the rays of all cameras and on those of each, look again in every image for
the landmarks that should be visible, take the most significant pose, verify it. A camera that is missing, covered or
lost contributes no matches, and costs nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from aceg_ros.camera import Frame
from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.keypoints import Keypoints, extract_frame_keypoints
from aceg_ros.encoders.preprocess import reject_image
from aceg_ros.errors import UserError
from aceg_ros.estimate import PoseEstimate, Status
from aceg_ros.maps.descriptor_index import LandmarkMatches, ObservationMatcher, match_projections
from aceg_ros.maps.distinctiveness import count_distinctive
from aceg_ros.maps.keyframe_database import SECTION, KeyframeDatabase
from aceg_ros.maps.places import group_by_place, is_elsewhere, is_same_pose, twin_groups
from aceg_ros.maps.retrieval import KeyframeRetrieval, Shortlist
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.keyframe_localizer import SETTLED_PX, KeyframeLocalizerConfig
from aceg_ros.methods.scene_coordinates import encoder_of
from aceg_ros.pose.correspondences import CameraFromMap, Correspondences
from aceg_ros.pose.guided import (
    GuidedPose,
    find_hypothesis,
    refine_finally,
    refine_guided,
    significance_beside,
)
from aceg_ros.pose.rig import RigCorrespondences, UsableRigCorrespondences
from aceg_ros.pose.significance import Significance, compute_significance
from aceg_ros.pose.verify import blind_consensus, verify_guided_pose
from aceg_ros.rig import Rig, RigEstimate, RigFrame, ViewShare
from aceg_ros.utils.device import pick_device
from aceg_ros.utils.stopwatch import Stopwatch

MAX_CONTRADICTING_SHARE = 0.5           # of the images that confirm a pose: so few others are those of failed cameras


@dataclass(frozen=True, kw_only=True)
class _View:
    """The image of one camera: its keypoints, what compares them with keyframes, and the most similar keyframes."""

    rig_from_camera: np.ndarray
    query: Keypoints
    matcher: ObservationMatcher
    shortlist: Shortlist


class RigLocalizer:
    """Estimates the pose of a rig's base in a map from the images that its cameras took at one moment."""

    def __init__(self, *, encoder: Encoder, database: KeyframeDatabase, config: KeyframeLocalizerConfig):
        self._encoder, self._database, self._config = encoder, database, config
        self._retrieval = KeyframeRetrieval(database, str(encoder.device))

    @classmethod
    def from_map(cls, scene_map: SceneMap, *, device: str = "auto", seed: int = 0) -> RigLocalizer:
        """Make the localizer of a map, for any rig, with the encoder that the map was made with.

        Raises UserError if the map has no keyframe database, its encoder has changed since, or it is damaged.
        """
        if SECTION not in scene_map.sections:
            raise UserError("The map has no keyframe database, which rigs of cameras are localized with: map the"
                            " recording again with the default method.")
        config = KeyframeLocalizerConfig(covariance_scale=scene_map.covariance_scale, seed=seed)
        return cls(encoder=encoder_of(scene_map, pick_device(device)), config=config,
                   database=KeyframeDatabase.from_section(scene_map.sections[SECTION]))

    def localize(self, frame: RigFrame) -> RigEstimate:
        """Estimate the pose of the base, or reject the images with a reason. Never raises on bad images or cameras."""
        stopwatch = Stopwatch()
        queries: dict[str, Keypoints] = {}
        problems: dict[str, str] = {}
        rejection: PoseEstimate | None = None
        for name in frame.rig.rig_from_camera:
            image = frame.frames.get(name)
            rejected = _missing(name) if image is None else reject_image(image)
            if image is None or rejected is not None:
                rejection = rejection or rejected
                problems[name] = "" if rejected is None else rejected.message
            else:
                queries[name] = self.extract(image)
        stopwatch.lap("encode")
        if not queries:
            assert rejection is not None
            return RigEstimate(base=rejection, views={name: ViewShare(problem=problem)
                                                      for name, problem in problems.items()})
        estimate = self.localize_keypoints(queries, frame.rig, stopwatch)
        return replace(estimate, views={**estimate.views, **{name: ViewShare(problem=problem)
                                                             for name, problem in problems.items()}})

    def extract(self, frame: Frame) -> Keypoints:
        """Extract the keypoints of a frame, which must have passed `reject_image`."""
        return extract_frame_keypoints(frame, self._encoder, self._config.keypoints)

    def localize_keypoints(self, queries: Mapping[str, Keypoints], rig: Rig, stopwatch: Stopwatch | None = None
                           ) -> RigEstimate:
        """Estimate the pose of the base from the keypoints of the images, by name of their cameras."""
        config, stopwatch = self._config, stopwatch or Stopwatch()
        views = [self._view(query, rig.rig_from_camera[name]) for name, query in queries.items()]
        stopwatch.lap("retrieve")
        count = config.shortlist
        blind = self._match(views, count)
        stopwatch.lap("match")
        poses = self._new_poses(views, blind, [], chance_is_tried=True)
        good = self._any_good(poses, blind)
        if not good:
            views = [self._ranked(view) for view in views]
            count = config.ranked_shortlist
            blind = self._match(views, count)
            poses += self._new_poses(views, blind, poses)
            good = self._any_good(poses, blind)
        for matches in (*self._contradicting(blind, poses), *self._other_places(views, good)):
            poses += self._new_poses(views, matches, poses)
        found, competitor = self._most_significant(views, poses)
        stopwatch.lap("solve")
        if found is None:
            keypoints = sum(len(query) for query in queries.values())
            base = PoseEstimate(status=Status.NO_CONSENSUS, message=f"no pose agrees with the {len(blind.pixels)}"
                                f" matches of {keypoints} keypoints of {len(views)} images")
            shares = _shares(list(queries), blind, None)
        else:
            distinctive = None if self._any_good([found], blind) else self._count_distinctive(views, count, found)
            base = verify_guided_pose(found, competitor, blind, config.gates, distinctive=distinctive)
            assert isinstance(found.correspondences, RigCorrespondences)
            shares = _shares(list(queries), found.correspondences, base.inlier_indices)
        stopwatch.lap("gates")
        return RigEstimate(base=replace(base.with_covariance_times(config.covariance_scale),
                                        stage_ms=stopwatch.laps_ms), views=shares)

    def _view(self, query: Keypoints, rig_from_camera: np.ndarray) -> _View:
        config = self._config
        shortlist = self._retrieval.find(query.descriptors[:config.retrieval_keypoints], config.wide_shortlist)
        return _View(rig_from_camera=rig_from_camera, query=query, shortlist=shortlist,
                     matcher=ObservationMatcher(query, self._database))

    def _ranked(self, view: _View) -> _View:
        config = self._config
        return replace(view, shortlist=self._retrieval.rank_by_landmarks(
            view.query.descriptors[:config.ranking_keypoints], view.shortlist.keyframes, config.ranked))

    def _match(self, views: Sequence[_View], count: int) -> RigCorrespondences:
        """Match each image with the first keyframes of its shortlist."""
        return RigCorrespondences.join([
            (self._correspondences(view.query, view.matcher.match(view.shortlist.keyframes[:count])),
             view.rig_from_camera) for view in views])

    def _count_distinctive(self, views: Sequence[_View], count: int, found: GuidedPose) -> float:
        """Count the distinctive ones of the matches from before that agree with a pose."""
        agreeing = blind_consensus(found, self._match(views, count)).inlier_indices
        matched = [view.matcher.match(view.shortlist.keyframes[:count]) for view in views]
        descriptors = torch.cat([view.query.descriptors[part.keypoints]
                                 for view, part in zip(views, matched, strict=True)])
        landmarks = np.concatenate([part.landmarks for part in matched])[agreeing]
        return count_distinctive(descriptors[agreeing], self._database.points_array[landmarks], self._database)

    def _other_places(self, views: Sequence[_View], good: bool) -> list[RigCorrespondences]:
        """Match images with groups of keyframes that show one place: where a pose is good, only with other places that
        look alike in that image."""
        config, found = self._config, []
        for view in views:
            groups = group_by_place(self._database, view.shortlist.keyframes[:config.ranked])
            for group in twin_groups(groups, view.shortlist, config.twin_similarity) if good else groups:
                similarity = view.shortlist.similarity[view.shortlist.keyframes == group[0]]
                found.append((float(similarity[0]), view, group))
        found.sort(key=lambda one: -one[0])
        return [RigCorrespondences.join([(self._correspondences(
            view.query, view.matcher.match(group[:config.ranked_shortlist])), view.rig_from_camera)])
            for _, view, group in found[:config.group_hypotheses]]

    def _contradicting(self, blind: RigCorrespondences, poses: Sequence[GuidedPose]) -> list[RigCorrespondences]:
        """Return the matches of each image that does not confirm the best pose, which may tell another one."""
        if not poses:
            return []
        confirming = self._confirming(self._best(poses))
        return [blind.of_view(number) for number in range(len(blind.views)) if number not in confirming]

    def _new_poses(self, views: Sequence[_View], correspondences: RigCorrespondences, known: Sequence[GuidedPose], *,
                   chance_is_tried: bool = False) -> list[GuidedPose]:
        """Return the pose that RANSAC finds with the matches of all images; if it is not clear, also those of each.
        None is at a pose that is known."""
        config = self._config
        poses: list[GuidedPose] = []
        parts = [correspondences.of_view(number) for number in range(len(correspondences.views))]
        for tried in [correspondences, *(parts if len(parts) > 1 else [])]:
            hypothesis = find_hypothesis(tried, config.solver, config.guided, seed=config.seed)
            if hypothesis is None or not (chance_is_tried or hypothesis.log10_nfa <= config.max_further_log10_nfa):
                continue
            map_from_rig = hypothesis.pose.map_from_camera
            if not any(is_same_pose(self._database, map_from_rig, other.pose.map_from_camera)
                       for other in (*known, *poses)):
                pose = self._look(views, hypothesis.pose)
                poses += [] if pose is None else [pose]
            if hypothesis.log10_nfa < config.guided.clear_log10_nfa:
                break
        return poses

    def _any_good(self, poses: list[GuidedPose], blind: Correspondences) -> bool:
        """Return whether for a pose the landmarks are there, and most matches agree, as for one camera."""
        return any(pose.overall.log10_nfa < self._config.good_log10_nfa
                   and blind_consensus(pose, blind).inlier_ratio > self._config.good_inlier_ratio for pose in poses)

    def _most_significant(self, views: Sequence[_View], poses: list[GuidedPose]
                          ) -> tuple[GuidedPose | None, Significance | None]:
        """Return the most significant pose, and the greatest significance of one at another place; None where there is
        none."""
        if not poses:
            return None, None
        best = self._best(poses)
        place = best.pose.map_from_camera
        competing = [other for other in poses if is_elsewhere(self._database, other.pose.map_from_camera, place)]
        for _ in range(self._config.further_looks if best.moved_px > SETTLED_PX else 0):
            again = self._look(views, best.pose)
            if again is None or again.overall.log10_nfa >= best.overall.log10_nfa:
                break
            best = again
        best = refine_finally(best)
        # An image that contradicts several others is that of a camera that has failed, not of a place that looks alike.
        most = MAX_CONTRADICTING_SHARE * len(self._confirming(best))
        competing = [other for other in competing if len(self._confirming(other)) > most]
        significances = [significance_beside(other, best, self._config.guided) for other in competing]
        return best, min(significances, key=lambda value: value.log10_nfa, default=None)

    def _best(self, poses: Sequence[GuidedPose]) -> GuidedPose:
        """Return the pose that most images confirm, and of these the most significant one. Significances alone would
        not do: with the inliers of several images they are smaller than a float can tell."""
        return min(poses, key=lambda pose: (-len(self._confirming(pose)),
                                            pose.significance.log10_nfa + pose.overall.log10_nfa))

    def _confirming(self, found: GuidedPose) -> set[int]:
        """Return the numbers of the images that alone make a pose significant."""
        data, config = found.correspondences.usable, self._config
        assert isinstance(data, UsableRigCorrespondences)
        squared_px = data.residuals(found.pose).squared_px
        significances = [compute_significance(part, squared_px[rows], config.guided.search_radius_px).log10_nfa
                         for rows, part in data.parts]
        return {number for number, log10_nfa in enumerate(significances) if log10_nfa < config.gates.max_log10_nfa}

    def _look(self, views: Sequence[_View], rig_pose: CameraFromMap) -> GuidedPose | None:
        """Look in every image for the landmarks that should be visible from a pose, and refine it on those found."""
        config, parts, similarity = self._config, [], []
        for view in views:
            map_from_camera = rig_pose.map_from_camera @ view.rig_from_camera
            nearby = self._database.nearest_keyframes(map_from_camera, config.visible_keyframes)
            matches = match_projections(view.query, self._database, self._database.first_observations(nearby),
                                        map_from_camera, radius_px=config.guided.search_radius_px,
                                        max_count=config.visible_landmarks)
            parts.append((self._correspondences(view.query, matches), view.rig_from_camera))
            similarity.append(matches.similarity)
        return refine_guided(RigCorrespondences.join(parts), np.concatenate(similarity), rig_pose, config.guided)

    def _correspondences(self, query: Keypoints, matches: LandmarkMatches) -> Correspondences:
        return Correspondences(pixels=query.pixels[matches.keypoints].astype(np.float64),
                               points=self._database.points_array[matches.landmarks], camera=query.camera)


def _missing(name: str) -> PoseEstimate:
    return PoseEstimate(status=Status.BAD_IMAGE, message=f"there is no image of camera {name}")


def _shares(names: Sequence[str], correspondences: RigCorrespondences, inliers: np.ndarray | None
            ) -> dict[str, ViewShare]:
    matches = np.bincount(correspondences.view, minlength=len(names))
    agreeing = np.bincount(correspondences.view[inliers] if inliers is not None else [], minlength=len(names))
    return {name: ViewShare(matches=int(matches[number]), inliers=int(agreeing[number]))
            for number, name in enumerate(names)}
