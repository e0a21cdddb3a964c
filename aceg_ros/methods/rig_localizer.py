# SPDX-License-Identifier: Apache-2.0
"""The localizer of rigs of cameras, for maps with a keyframe database.

Its steps are those of one camera (`keyframe_localizer`), with one pose of the base for all images: extract and match
each image, estimate hypotheses by RANSAC on the rays of all cameras and on those of each, look again in every image for
the landmarks that should be visible, take the most significant pose, verify it. A camera that is missing, covered or
lost contributes no matches, and costs nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from aceg_ros.camera import Frame
from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.int8 import in_int8
from aceg_ros.encoders.keypoints import Keypoints, extract_frame_keypoints
from aceg_ros.encoders.preprocess import reject_image
from aceg_ros.errors import UserError
from aceg_ros.estimate import ImageCorrespondences, PoseEstimate, Status
from aceg_ros.maps.descriptor_index import ObservationMatcher
from aceg_ros.maps.keyframe_database import SECTION, KeyframeDatabase
from aceg_ros.maps.retrieval import Shortlist
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.landmark_search import FirstMatches, KeyframeLocalizerConfig, LandmarkSearch
from aceg_ros.methods.scene_coordinates import encoder_of
from aceg_ros.pose.correspondences import CameraFromMap, Correspondences
from aceg_ros.pose.guided import GuidedPose, greatest_beside, refine_guided
from aceg_ros.pose.rig import RigCorrespondences, UsableRigCorrespondences
from aceg_ros.pose.significance import Significance, compute_significance
from aceg_ros.pose.verify import verify_guided_pose
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
        self._encoder, self._config = encoder, config
        self._search = LandmarkSearch(database, config, str(encoder.device))

    @classmethod
    def from_map(cls, scene_map: SceneMap, *, device: str = "auto", seed: int = 0) -> RigLocalizer:
        """Make the localizer of a map, for any rig, with the encoder that the map was made with.

        Raises UserError if the map has no keyframe database, its encoder has changed since, or it is damaged.
        """
        if SECTION not in scene_map.sections:
            raise UserError("The map has no keyframe database, which rigs of cameras are localized with: map the"
                            " recording again with the default method.")
        config = KeyframeLocalizerConfig(covariance_scale=scene_map.covariance_scale, seed=seed)
        return cls(encoder=in_int8(encoder_of(scene_map, pick_device(device))), config=config,
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
        search, config, stopwatch = self._search, self._config, stopwatch or Stopwatch()
        views = [_View(rig_from_camera=rig.rig_from_camera[name], query=query, shortlist=search.shortlist(query),
                       matcher=ObservationMatcher(query, search.database)) for name, query in queries.items()]
        stopwatch.lap("retrieve")
        first = self._match(views, config.shortlist)
        stopwatch.lap("match")
        poses = self._new_poses(views, first.correspondences, [], chance_is_tried=True)
        good = search.is_any_good(poses, first)
        if not good:
            views = [replace(view, shortlist=search.ranked(view.query, view.shortlist)) for view in views]
            first = self._match(views, config.ranked_shortlist)
            poses += self._new_poses(views, first.correspondences, poses)
            good = search.is_any_good(poses, first)
        for matches in (*self._contradicting(first, poses), *self._other_places(views, good)):
            poses += self._new_poses(views, matches, poses)
        found, competitor = self._most_significant(views, poses)
        stopwatch.lap("solve")
        if found is None:
            base = PoseEstimate(status=Status.NO_CONSENSUS,
                                message=f"no pose agrees with the {first} of {len(views)} images")
            shares = _shares(list(queries), _of_rig(first), None)
        else:
            base = verify_guided_pose(found, competitor, first.correspondences, config.gates,
                                      distinctive=partial(search.count_distinctive, found, first))
            assert isinstance(found.correspondences, RigCorrespondences)
            shares = _shares(list(queries), found.correspondences, base.inlier_indices)
        stopwatch.lap("gates")
        return RigEstimate(base=replace(base.with_covariance_times(config.covariance_scale),
                                        stage_ms=stopwatch.laps_ms), views=shares)

    def _match(self, views: Sequence[_View], count: int) -> FirstMatches:
        """Match each image with the first keyframes of its shortlist."""
        parts = [self._match_view(view, view.shortlist.keyframes[:count]) for view in views]
        return FirstMatches(
            correspondences=_joined([part.correspondences for part in parts], views),
            descriptors=torch.cat([part.descriptors for part in parts]),
            landmarks=np.concatenate([part.landmarks for part in parts]), total=sum(part.total for part in parts))

    def _match_view(self, view: _View, keyframes: np.ndarray) -> FirstMatches:
        return self._search.first_matches(view.query, view.matcher.match(keyframes))

    def _other_places(self, views: Sequence[_View], good: bool) -> list[RigCorrespondences]:
        """Match images with groups of keyframes that show one place: where a pose is good, only with other places that
        look alike in that image."""
        found = []
        for view in views:
            for group in self._search.other_places(view.shortlist, good):
                similarity = view.shortlist.similarity[view.shortlist.keyframes == group[0]]
                found.append((float(similarity[0]), view, group))
        found.sort(key=lambda one: -one[0])
        return [_joined([self._match_view(view, group[:self._config.ranked_shortlist]).correspondences], [view])
                for _, view, group in found[:self._config.group_hypotheses]]

    def _contradicting(self, first: FirstMatches, poses: Sequence[GuidedPose]) -> list[RigCorrespondences]:
        """Return the matches of each image that does not confirm the best pose, which may tell another one."""
        if not poses:
            return []
        confirming, matches = self._confirming(self._best(poses)), _of_rig(first)
        return [matches.of_view(number) for number in range(len(matches.views)) if number not in confirming]

    def _new_poses(self, views: Sequence[_View], correspondences: Correspondences, known: Sequence[GuidedPose], *,
                   chance_is_tried: bool = False) -> list[GuidedPose]:
        """Return the pose that RANSAC finds with the matches of all images; if it is not clear, also those of each.
        None is at a pose that is known."""
        assert isinstance(correspondences, RigCorrespondences)
        poses: list[GuidedPose] = []
        parts = [correspondences.of_view(number) for number in range(len(correspondences.views))]
        for tried in [correspondences, *(parts if len(parts) > 1 else [])]:
            hypothesis = self._search.find_hypothesis(tried, chance_is_tried=chance_is_tried)
            if hypothesis is None:
                continue
            if not self._search.is_known(hypothesis.pose, [*known, *poses]):
                pose = self._look(views, hypothesis.pose)
                poses += [] if pose is None else [pose]
            if hypothesis.log10_nfa < self._config.guided.clear_log10_nfa:
                break
        return poses

    def _most_significant(self, views: Sequence[_View], poses: list[GuidedPose]
                          ) -> tuple[GuidedPose | None, Significance | None]:
        """Return the most significant pose, and the greatest significance of one at another place; None where there is
        none."""
        if not poses:
            return None, None
        best = self._best(poses)
        competing = self._search.elsewhere(poses, best)
        best = self._search.settle(best, partial(self._look, views))
        # An image that contradicts several others is that of a camera that has failed, not of a place that looks alike.
        most = MAX_CONTRADICTING_SHARE * len(self._confirming(best))
        competing = [other for other in competing if len(self._confirming(other)) > most]
        return best, greatest_beside(competing, best, self._config.guided)

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
        found = [self._search.look_for_visible(view.query, rig_pose.map_from_camera @ view.rig_from_camera)
                 for view in views]
        return refine_guided(_joined([correspondences for correspondences, _ in found], views),
                             np.concatenate([similarity for _, similarity in found]), rig_pose, self._config.guided)


def _joined(parts: Sequence[Correspondences], views: Sequence[_View]) -> RigCorrespondences:
    return RigCorrespondences.join([(part, view.rig_from_camera) for part, view in zip(parts, views, strict=True)])


def _of_rig(first: FirstMatches) -> RigCorrespondences:
    assert isinstance(first.correspondences, RigCorrespondences)
    return first.correspondences


def _missing(name: str) -> PoseEstimate:
    return PoseEstimate(status=Status.BAD_IMAGE, message=f"there is no image of camera {name}")


def _shares(names: Sequence[str], correspondences: RigCorrespondences, inliers: np.ndarray | None
            ) -> dict[str, ViewShare]:
    agrees = np.zeros(len(correspondences.view), bool)
    if inliers is not None:
        agrees[inliers] = True
    shares = {}
    for number, (name, view) in enumerate(zip(names, correspondences.views, strict=True)):
        rows = np.flatnonzero(correspondences.view == number)
        agreeing = np.flatnonzero(agrees[rows])
        shares[name] = ViewShare(
            matches=len(rows), inliers=len(agreeing), inlier_indices=agreeing,
            correspondences=ImageCorrespondences(pixels=correspondences.pixels[rows],
                                                 points=correspondences.points[rows], camera=view.camera))
    return shares
