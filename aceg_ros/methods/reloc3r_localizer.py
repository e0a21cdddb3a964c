# SPDX-License-Identifier: Apache-2.0
"""The localizer for maps of posed keyframes.

Its steps: extract keypoints, retrieve a shortlist of keyframes, estimate a relative pose to each, average them. If they
come with matches, which all but those of the published network do, the pose is then estimated on all matches, and
accepted if those of several keyframes agree.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from aceg_ros.camera import Frame
from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.keypoints import select_keypoints
from aceg_ros.encoders.preprocess import image_to_tensor, prepare
from aceg_ros.errors import UserError
from aceg_ros.estimate import PoseEstimate, PriorPose, Status
from aceg_ros.maps.header import MIN_COVARIANCE_SCALE
from aceg_ros.maps.posed_keyframes import SECTION, PosedKeyframes
from aceg_ros.maps.retrieval import WordRetrieval
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.localize_frame import localize_frame
from aceg_ros.methods.reloc3r import NETWORK, ROLE, TOKENS_SECTION, Reloc3rMapSettings
from aceg_ros.methods.reloc3r_pairs import MatchedPoses, QueryImage, RelativePoseSource
from aceg_ros.methods.scene_coordinates import encoder_of
from aceg_ros.pose.gates import Rejection
from aceg_ros.pose.matched_pose import MatchedPoseConfig, locate_by_matches
from aceg_ros.pose.motion_averaging import AveragedPose, AveragingConfig, average_robustly
from aceg_ros.utils.device import pick_device
from aceg_ros.utils.stopwatch import Stopwatch


@dataclass(frozen=True, kw_only=True)
class Reloc3rConfig:
    """Settings of the localizer.

    keypoints: number of the most reliable keypoints that are matched. retrieval_keypoints: number of them that
    keyframes are retrieved by. shortlist: keyframes that the image is compared with. covariance_scale: of the map.
    network: what poses of the published network must agree in; it predicts no confidence, so that half of the keyframes
    must agree.
    matched: what poses from matches must show.
    """

    keypoints: int = 1500
    retrieval_keypoints: int = 600
    shortlist: int = 10
    covariance_scale: float = MIN_COVARIANCE_SCALE
    network: AveragingConfig = field(default_factory=lambda: AveragingConfig(min_pairs=3, min_share=0.5))
    matched: MatchedPoseConfig = field(default_factory=MatchedPoseConfig)


class Reloc3rLocalizer:
    """A `Localizer` that averages relative poses to keyframes."""

    def __init__(self, *, encoder: Encoder, keyframes: PosedKeyframes, source: RelativePoseSource,
                 config: Reloc3rConfig):
        self._encoder, self._keyframes, self._source, self._config = encoder, keyframes, source, config
        self._retrieval = WordRetrieval(keyframes, str(encoder.device))

    @classmethod
    def from_map(cls, scene_map: SceneMap, *, device: str = "auto", seed: int = 0) -> Reloc3rLocalizer:
        """Make the localizer of a map, with the networks that it was made with.

        Raises UserError if one of these has changed since, or the map is damaged.
        """
        device = pick_device(device)
        settings = scene_map.settings_as(Reloc3rMapSettings)
        keyframes = PosedKeyframes.from_section(scene_map.sections[SECTION])
        source: RelativePoseSource = MatchedPoses(keyframes, seed=seed)
        if settings.relative_pose == NETWORK:
            source = _network_source(scene_map, keyframes, device, seed)
        config = Reloc3rConfig(shortlist=settings.shortlist, covariance_scale=scene_map.covariance_scale,
                               matched=MatchedPoseConfig(covariance_factor=max(settings.spread_factor, 1.0),
                                                         min_keyframes=settings.min_keyframes))
        if not source.has_matches:
            config = replace(config, covariance_scale=scene_map.covariance_scale * max(settings.spread_factor, 1.0))
        return cls(encoder=encoder_of(scene_map, device), keyframes=keyframes, source=source, config=config)

    def localize(self, frame: Frame, prior: PriorPose | None = None) -> PoseEstimate:
        """Estimate the pose of the camera in the map, or reject the image; `prior` is not used."""
        return localize_frame(frame, self.extract, self.localize_query)

    @torch.inference_mode()
    def extract(self, frame: Frame) -> QueryImage:
        """Extract what is compared of a frame, which must have passed `reject_image`."""
        image, camera, mask = prepare(frame, self._encoder.short_side_px, self._encoder.stride)
        features = self._encoder.detect(image_to_tensor(image, self._encoder.device))
        keypoints = select_keypoints(features, camera, self._encoder.stride, mask=mask,
                                     max_count=self._config.keypoints)
        return QueryImage(keypoints=keypoints, features=features, image=image, camera=camera)

    def localize_query(self, query: QueryImage, stopwatch: Stopwatch | None = None, *,
                       leave_out: Collection[int] = ()) -> PoseEstimate:
        """Estimate the pose of an image. leave_out: keyframes that it is not compared with."""
        config, stopwatch = self._config, stopwatch or Stopwatch()
        found = self._retrieval.find(query.keypoints.descriptors[:config.retrieval_keypoints],
                                     config.shortlist + len(leave_out)).keyframes
        shortlist = np.array([keyframe for keyframe in found if keyframe not in leave_out], np.int64)[:config.shortlist]
        stopwatch.lap("retrieve")
        pairs = self._source.estimate(query, shortlist)
        stopwatch.lap("relative_poses")
        if self._source.has_matches:
            estimate = locate_by_matches(pairs.relative, pairs.matches, query.camera, config.matched)
        else:
            estimate = _averaged(average_robustly(pairs.relative, config.network), len(pairs))
        stopwatch.lap("average")
        return replace(estimate.with_covariance_times(config.covariance_scale), stage_ms=stopwatch.laps_ms)


def _averaged(found: AveragedPose | Rejection, count: int) -> PoseEstimate:
    """Make the result of averaged poses of a network."""
    if isinstance(found, Rejection):
        return PoseEstimate(status=found.status, message=found.message)
    agreeing = len(found.agreeing)
    return PoseEstimate(status=Status.ACCEPTED, message=f"{agreeing} of {count} keyframes agree",
                        map_from_camera=found.map_from_camera, covariance=found.covariance, inliers=agreeing,
                        inlier_ratio=agreeing / count)


def _network_source(scene_map: SceneMap, keyframes: PosedKeyframes, device: str, seed: int
                    ) -> RelativePoseSource:
    """Load the network of a map. Raises UserError if it has changed since mapping, or the map lacks its tokens."""
    from aceg_ros.methods.reloc3r_network import KeyframeTokens, KeypointNetworkPoses, NetworkPoses
    from aceg_ros.networks.keypoint_relative_pose import KeypointPoseNet
    from aceg_ros.networks.relative_pose_file import load_relative_pose

    reference = scene_map.network(ROLE)
    network = load_relative_pose(reference.source, device)
    reference.check(network, role="network")
    if isinstance(network.net, KeypointPoseNet):
        return KeypointNetworkPoses(network.net, keyframes, seed=seed)
    if TOKENS_SECTION not in scene_map.sections:
        raise UserError("The map has no tokens of its keyframes: map the scene again.")
    tokens = KeyframeTokens.from_section(scene_map.sections[TOKENS_SECTION], len(keyframes))
    return NetworkPoses(network.net, keyframes, tokens)
