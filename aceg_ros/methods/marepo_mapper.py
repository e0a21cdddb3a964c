# SPDX-License-Identifier: Apache-2.0
"""Mapping for marepo: builds the map that its scene coordinates come from, with the mapper of that method, and
fine-tunes the pose transformer on the mapping images if this is wanted."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from aceg_ros.camera import Frame
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.pose_tuning import TokenImage, TuningOptions, tune_pose_regressor
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods import ace, ace_g
from aceg_ros.methods.base import Mapper, MappingOptions
from aceg_ros.methods.marepo import (
    SECTION,
    TUNED_PREFIX,
    MarepoMapSettings,
    MarepoOptions,
    as_marepo_map,
    load_shipped,
    reads_grids,
)
from aceg_ros.methods.marepo_localizer import MIN_CELLS, coordinates_of, tokens_of
from aceg_ros.networks.pose_regressor import load_pose_regressor
from aceg_ros.utils.device import pick_device

_LOG = logging.getLogger("aceg_ros")
TUNING_SHARE = 0.3                  # of the budget, kept for fine-tuning
TUNING_IMAGES = 200                 # at most, spread over the recording
ENCODING_SHARE = 0.3                # of the time for fine-tuning


class MarepoMapper:
    """Passes posed frames on to the mapper of the scene coordinates, and adds the pose transformer to its map.

    coordinates: that mapper.
    """

    def __init__(self, options: MappingOptions, method_options: MarepoOptions):
        self._options, self._method_options = options, method_options
        self._device = pick_device(options.device)
        source = method_options.regressor
        self._regressor = (load_shipped(self._device) if source is None
                           else load_pose_regressor(source, self._device))
        self.coordinates = _make_coordinate_mapper(options, method_options.codes, reads_grids(self._regressor))
        self._frames: list[Frame] = []                      # for fine-tuning

    def add(self, frame: Frame) -> None:
        """Add one posed frame. Raises UserError if its pose or image is unusable."""
        self.coordinates.add(frame)
        if self._method_options.fine_tune:
            self._frames.append(frame)

    def build(self, budget: MappingBudget) -> SceneMap:
        """Build the map of the scene coordinates within the budget, and fine-tune."""
        tunes = self._method_options.fine_tune
        mapping = budget.reserve(TUNING_SHARE * budget.remaining_s()) if tunes else budget
        scene_map = as_marepo_map(self.coordinates.build(mapping), self._regressor,
                                  refine=self._method_options.refine)
        return self._fine_tune(scene_map, budget.phase("fine-tuning")) if tunes else scene_map

    def _fine_tune(self, scene_map: SceneMap, budget: MappingBudget) -> SceneMap:
        """Train the pose transformer on the mapping images; the map keeps the result."""
        images = self._token_images(scene_map, budget.phase("fine-tuning", share=ENCODING_SHARE))
        if len(images) < TuningOptions.batch:
            _LOG.warning(f"The pose transformer was not fine-tuned: there was time for {len(images)} images only, or"
                         " they have few trusted cells.")
            return scene_map
        net, steps = tune_pose_regressor(self._regressor.net, images, TuningOptions(seed=self._options.seed), budget)
        _LOG.info(f"fine-tuned in {steps} steps on {len(images)} images")
        tuned = {TUNED_PREFIX + key: value.half().cpu() for key, value in net.state_dict().items()}
        section = {**scene_map.sections[SECTION], **tuned}
        return replace(scene_map, sections={**scene_map.sections, SECTION: section})

    def _token_images(self, scene_map: SceneMap, budget: MappingBudget) -> list[TokenImage]:
        """Predict the scene coordinates of mapping images in the map, as long as there is time."""
        net = self._regressor.net
        localizer = coordinates_of(scene_map, scene_map.settings_as(MarepoMapSettings), self._device, net)
        found = []
        chosen = np.unique(np.linspace(0, len(self._frames) - 1, TUNING_IMAGES).astype(int))
        for index in np.random.default_rng(self._options.seed).permutation(chosen):
            if budget.is_over():
                break
            frame = self._frames[index]
            predicted = localizer.scene_coordinates(frame)
            tokens = tokens_of(predicted, localizer.stride, net)
            kept = tokens.subset(tokens.mask)
            if len(kept.points) >= MIN_CELLS:
                found.append(TokenImage(points=kept.points, rays=kept.rays, confidence=kept.confidence,
                                        map_from_camera=np.asarray(frame.map_from_camera)))
        return found


def _make_coordinate_mapper(options: MappingOptions, codes: int | None, grid: bool) -> Mapper:
    """Return a mapper of scene coordinates: with `codes` at most this many landmarks for a regressor; else a head that
    is trained, if a point for each cell of a grid is asked for, or a keyframe database."""
    if codes is None and grid:
        return ace.SPEC.make_mapper(options, ace.AceOptions())
    return ace_g.SPEC.make_mapper(options, ace_g.AceGOptions(codes=codes))
