# SPDX-License-Identifier: Apache-2.0
"""Mapping by SACReg: the keyframe database of ace_g, and the tokens of its keyframes."""

from __future__ import annotations

from dataclasses import replace

from aceg_ros.camera import Frame
from aceg_ros.encoders.base import load_encoder, shipped_encoder
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.maps.keyframe_database import KeyframeDatabase
from aceg_ros.maps.keyframe_tokens import SECTION as TOKENS
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.ace_g import DATABASE_ENCODER, AceGOptions
from aceg_ros.methods.ace_g_mapper import AceGMapper
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.cross_image_localizer import mix_keyframes
from aceg_ros.methods.sacreg import DATABASE, SHIPPED, SacregOptions, as_sacreg_map, check_encoder, shipped_regressor
from aceg_ros.networks.cross_image_fusion import CrossImageWeights, load_cross_image
from aceg_ros.utils.device import pick_device

MIXING_SHARE = 0.1                  # of the budget, kept for the tokens


class SacregMapper:
    """Collects posed frames, builds a keyframe database from them, and mixes its tokens.

    Raises UserError if there is no network, or it was trained for another encoder.
    """

    def __init__(self, options: MappingOptions, method_options: SacregOptions):
        self._options, self._method_options = options, method_options
        device = pick_device(options.device)
        given, encoder = method_options.regressor, options.encoder
        if given is None:
            given = SHIPPED[0] if encoder is None else shipped_regressor(load_encoder(encoder, device).identity)
        self._weights = load_cross_image(given, device)
        encoder = encoder or shipped_encoder(self._weights.encoder) or DATABASE_ENCODER
        options = replace(options, encoder=encoder)
        check_encoder(self._weights, load_encoder(encoder, device).identity)
        self._mapper = AceGMapper(options, AceGOptions(keep_poses=method_options.keep_poses,
                                                       compact=method_options.compact))

    def add(self, frame: Frame) -> None:
        """Add one posed frame. Raises UserError if its pose or image is unusable."""
        self._mapper.add(frame)

    def build(self, budget: MappingBudget) -> SceneMap:
        """Build the database within the budget, and the tokens of all its keyframes."""
        scene_map = self._mapper.build(budget.reserve(MIXING_SHARE * budget.total_s))
        scene_map = as_sacreg_map(scene_map, self._weights, fusion=self._method_options.fusion)
        return with_tokens(scene_map, self._weights, compact=self._method_options.compact, seed=self._options.seed)


def with_tokens(scene_map: SceneMap, weights: CrossImageWeights, *, compact: bool, seed: int) -> SceneMap:
    """Return a map with the tokens of its keyframes, which are mixed from its database."""
    tokens = mix_keyframes(weights.net, KeyframeDatabase.from_section(scene_map.sections[DATABASE]))
    return replace(scene_map, sections={**scene_map.sections, TOKENS: tokens.to_section(compact, seed)})
