# SPDX-License-Identifier: Apache-2.0
"""Scene coordinates from a keyframe database: each keypoint of an image gets the point of its best match in the most
similar keyframes, right or wrong."""

from __future__ import annotations

import torch

from aceg_ros.camera import Frame
from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.keypoints import extract_frame_keypoints
from aceg_ros.maps.descriptor_index import ObservationMatcher
from aceg_ros.maps.keyframe_database import SECTION, KeyframeDatabase
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.landmark_search import KeyframeLocalizerConfig, LandmarkSearch
from aceg_ros.methods.scene_coordinates import SceneCoordinates, encoder_of
from aceg_ros.utils.stopwatch import Stopwatch


class MatchedCoordinates:
    """Predicts the map points of the keypoints of an image that have a match."""

    def __init__(self, encoder: Encoder, database: KeyframeDatabase):
        self._encoder, self._config = encoder, KeyframeLocalizerConfig()
        self._search = LandmarkSearch(database, self._config, str(encoder.device))

    @classmethod
    def from_map(cls, scene_map: SceneMap, device: str) -> MatchedCoordinates:
        """Make it for a map with a keyframe database. Raises UserError if its encoder has changed, or it is damaged."""
        return cls(encoder_of(scene_map, device), KeyframeDatabase.from_section(scene_map.sections[SECTION]))

    @property
    def stride(self) -> int:
        """Pixels a cell of the encoder."""
        return self._encoder.stride

    @torch.inference_mode()
    def scene_coordinates(self, frame: Frame) -> SceneCoordinates:
        """Predict the map points of a frame, which must have passed `reject_image`. Their confidence is the similarity
        of the match."""
        stopwatch = Stopwatch()
        query = extract_frame_keypoints(frame, self._encoder, self._config.keypoints)
        stopwatch.lap("encode")
        keyframes = self._search.shortlist(query).keyframes[:self._config.shortlist]
        stopwatch.lap("retrieve")
        matches = ObservationMatcher(query, self._search.database).match(keyframes)
        found = self._search.correspondences(query, matches)
        stopwatch.lap("match")
        return SceneCoordinates(pixels=found.pixels, points=found.points, camera=found.camera, mask=None,
                                reliability=None, confidence=matches.similarity, stage_ms=stopwatch.laps_ms)
