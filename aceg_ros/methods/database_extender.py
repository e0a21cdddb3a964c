# SPDX-License-Identifier: Apache-2.0
"""Extends a map with a keyframe database by posed frames."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.errors import UserError
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.build_database import DatabaseOptions
from aceg_ros.mapping.extend_database import ExtendedDatabase, GrowthOptions, extend_database
from aceg_ros.mapping.frames import MappingFrames
from aceg_ros.mapping.observation_table import ObservationTable
from aceg_ros.maps.keyframe_database import SECTION, KeyframeDatabase
from aceg_ros.maps.keyframe_history import SECTION as HISTORY
from aceg_ros.maps.keyframe_history import KeyframeHistory
from aceg_ros.maps.scene_map import MAX_CLOUD_POINTS, SceneMap, display_sections
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.registry import after_growth
from aceg_ros.methods.scene_coordinates import encoder_of
from aceg_ros.utils.device import pick_device

_LOG = logging.getLogger("aceg_ros")
OBSERVATIONS = 600_000              # of a map that grows, about 45 MB; three times those of a new one
MATCHING_SHARE = 0.9                # of the budget, for all but the choice of keyframes and the vocabulary


class DatabaseExtender:
    """Collects posed frames, then extends the map by them within the budget.

    Raises UserError if the map has no keyframe database, or its encoder has changed since.
    """

    def __init__(self, scene_map: SceneMap, options: MappingOptions, *, fade_after: int):
        self._map, self._options, self._fade_after = scene_map, options, fade_after
        if SECTION not in scene_map.sections:
            raise UserError("Only a map with a keyframe database can be extended, which this map does not have (it was"
                            " made with a regressor): map all recordings together with 'aceg map RECORDING RECORDING'.")
        self._device = pick_device(options.device)
        self._encoder = encoder_of(scene_map, self._device)
        if options.encoder not in (None, scene_map.network("encoder").source):
            raise UserError(f"The map was made with encoder {scene_map.network('encoder').source}, and can only be"
                            " extended with that one: leave --encoder out.")
        self._frames = MappingFrames(self._encoder, options.use_depth, trust_poses=options.trust_poses)

    def add(self, frame: Frame) -> None:
        """Add one posed frame. Raises UserError if its pose or image is unusable."""
        self._frames.add(frame)

    def build(self, budget: MappingBudget) -> SceneMap:
        """Extend the map. Raises UserError if the frames show nothing that can be added."""
        self._frames.check()
        known = table_of(self._map)
        options = GrowthOptions(database=DatabaseOptions(observations=OBSERVATIONS, seed=self._options.seed),
                                fade_after=self._fade_after)
        reserved = budget.reserve((1.0 - MATCHING_SHARE) * budget.total_s)
        extended = extend_database(known, self._frames.prepared, self._encoder, options=options, budget=reserved,
                                   use_depth=self._options.use_depth)
        if extended is None:
            raise UserError(f"Nothing of the {len(self._frames)} images could be matched with the map, nor with each"
                            " other: take images that overlap, with poses in the map's frame, or give more time.")
        if extended.attached == 0:
            _LOG.warning("No image shows anything that the map has: whether the poses are in the map's frame is not"
                         " known.")
        scene_map = self._finish(extended, budget)
        budget.phase("done").report(1.0, remaining_s=0.0)
        return scene_map

    def _finish(self, extended: ExtendedDatabase, budget: MappingBudget) -> SceneMap:
        before = self._map.statistics
        statistics = replace(before, frames=before.frames + len(self._frames), patches=len(extended.table),
                             encoded=before.encoded + extended.encoded, seed=self._options.seed, device=self._device,
                             complete=before.complete and not budget.should_stop(), budget_s=budget.total_s)
        seed = self._options.seed
        grown = with_display(with_table(self._map, extended.table, seed), extended.new_points, extended.new_colours,
                             poses=self._frames.poses, cameras=self._frames.cameras, seed=seed)
        return after_growth(replace(grown, statistics=statistics), self._device, seed)


def table_of(scene_map: SceneMap) -> ObservationTable:
    """Read the keyframe database of a map, to be changed. Raises UserError if it is damaged."""
    database = KeyframeDatabase.from_section(scene_map.sections[SECTION])
    return ObservationTable.of(database, KeyframeHistory.of(scene_map.sections, database))


def with_table(scene_map: SceneMap, table: ObservationTable, seed: int) -> SceneMap:
    """Return the map with another keyframe database, stored as compactly as the one that it has."""
    database, history = table.to_database(DatabaseOptions().words, seed)
    section = database.to_section("codebook" in scene_map.sections[SECTION], seed)
    return replace(scene_map, sections={**scene_map.sections, SECTION: section, HISTORY: history.to_section()},
                   created="", stored_bounds=None)


def with_display(scene_map: SceneMap, xyz: np.ndarray, rgb: np.ndarray, *, poses: np.ndarray,
                 cameras: Sequence[Camera], seed: int) -> SceneMap:
    """Return the map with more to be shown: points (P, 3) of its frame, their colours, poses (M, 4, 4), and cameras."""
    xyz, rgb = np.concatenate([scene_map.cloud_xyz, xyz]), np.concatenate([scene_map.cloud_rgb, rgb])
    shown = np.random.default_rng(seed).permutation(len(xyz))[:MAX_CLOUD_POINTS]
    trajectory = np.concatenate([scene_map.trajectory, poses])
    return replace(scene_map, cameras=tuple(dict.fromkeys((*scene_map.cameras, *cameras))),
                   sections={**scene_map.sections, **display_sections(xyz[shown], rgb[shown], trajectory)})
