# SPDX-License-Identifier: Apache-2.0
"""Draws an image beside the keyframes that it was matched with, and the matches that agree with its pose."""

from __future__ import annotations

import cv2
import numpy as np

from aceg_ros.camera import Frame, project_map_points
from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.keypoints import Keypoints, extract_keypoints
from aceg_ros.encoders.preprocess import prepare
from aceg_ros.estimate import PoseEstimate
from aceg_ros.maps.descriptor_index import ObservationMatcher
from aceg_ros.maps.keyframe_database import SECTION, KeyframeDatabase
from aceg_ros.maps.retrieval import KeyframeRetrieval
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.visualization.overlay import INLIER, OUTLIER

KEYFRAMES, KEYPOINTS, RETRIEVAL_KEYPOINTS = 3, 1500, 600
AGREEING_PX = 6.0
MAX_LINES = 40
DOT_PX, GAP_PX = 3, 8


class ShortlistDrawing:
    """Draws images of one map, whose keyframes are shown by their landmarks: maps hold no images.

    encoder: that of the map. Only for maps with a keyframe database; see `can_draw`.
    """

    def __init__(self, scene_map: SceneMap, encoder: Encoder):
        self._database, self._encoder = KeyframeDatabase.from_section(scene_map.sections[SECTION]), encoder
        self._retrieval = KeyframeRetrieval(self._database, str(encoder.device))
        same = len(scene_map.cloud_rgb) == len(self._database.points)
        self._colours = scene_map.cloud_rgb if same else np.full((len(self._database.points), 3), 200, np.uint8)

    @staticmethod
    def can_draw(scene_map: SceneMap) -> bool:
        return SECTION in scene_map.sections

    def draw(self, frame: Frame, estimate: PoseEstimate) -> np.ndarray:
        """Return the image beside each of the KEYFRAMES most similar keyframes, one a row, (H, W, 3) uint8 RGB, with
        lines for some matches: green if they agree with the pose of the estimate, red if not, or without a pose."""
        image, camera, mask = prepare(frame, self._encoder.short_side_px, self._encoder.stride)
        query = extract_keypoints(image, camera, self._encoder, mask=mask, max_count=KEYPOINTS)
        keyframes = self._retrieval.find(query.descriptors[:RETRIEVAL_KEYPOINTS], KEYFRAMES).keyframes
        matcher, rows = ObservationMatcher(query, self._database), []
        for keyframe in keyframes.tolist():
            gap = np.full((image.shape[0], GAP_PX, 3), 255, np.uint8)
            row = np.concatenate([image, gap, self._keyframe(keyframe, image.shape[0])], axis=1)
            self._draw_matches(row, query, matcher, keyframe, left=image.shape[1] + GAP_PX, estimate=estimate)
            rows.append(np.pad(row, ((0, GAP_PX), (0, 0), (0, 0)), constant_values=255))
        widest = max(row.shape[1] for row in rows)
        return np.concatenate([np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0)), constant_values=255)
                               for row in rows])

    def _keyframe(self, keyframe: int, height: int) -> np.ndarray:
        """Return the landmarks that a keyframe saw, where it saw them, at the height of the image."""
        size = self._database.sizes[keyframe].tolist()
        scale = height / size[1]
        tile = np.full((height, max(1, round(size[0] * scale)), 3), 30, np.uint8)
        rows = self._database.observations_of([keyframe])
        for (x, y), landmark in zip(self._database.pixels_of(keyframe) * scale, self._database.landmark_array[rows],
                                    strict=True):
            cv2.circle(tile, (round(x), round(y)), DOT_PX, self._colours[landmark].tolist(), -1)
        cv2.putText(tile, f"keyframe {keyframe}", (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1,
                    cv2.LINE_AA)
        return tile

    def _draw_matches(self, canvas: np.ndarray, query: Keypoints, matcher: ObservationMatcher, keyframe: int, *,
                      left: int, estimate: PoseEstimate) -> None:
        matches = matcher.match([keyframe])
        agrees = np.zeros(len(matches), bool)
        if estimate.map_from_camera is not None and len(matches):
            pixels, depth = project_map_points(self._database.points_array[matches.landmarks], query.camera,
                                               estimate.map_from_camera)
            agrees = (depth > 0) & (np.linalg.norm(pixels - query.pixels[matches.keypoints], axis=1) < AGREEING_PX)
        rows = self._database.observations_of([keyframe])
        place = dict(zip(self._database.landmark_array[rows].tolist(), self._database.pixels_of(keyframe).tolist(),
                         strict=True))
        scale = canvas.shape[0] / float(self._database.sizes[keyframe][1])
        # The agreeing ones last, and above the others; some of each, so that they can be told from each other.
        for chosen, colour in ((np.flatnonzero(~agrees), OUTLIER), (np.flatnonzero(agrees), INLIER)):
            for index in chosen[::max(1, -(-len(chosen) // MAX_LINES))].tolist():
                x, y = place[int(matches.landmarks[index])]
                start = tuple(round(float(value)) for value in query.pixels[matches.keypoints[index]])
                cv2.line(canvas, start, (round(left + x * scale), round(y * scale)), colour, 1, cv2.LINE_AA)
