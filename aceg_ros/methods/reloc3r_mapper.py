# SPDX-License-Identifier: Apache-2.0
"""Mapping by Reloc3r: images become posed keyframes, in seconds."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace

import numpy as np
import torch

from aceg_ros.camera import Frame
from aceg_ros.encoders.base import load_encoder
from aceg_ros.encoders.keypoints import select_keypoints
from aceg_ros.encoders.preprocess import image_to_tensor
from aceg_ros.errors import UserError
from aceg_ros.mapping.augmentation import PreparedFrame
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.build_keyframes import build_keyframes, select_views
from aceg_ros.mapping.calibration import covariance_factor, normalized_error_squared
from aceg_ros.mapping.frames import MIN_FRAMES, MappingFrames
from aceg_ros.maps.header import MappingStatistics, NetworkReference
from aceg_ros.maps.posed_keyframes import SECTION
from aceg_ros.maps.scene_map import SceneMap, display_sections
from aceg_ros.methods.ace_g import DATABASE_ENCODER
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.reloc3r import (
    MATCHES,
    NETWORK,
    ROLE,
    SHIPPED,
    SPEC,
    TOKENS_SECTION,
    Reloc3rMapSettings,
    Reloc3rOptions,
)
from aceg_ros.methods.reloc3r_localizer import Reloc3rLocalizer
from aceg_ros.methods.reloc3r_network import KeyframeTokens, encode_image
from aceg_ros.methods.reloc3r_pairs import QueryImage
from aceg_ros.networks.relative_pose import RelativePoseNet
from aceg_ros.networks.relative_pose_file import RelativePoseNetwork, load_relative_pose
from aceg_ros.networks.weights_file import shipped_for
from aceg_ros.utils.device import pick_device

_LOG = logging.getLogger("aceg_ros")
KEYPOINTS = 1500
CALIBRATION_IMAGES, MIN_CALIBRATION_IMAGES = 20, 5
CONFIRMING = (2, 3, 4)              # numbers of keyframes that may have to confirm a pose
CLEARLY_MORE, AT_LEAST_MORE = 1.25, 2       # times the keyframes, and more of them: then an alternative is taken
WRONG_ERROR_SQUARED = 100.0         # normalized: such a pose is wrong, which no factor for covariances makes up for


class Reloc3rMapper:
    """Collects posed frames, then makes keyframes of those farthest from each other."""

    def __init__(self, options: MappingOptions, method_options: Reloc3rOptions | None = None):
        self._options, self._method_options = options, method_options or Reloc3rOptions()
        self._device = pick_device(options.device)
        self._encoder = load_encoder(options.encoder or DATABASE_ENCODER, self._device)
        self._network = self._load_network()
        self._frames = MappingFrames(self._encoder, options.use_depth, trust_poses=options.trust_poses)

    def add(self, frame: Frame) -> None:
        """Add one posed frame. Raises UserError if its pose or image is unusable."""
        self._frames.add(frame)

    def build(self, budget: MappingBudget) -> SceneMap:
        """Make the keyframes within the budget; if it is too short for all, the map has those so far."""
        self._check()
        chosen = select_views(self._frames.poses, self._method_options.keyframes)
        frames = [self._frames.prepared[index] for index in chosen]
        built = build_keyframes(frames, self._encoder, keypoints=KEYPOINTS, seed=self._options.seed,
                                budget=budget.phase("extracting keypoints", share=0.7))
        if built is None:
            raise UserError("No image has a keypoint: take images that show more than bare walls, or give more time.")
        keyframes, numbers = built
        frames = [frames[number] for number in numbers]
        sections = {SECTION: keyframes.to_section()}
        if self._network is not None and isinstance(self._network.net, RelativePoseNet):
            sections[TOKENS_SECTION] = self._encode(frames, self._network.net, budget).to_section()
        statistics = MappingStatistics(
            frames=len(self._frames), encoded=len(frames), mapping_s=budget.elapsed_s(), budget_s=budget.total_s,
            patches=len(keyframes.descriptors), seed=self._options.seed, device=self._device,
            complete=not budget.should_stop())
        scene_map = self._choose([self._finish(sections, statistics, network) for network in self._alternatives()],
                                 frames, budget)
        budget.phase("done").report(1.0, remaining_s=0.0)
        return scene_map

    def _alternatives(self) -> list[RelativePoseNetwork | None]:
        """Return where relative poses may come from: as the user says, else from the network or from all matches."""
        given = self._method_options.relative_pose is not None or self._method_options.network is not None
        return [self._network] if given or self._network is None else [self._network, None]

    def _choose(self, maps: list[SceneMap], frames: list[PreparedFrame], budget: MappingBudget) -> SceneMap:
        """Calibrate a map by each alternative, and return the first, unless another localizes clearly more of its
        keyframes by the others."""
        chosen = np.unique(np.linspace(0, len(frames) - 1, CALIBRATION_IMAGES).round().astype(int)).tolist()
        if len(chosen) < MIN_CALIBRATION_IMAGES:
            return maps[0]
        queries = {index: self._query(frames[index]) for index in chosen}
        best, most = maps[0], 0
        for number, scene_map in enumerate(maps):
            share = 0.5 if number + 1 == len(maps) else 0.35
            settings, localized = self._calibrate(scene_map, frames, queries, budget.phase(
                "calibrating covariances", share=share))
            if number == 0 or localized >= max(CLEARLY_MORE * most, most + AT_LEAST_MORE):
                best, most = replace(scene_map, settings=asdict(settings)), localized
        return best

    def _load_network(self) -> RelativePoseNetwork | None:
        chosen, source = self._method_options.relative_pose, self._method_options.network
        if chosen == MATCHES and source is not None:
            raise UserError("A network is not used with relative poses from matches: leave out --network, or choose"
                            " --relative-pose network.")
        if chosen == MATCHES:
            return None
        network = load_relative_pose(source or shipped_for(self._encoder.identity, SHIPPED), self._device)
        if chosen is None and source is None and network.encoder != self._encoder.identity:
            return None
        if network.encoder not in ("", self._encoder.identity):
            raise UserError(f"Network '{network.source}' was trained on keypoints of encoder {network.encoder}, not of"
                            f" {self._encoder.identity}: use that encoder (--encoder).")
        return network

    def _check(self) -> None:
        """Raise UserError without a usable image, and warn if the images cannot give a scale."""
        if len(self._frames) >= MIN_FRAMES or self._options.use_depth:
            self._frames.check(min_frames=1)
        elif len(self._frames) == 0:
            raise UserError("A map needs at least one usable posed image, here is none: check the skipped frames.")
        if len(self._frames) == 1 and not self._frames.have_depth:
            _LOG.warning("The map has one keyframe: it tells the direction of a camera, but not its distance, so that"
                         " every image will be rejected (no_scale). Add images from other positions, or depth.")

    @torch.inference_mode()
    def _encode(self, frames: list[PreparedFrame], net: RelativePoseNet, budget: MappingBudget
                ) -> KeyframeTokens:
        """Encode the keyframes once for all queries."""
        progress, found = budget.phase("encoding keyframes"), []
        for number, frame in enumerate(frames):
            if progress.is_over():
                raise UserError(f"There was time for {number} of {len(frames)} images only: give more with --budget, or"
                                " take fewer with --keyframes.")
            found.append(encode_image(net, frame.image, frame.camera))
            progress.report(number / len(frames))
        return KeyframeTokens(tokens=torch.cat([image.tokens[0].half().cpu() for image in found]),
                              grids=torch.tensor([image.grid for image in found]))

    def _calibrate(self, scene_map: SceneMap, frames: list[PreparedFrame], queries: dict[int, QueryImage],
                   budget: MappingBudget) -> tuple[Reloc3rMapSettings, int]:
        """Localize some keyframes by the others: how many must confirm a pose, and the factor, at least 1, that makes
        covariances agree with the errors. Returns the settings, and how many keyframes were localized with them.

        As few as leave no wrong pose are enough to confirm one. If the keyframes hardly localize each other, which
        poses are wrong is not known, and one more is needed than the fewest. Keyframes are farther from each other than
        images of the same scene from them, so that both are rather too strict.
        """
        settings = scene_map.settings_as(Reloc3rMapSettings)
        has_matches = ROLE not in scene_map.networks or TOKENS_SECTION not in scene_map.sections
        errors: dict[int, float] = {}
        for number in CONFIRMING:
            settings = replace(settings, min_keyframes=number)
            errors = self.errors_of_keyframes(replace(scene_map, settings=asdict(settings)), frames, queries, budget)
            queries = {index: queries[index] for index in errors}
            enough_known = len(errors) >= MIN_CALIBRATION_IMAGES or number > CONFIRMING[0]
            if not has_matches or (enough_known and max(errors.values(), default=0.0) < WRONG_ERROR_SQUARED):
                break
        settings = replace(settings, spread_factor=max(covariance_factor(list(errors.values())), 1.0))
        return settings, len(errors)

    def errors_of_keyframes(self, scene_map: SceneMap, frames: list[PreparedFrame], queries: dict[int, QueryImage],
                            budget: MappingBudget) -> dict[int, float]:
        """Return the squared normalized error of each keyframe that is localized by the others, within the budget."""
        localizer = Reloc3rLocalizer.from_map(replace(scene_map, covariance_scale=1.0), device=self._device,
                                              seed=self._options.seed)
        errors = {}
        for index, query in queries.items():
            if budget.is_over():
                break
            estimate = localizer.localize_query(query, leave_out={index})
            if estimate.map_from_camera is not None and estimate.covariance is not None:
                errors[index] = normalized_error_squared(estimate.map_from_camera, estimate.covariance,
                                                         frames[index].map_from_camera)
        return errors

    def _query(self, frame: PreparedFrame) -> QueryImage:
        features = self._encoder.detect(image_to_tensor(frame.image, self._encoder.device))
        keypoints = select_keypoints(features, frame.camera, self._encoder.stride, mask=frame.mask, max_count=KEYPOINTS)
        return QueryImage(keypoints=keypoints, features=features, image=frame.image, camera=frame.camera)

    def _finish(self, sections: dict[str, dict[str, torch.Tensor]], statistics: MappingStatistics,
                network: RelativePoseNetwork | None) -> SceneMap:
        networks = {"encoder": NetworkReference.from_network(self._encoder)}
        if network is not None:
            networks[ROLE] = NetworkReference.from_network(network)
        settings = Reloc3rMapSettings(relative_pose=MATCHES if network is None else NETWORK)
        shown = display_sections(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), self._frames.poses)
        return SceneMap(method=SPEC.name, networks=networks, settings=asdict(settings), statistics=statistics,
                        cameras=self._frames.cameras, sections={**sections, **shown})
