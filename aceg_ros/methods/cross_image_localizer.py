# SPDX-License-Identifier: Apache-2.0
"""The localizer of method sacreg.

Its steps: extract keypoints, retrieve keyframes, regress the map points of the keypoints from the tokens of these,
estimate the pose from the most confident ones, verify it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from aceg_ros.camera import Frame
from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.keypoints import Keypoints, extract_frame_keypoints, spread_over_image
from aceg_ros.estimate import ImageCorrespondences, PoseEstimate, PriorPose
from aceg_ros.maps.header import MIN_COVARIANCE_SCALE
from aceg_ros.maps.keyframe_database import SECTION, KeyframeDatabase
from aceg_ros.maps.keyframe_tokens import SECTION as TOKENS
from aceg_ros.maps.keyframe_tokens import StoredTokens, select_landmarks
from aceg_ros.maps.retrieval import KeyframeRetrieval
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.localize_frame import localize_frame
from aceg_ros.methods.scene_coordinates import encoder_of
from aceg_ros.networks.cross_image_fusion import CrossImageWeights, regress_points
from aceg_ros.networks.cross_image_regressor import CrossImageRegressor, KeyframeTokens
from aceg_ros.networks.keyframe_mixer import existing, padded
from aceg_ros.pose.config import SolverConfig
from aceg_ros.pose.correspondences import Correspondences
from aceg_ros.pose.verify import estimate_verified_pose
from aceg_ros.utils.device import half_precision, pick_device
from aceg_ros.utils.stopwatch import Stopwatch

MIXED_AT_ONCE = 4                   # keyframes, which bounds the memory


@dataclass(frozen=True, kw_only=True)
class CrossImageLocalizerConfig:
    """Settings of the localizer.

    keypoints: number of the most reliable keypoints that the query's tokens are chosen from. retrieval_keypoints:
    number of them that keyframes are retrieved by. block_cells: side of the blocks, in cells, that tokens are spread
    over. late: fuse late instead of early. solver: its threshold is narrower than for centres of cells, since keypoints
    are sub-pixel (chosen on held-out chunks of mapping parts). covariance_scale: of the map, see `mapping.calibration`.
    seed: of RANSAC.
    """

    keypoints: int = 1500
    retrieval_keypoints: int = 600
    block_cells: int = 2
    late: bool = False
    solver: SolverConfig = field(default_factory=lambda: SolverConfig(ransac_threshold_px=12.0))
    covariance_scale: float = MIN_COVARIANCE_SCALE
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class QueryCoordinates:
    """Keypoints of an image with the map points that the network regresses: pixels (N, 2), points (N, 3), and which of
    them are confident (N,)."""

    pixels: np.ndarray
    points: np.ndarray
    confident: np.ndarray


class CrossImageLocalizer:
    """A `Localizer` that estimates the pose from regressed points. tokens: of the database; None: they are mixed."""

    def __init__(self, *, encoder: Encoder, database: KeyframeDatabase, net: CrossImageRegressor,
                 config: CrossImageLocalizerConfig, tokens: StoredTokens | None = None):
        self._encoder, self._database, self._net, self._config = encoder, database, net, config
        self._retrieval = KeyframeRetrieval(database, str(encoder.device))
        self._tokens = mix_keyframes(net, database) if tokens is None else tokens
        self._frame = CanonicalFrame.of(database, net)

    @classmethod
    def from_map(cls, scene_map: SceneMap, weights: CrossImageWeights, *, fusion: str, device: str = "auto",
                 seed: int = 0) -> CrossImageLocalizer:
        """Make the localizer of a map with a keyframe database.

        Raises UserError if the encoder has changed since mapping, or the map is damaged.
        """
        encoder = encoder_of(scene_map, pick_device(device))
        config = CrossImageLocalizerConfig(late=fusion == "late", covariance_scale=scene_map.covariance_scale,
                                           seed=seed)
        database = KeyframeDatabase.from_section(scene_map.sections[SECTION])
        tokens = None
        if TOKENS in scene_map.sections:
            tokens = StoredTokens.from_section(scene_map.sections[TOKENS], database)
        return cls(encoder=encoder, database=database, net=weights.net, config=config, tokens=tokens)

    def localize(self, frame: Frame, prior: PriorPose | None = None) -> PoseEstimate:
        """Estimate the pose of the camera in the map, or reject the image; `prior` is not used."""
        return localize_frame(frame, self.extract, self.localize_keypoints)

    def localize_keypoints(self, query: Keypoints, stopwatch: Stopwatch | None = None) -> PoseEstimate:
        """Estimate the pose of the camera from the keypoints of its image."""
        stopwatch = stopwatch or Stopwatch()
        shortlist = self.retrieve(query)
        stopwatch.lap("retrieve")
        found = self.regress_query(query, shortlist)
        stopwatch.lap("head")
        correspondences = Correspondences(pixels=found.pixels, points=found.points, camera=query.camera,
                                          mask=found.confident)
        estimate = estimate_verified_pose(correspondences, self._config.solver, seed=self._config.seed)
        stopwatch.lap("solve")
        shown = ImageCorrespondences(pixels=found.pixels, points=found.points, camera=query.camera)
        return replace(estimate.with_covariance_times(self._config.covariance_scale),
                       stage_ms=estimate.stage_ms | stopwatch.laps_ms, correspondences=shown)

    def extract(self, frame: Frame) -> Keypoints:
        """Extract the keypoints of a frame, which must have passed `reject_image`."""
        return extract_frame_keypoints(frame, self._encoder, self._config.keypoints)

    def retrieve(self, query: Keypoints) -> np.ndarray:
        """Return the keyframes (K,) that are fused."""
        count = self._net.config.late if self._config.late else self._net.config.early
        return self._retrieval.find(query.descriptors[:self._config.retrieval_keypoints], count).keyframes

    @torch.inference_mode()
    def regress_query(self, query: Keypoints, keyframes: np.ndarray) -> QueryCoordinates:
        """Regress the map points of keypoints that are spread over the image, from some keyframes."""
        config = self._net.config
        chosen = spread_over_image(query.pixels, config.query_tokens, self._config.block_cells * query.stride)
        pixels = query.pixels[chosen].astype(np.float64)
        if len(chosen) == 0:
            return QueryCoordinates(pixels=pixels, points=np.zeros((0, 3)), confident=np.zeros(0, bool))
        positions = torch.from_numpy(query.pixels[chosen]).to(query.descriptors.device) / config.position_px
        found = regress_points(self._net, query.descriptors[torch.from_numpy(chosen)], positions,
                               self._groups(keyframes))
        return QueryCoordinates(pixels=pixels, points=self._frame.to_map(found.points),
                                confident=found.most_confident(config.confident_share).cpu().numpy())

    def _groups(self, keyframes: np.ndarray) -> KeyframeTokens:
        """Return the tokens of keyframes, as one group or each as its own."""
        landmarks, vectors = zip(*(self._tokens.of(int(keyframe)) for keyframe in keyframes), strict=True)
        length = max(len(part) for part in vectors)
        points = [self._frame.from_map(self._database.points_array[part]) for part in landmarks]
        groups = (padded(list(vectors), length), padded(points, length), existing(list(vectors), length))
        device = next(self._net.parameters()).device
        return KeyframeTokens(*((each[:, None] if self._config.late else each[None]).to(device) for each in groups))


@dataclass(frozen=True, kw_only=True)
class CanonicalFrame:
    """The coordinates that the network sees: those of the map, from its middle, in a scale that maps of any unit share.

    origin: (3,) in the map. scale: canonical units per map unit.
    """

    origin: np.ndarray
    scale: float

    @classmethod
    def of(cls, database: KeyframeDatabase, net: CrossImageRegressor) -> CanonicalFrame:
        """Return the frame of a database, by the median depth of its landmarks."""
        return cls(origin=np.median(database.points_array, axis=0),
                   scale=net.config.canonical_depth / float(np.median(database.depths_m)))

    def from_map(self, points: np.ndarray) -> Tensor:
        """Convert map points (N, 3)."""
        return torch.from_numpy((points - self.origin) * self.scale)

    def to_map(self, points: Tensor) -> np.ndarray:
        """Convert points (N, 3) back to the map."""
        return points.double().cpu().numpy() / self.scale + self.origin


@torch.inference_mode()
def mix_keyframes(net: CrossImageRegressor, database: KeyframeDatabase) -> StoredTokens:
    """Make the tokens of all keyframes of a database."""
    device = next(net.parameters()).device
    frame = CanonicalFrame.of(database, net)
    landmarks: list[np.ndarray] = []
    vectors: list[Tensor] = []
    descriptors = database.unit_descriptors(device)
    for start in range(0, len(database), MIXED_AT_ONCE):
        selected = [select_landmarks(database, keyframe, net.config.tokens)
                    for keyframe in range(start, min(start + MIXED_AT_ONCE, len(database)))]
        chosen = [database.landmark_array[each.observations] for each in selected]
        length = max(1, *(len(each) for each in chosen))
        pixels = [torch.from_numpy(each.pixels).float() / net.config.position_px for each in selected]
        points = [frame.from_map(database.points_array[each]) for each in chosen]
        compared = [descriptors[torch.from_numpy(each.observations)].float() for each in selected]
        with half_precision(device.type):
            mixed = net.mix(padded(compared, length), padded(pixels, length).to(device),
                            padded(points, length).to(device), existing(pixels, length).to(device))
        landmarks += chosen
        vectors += [row[:len(each)].cpu() for row, each in zip(mixed, chosen, strict=True)]
    return StoredTokens.stack(landmarks, vectors)
