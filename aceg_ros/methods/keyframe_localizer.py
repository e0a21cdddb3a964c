# SPDX-License-Identifier: Apache-2.0
"""The localizer for maps with a keyframe database.

Its steps: extract keypoints, retrieve a shortlist of keyframes, match with their landmarks, estimate hypotheses by
RANSAC, look again for every landmark that should be visible from each, take the most significant pose, verify it.

With a prior, the image is tracked first, at a part of its size: fewer keypoints are matched with the keyframes near the
prior, beside the best one retrieved of another place, and fewer landmarks are searched for. A good and certain pose
where the prior says is the answer, without RANSAC; else all is done as without a prior, and the keyframes near it are
matched again if no pose is accepted.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.cuda_graphs import CudaGraphs
from aceg_ros.encoders.image_views import ImageView
from aceg_ros.encoders.int8 import in_int8
from aceg_ros.encoders.keypoints import Keypoints, extract_frame_keypoints
from aceg_ros.encoders.preprocess import reject_image, working_size
from aceg_ros.estimate import ImageCorrespondences, PoseEstimate, PriorPose, Status
from aceg_ros.maps.descriptor_index import ObservationMatcher
from aceg_ros.maps.keyframe_database import SECTION, KeyframeDatabase
from aceg_ros.maps.places import show_place_of, twin_groups
from aceg_ros.maps.retrieval import Shortlist
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.landmark_search import FirstMatches, KeyframeLocalizerConfig, LandmarkSearch
from aceg_ros.methods.localize_frame import localize_frame
from aceg_ros.methods.other_views import OtherViews, ViewsInTurn
from aceg_ros.methods.scene_coordinates import encoder_of
from aceg_ros.methods.tracking_schedule import TrackingSchedule
from aceg_ros.pose.correspondences import CameraFromMap
from aceg_ros.pose.gates import check_competitor, check_significance
from aceg_ros.pose.guided import GuidedPose, greatest_beside, refine_from_prior, refine_guided
from aceg_ros.pose.significance import Significance
from aceg_ros.pose.verify import verify_guided_pose
from aceg_ros.utils.device import pick_device
from aceg_ros.utils.stopwatch import Stopwatch

UNUSABLE = (Status.BAD_IMAGE, Status.BAD_CAMERA)
PRIOR_SIGMAS = 3.0      # of a prior, within which the pose is searched for


class KeyframeLocalizer:
    """A `Localizer` that estimates the pose from the landmarks of a keyframe database."""

    def __init__(self, *, encoder: Encoder, database: KeyframeDatabase, config: KeyframeLocalizerConfig):
        self._encoder, self._config = encoder, config
        self._search = LandmarkSearch(database, config, str(encoder.device))
        self._views = OtherViews(encoder=encoder, similarity=self.greatest_similarity, keypoints=config.keypoints,
                                 compared_keypoints=config.retrieval_keypoints)
        self._in_turn: ViewsInTurn | None = None
        self._tracking: TrackingSchedule | None = None

    @classmethod
    def from_map(cls, scene_map: SceneMap, *, device: str = "auto", seed: int = 0) -> KeyframeLocalizer:
        """Make the localizer of a map, with the encoder that it was made with.

        Raises UserError if the encoder has changed since, or the database is damaged.
        """
        encoder = in_int8(encoder_of(scene_map, pick_device(device)))
        if encoder.device.type == "cuda":
            encoder = replace(encoder, graphs=CudaGraphs())
        config = KeyframeLocalizerConfig(covariance_scale=scene_map.covariance_scale, seed=seed)
        return cls(encoder=encoder, database=KeyframeDatabase.from_section(scene_map.sections[SECTION]), config=config)

    def for_stream(self) -> KeyframeLocalizer:
        """Return a localizer with the same map for the images of one stream: of an image that is rejected it tries one
        other view, the next one of the next such image, so that the images after it are not late; and it does not
        track all images where that is not enough."""
        localizer = copy.copy(self)
        localizer._in_turn, localizer._tracking = ViewsInTurn(self._views), TrackingSchedule()
        return localizer

    def warm_up(self) -> None:
        """Localize a keyframe by its own observations, with a prior and without, and take the steps of harder
        images."""
        query, map_from_camera = self._search.keypoints_of_a_keyframe(self._encoder.stride)
        self._search.warm_up(query)
        for prior in (PriorPose(map_from_camera=map_from_camera, covariance=1e-4 * np.eye(6)), None):
            self.localize_keypoints(query, prior=prior)

    def localize(self, frame: Frame, prior: PriorPose | None = None) -> PoseEstimate:
        """Estimate the pose of the camera in the map, or reject the image. A good prior saves time; a wrong one costs
        some. An image without a prior that is rejected is tried smaller and turned, which takes longer than the image
        itself."""
        poses: list[GuidedPose] = []
        tracking = Stopwatch()
        if prior is not None and reject_image(frame) is None:
            tracked = self._track_smaller(frame, prior, tracking)
            if tracked is not None:
                return tracked
        estimate = localize_frame(frame, self.extract, lambda query, stopwatch: self._search_map(
            query, stopwatch, prior, poses))
        if tracking.laps_ms:
            estimate = replace(estimate, stage_ms={"track": sum(tracking.laps_ms.values())} | estimate.stage_ms)
        if estimate.accepted or prior is not None or estimate.status in UNUSABLE or not self._config.other_views:
            return estimate
        if self._are_ambiguous(poses):          # other views would find the same two places
            return estimate
        stopwatch = Stopwatch()
        views = self._in_turn or self._views
        found = views.localize(frame, partial(self._localize_view, known=poses, ranks=self._in_turn is None))
        stopwatch.lap("other views")
        return replace(found or estimate, stage_ms=estimate.stage_ms | stopwatch.laps_ms)

    def extract(self, frame: Frame) -> Keypoints:
        """Extract the keypoints of a frame, which must have passed `reject_image`."""
        return extract_frame_keypoints(frame, self._encoder, self._config.keypoints)

    def greatest_similarity(self, query: Keypoints) -> float:
        """Return how similar, in [0, 1], an image is to the most similar keyframe: to choose one of several maps."""
        return self._search.greatest_similarity(query)

    def localize_keypoints(self, query: Keypoints, stopwatch: Stopwatch | None = None, *,
                           prior: PriorPose | None = None) -> PoseEstimate:
        """Estimate the pose of the camera from the keypoints of its image."""
        stopwatch = stopwatch or Stopwatch()
        radius_px = None if prior is None else self._window_px(prior, query.camera)
        if prior is not None and radius_px is not None:
            tracked = self._track(query.best(self._config.tracked_keypoints), prior, stopwatch, radius_px=radius_px)
            if tracked is not None:
                return tracked
        return self._search_map(query, stopwatch, prior, [])

    def _search_map(self, query: Keypoints, stopwatch: Stopwatch, prior: PriorPose | None, poses: list[GuidedPose]
                    ) -> PoseEstimate:
        """Estimate the pose without tracking. Adds all poses that are found to `poses`."""
        shortlist = self._search.shortlist(query)
        stopwatch.lap("retrieve")
        matcher = ObservationMatcher(query, self._search.database)
        estimate = self._find(matcher, shortlist, stopwatch, prior=prior, poses=poses)
        return replace(estimate.with_covariance_times(self._config.covariance_scale), stage_ms=stopwatch.laps_ms)

    def _localize_view(self, query: Keypoints, view: ImageView, known: list[GuidedPose], ranks: bool) -> PoseEstimate:
        """Estimate the pose of the camera of a view of an image that was rejected. Only if that would be accepted, it
        is compared with poses at other places, also those that the image as it is has given. ranks: whether keyframes
        are ranked also before a pose would be accepted, which is rarely worth its time here."""
        shortlist = self._search.shortlist(query)
        matcher = ObservationMatcher(query, self._search.database)
        poses: list[GuidedPose] = []
        first, good = self._find_first(matcher, shortlist, Stopwatch(), poses)
        if ranks and not good:
            first, shortlist, good = self._find_ranked(matcher, shortlist, poses)
        estimate = self._verify(*self._most_significant(query, poses), first)
        if estimate.accepted:
            if not ranks and not good:
                _, shortlist, good = self._find_ranked(matcher, shortlist, poses)
            seen = (self._look(query, view.pose_of(other.pose)) for other in known)
            poses += [pose for pose in seen if pose is not None]
            poses += self._poses_elsewhere(matcher, shortlist, good, poses)
            estimate = self._verify(*self._most_significant(query, poses), first)
        return estimate.with_covariance_times(self._config.covariance_scale)

    def _find(self, matcher: ObservationMatcher, shortlist: Shortlist, stopwatch: Stopwatch, *,
              prior: PriorPose | None, poses: list[GuidedPose]) -> PoseEstimate:
        """Find the pose in the whole map; if none is accepted, at the place of the prior. Adds all poses to `poses`."""
        first, good = self._find_first(matcher, shortlist, stopwatch, poses)
        if not good:
            first, shortlist, good = self._find_ranked(matcher, shortlist, poses)
        poses += self._poses_elsewhere(matcher, shortlist, good, poses)
        found, competitor = self._most_significant(matcher.query, poses)
        stopwatch.lap("solve")
        estimate = self._verify(found, competitor, first)
        stopwatch.lap("gates")
        if prior is not None and not estimate.accepted:
            estimate = self._find_near(matcher, prior, poses) or estimate
            stopwatch.lap("prior")
        return estimate

    def _find_first(self, matcher: ObservationMatcher, shortlist: Shortlist, stopwatch: Stopwatch,
                    poses: list[GuidedPose]) -> tuple[FirstMatches, bool]:
        """Add the pose at the most similar keyframes to `poses`. Returns their matches, and whether it is good."""
        first = self._match(matcher, shortlist.keyframes[:self._config.shortlist])
        stopwatch.lap("match")
        poses += self._new_poses(matcher.query, first, [], chance_is_tried=True)
        return first, self._search.is_any_good(poses, first)

    def _find_ranked(self, matcher: ObservationMatcher, shortlist: Shortlist, poses: list[GuidedPose]
                     ) -> tuple[FirstMatches, Shortlist, bool]:
        """Rank the keyframes, and add the pose at the first ones to `poses`. Returns their matches, the ranked
        shortlist, and whether a pose is good."""
        shortlist = self._search.ranked(matcher.query, shortlist)
        first = self._match(matcher, shortlist.keyframes[:self._config.ranked_shortlist])
        poses += self._new_poses(matcher.query, first, poses)
        return first, shortlist, self._search.is_any_good(poses, first)

    def _track_smaller(self, frame: Frame, prior: PriorPose, stopwatch: Stopwatch) -> PoseEstimate | None:
        """Track the image at a part of its size, which its features are extracted of in half of the time; not where
        tracking was not enough for the last images of a stream."""
        config, encoder, camera = self._config, self._encoder, frame.camera.rectified()
        short_side_px = round(config.tracked_scale * encoder.short_side_px)
        size = working_size(camera.width, camera.height, short_side_px, encoder.stride)
        radius_px = self._window_px(prior, camera.resized(*size))
        if radius_px is None or not (self._tracking is None or self._tracking.next_is_tracked()):
            return None
        query = extract_frame_keypoints(frame, encoder, config.tracked_keypoints, short_side_px=short_side_px)
        stopwatch.lap("encode")
        tracked = self._track(query, prior, stopwatch, radius_px=radius_px)
        if self._tracking is not None:
            self._tracking.note(is_enough=tracked is not None)
        return tracked

    def _track(self, query: Keypoints, prior: PriorPose, stopwatch: Stopwatch, *, radius_px: float
               ) -> PoseEstimate | None:
        """Return the pose near a prior if it is good and certain, as good as those at other places that look alike, and
        where the prior says: else the prior was wrong, and so few matches are no reason not to search the map."""
        shortlist = self._search.shortlist(query)
        stopwatch.lap("retrieve")
        estimate = self._find_tracked(query, shortlist, prior, radius_px)
        stopwatch.lap("track")
        if estimate is None or not (self._is_certain(estimate) and prior.agrees_with(estimate)):
            return None
        return replace(estimate.with_covariance_times(self._config.covariance_scale), stage_ms=stopwatch.laps_ms)

    def _find_tracked(self, query: Keypoints, shortlist: Shortlist, prior: PriorPose, radius_px: float
                      ) -> PoseEstimate | None:
        """Return the pose near a prior, verified beside those at other places that look alike; None if it is not
        good."""
        search, config = self._search, self._config
        matcher = ObservationMatcher(query, search.database)
        near = search.database.nearest_keyframes(prior.map_from_camera, config.tracked_keyframes)
        # At one of two places that look alike, many matches are with keyframes of the other.
        most_similar = shortlist.keyframes[:config.shortlist]
        others = most_similar[~show_place_of(search.database, most_similar, near[0])]
        first = self._match(matcher, np.concatenate([near, others[:1]]))
        start = CameraFromMap.from_pose(prior.map_from_camera)
        refined = refine_from_prior(first.correspondences, start, radius_px, config.guided)
        pose = None if refined is None else self._look(query, refined, config.tracked_landmarks)
        if pose is None or not search.is_any_good([pose], first):
            return None
        groups = [near, *(group for group in search.other_places(shortlist, good=False)
                          if not show_place_of(search.database, group, near[0]).any())]
        poses = [pose, *self._poses_of(matcher, twin_groups(groups, shortlist, config.twin_similarity), [pose])]
        return self._verify(*self._most_significant(query, poses), first)

    def _is_certain(self, estimate: PoseEstimate) -> bool:
        """Return whether a position is as certain as fewer landmarks may leave it."""
        if estimate.map_from_camera is None or estimate.covariance is None:
            return False
        database = self._search.database
        nearest = database.nearest_keyframes(estimate.map_from_camera, 1)[0]
        depth_m = min(float(database.depths_m[nearest]), float(np.median(database.depths_m)))
        return float(np.sqrt(np.trace(estimate.covariance[:3, :3]))) < self._config.max_tracked_std_depths * depth_m

    def _find_near(self, matcher: ObservationMatcher, prior: PriorPose, poses: list[GuidedPose]) -> PoseEstimate | None:
        """Return the pose that the keyframes near a prior give, if it is accepted beside all that were found before and
        is where the prior says: nothing else speaks for it."""
        near = self._search.database.nearest_keyframes(prior.map_from_camera, self._config.ranked_shortlist)
        first = self._match(matcher, near)
        further = self._new_poses(matcher.query, first, poses)
        if not further:
            return None
        estimate = self._verify(*self._most_significant(matcher.query, poses + further), first)
        return estimate if prior.agrees_with(estimate) else None

    def _window_px(self, prior: PriorPose, camera: Camera) -> float | None:
        """Return how far a landmark may be from where the prior puts it: the window of guided matching and a few
        standard deviations. None if that is too far to begin there."""
        nearest = self._search.database.nearest_keyframes(prior.map_from_camera, 1)[0]
        std_rad = prior.rotation_std_rad + prior.position_std_m / self._search.database.depths_m[nearest]
        radius_px = float(self._config.guided.search_radius_px + PRIOR_SIGMAS * camera.fx * std_rad)
        return radius_px if radius_px <= self._config.max_tracking_window * camera.width else None

    def _match(self, matcher: ObservationMatcher, keyframes: np.ndarray) -> FirstMatches:
        return self._search.first_matches(matcher.query, matcher.match(keyframes))

    def _verify(self, found: GuidedPose | None, competitor: Significance | None, first: FirstMatches) -> PoseEstimate:
        """Accept or reject a pose, given the matches from before it was known."""
        if found is None:
            shown = first.correspondences
            estimate = PoseEstimate(status=Status.NO_CONSENSUS, message=f"no pose agrees with the {first}")
        else:
            shown = found.correspondences
            estimate = verify_guided_pose(found, competitor, first.correspondences, self._config.gates,
                                          distinctive=partial(self._search.count_distinctive, found, first))
        return replace(estimate, correspondences=ImageCorrespondences(pixels=shown.pixels, points=shown.points,
                                                                      camera=shown.camera))

    def _poses_elsewhere(self, matcher: ObservationMatcher, shortlist: Shortlist, good: bool, known: list[GuidedPose]
                         ) -> list[GuidedPose]:
        """Return the new poses that the groups of a shortlist whose first keyframes were tried give."""
        tried = shortlist.keyframes[:self._config.ranked_shortlist]
        groups = self._search.other_places(shortlist, good)[:self._config.group_hypotheses]
        return self._poses_of(matcher, [group for group in groups if not np.array_equal(group[:len(tried)], tried)],
                              known)

    def _poses_of(self, matcher: ObservationMatcher, groups: list[np.ndarray], known: list[GuidedPose]
                  ) -> list[GuidedPose]:
        """Return the new poses that the first groups of keyframes give, each by itself, where none is known."""
        poses: list[GuidedPose] = []
        for group in groups[:self._config.group_hypotheses]:
            if self._search.is_place_known(group, [*known, *poses]):
                continue
            first = self._match(matcher, group[:self._config.ranked_shortlist])
            poses += self._new_poses(matcher.query, first, [*known, *poses])
        return poses

    def _new_poses(self, query: Keypoints, first: FirstMatches, known: list[GuidedPose], *,
                   chance_is_tried: bool = False) -> list[GuidedPose]:
        """Return the pose that RANSAC finds, refined by looking again, if there is one and it is none of those that are
        known."""
        if self._search.is_explained(first.correspondences, known):
            return []
        hypothesis = self._search.find_hypothesis(first.correspondences, chance_is_tried=chance_is_tried)
        if hypothesis is None or self._search.is_known(hypothesis.pose, known):
            return []
        pose = self._look(query, hypothesis.pose)
        return [] if pose is None else [pose]

    def _most_significant(self, query: Keypoints, poses: list[GuidedPose]
                          ) -> tuple[GuidedPose | None, Significance | None]:
        """Return the most significant pose, and the greatest significance of one at another place; None where there is
        none."""
        if not poses:
            return None, None
        best = min(poses, key=_total_log10_nfa)
        competing = self._search.elsewhere(poses, best)
        best = self._search.settle(best, partial(self._look, query))
        return best, greatest_beside(competing, best, self._config.guided)

    def _are_ambiguous(self, poses: list[GuidedPose]) -> bool:
        """Return whether there are significant poses at two places."""
        best = min(poses, key=_total_log10_nfa, default=None)
        if best is None or check_significance(best.significance, self._config.gates) is not None:
            return False
        competitor = greatest_beside(self._search.elsewhere(poses, best), best, self._config.guided)
        return check_competitor(best.significance, competitor, self._config.gates) is not None

    def _look(self, query: Keypoints, pose: CameraFromMap, count: int | None = None) -> GuidedPose | None:
        """Look for the landmarks that should be visible from a pose, and refine it on those found."""
        correspondences, similarity = self._search.look_for_visible(query, pose.map_from_camera, count)
        return refine_guided(correspondences, similarity, pose, self._config.guided)


def _total_log10_nfa(pose: GuidedPose) -> float:
    """Return what the most significant pose has the least of."""
    return pose.significance.log10_nfa + pose.overall.log10_nfa
