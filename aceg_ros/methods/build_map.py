# SPDX-License-Identifier: Apache-2.0
"""Builds a map with calibrated covariances from posed frames, with any method, and extends one."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from dataclasses import replace
from typing import Any

from aceg_ros.camera import Frame
from aceg_ros.datasets.scene import grouped_reasons
from aceg_ros.errors import UserError
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.calibration import calibrate_covariance_scale, held_out_indices
from aceg_ros.maps.header import MIN_COVARIANCE_SCALE
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.base import Mapper, MappingOptions
from aceg_ros.methods.database_extender import DatabaseExtender
from aceg_ros.methods.registry import check_growth, make_localizer, make_mapper

FADE_AFTER = 3                      # recordings that must miss a landmark for it to be dropped
_CALIBRATION_S, _CALIBRATION_S_PER_IMAGE = 2.0, 0.15          # reserved for calibration: enough on two CPU cores


def build_map(method: str, options: MappingOptions, frames: Iterable[Frame], budget: MappingBudget, *,
              method_options: Any = None) -> tuple[SceneMap, list[str]]:
    """Build a map from posed frames within the budget, which includes reading them.

    If there are many frames, some are held out to calibrate the covariances.

    Args:
        method: name of a registered method.
        options: options that every method has.
        frames: posed frames; unusable ones are skipped.
        budget: time limit, progress reports and stop request.
        method_options: the method's own options, an instance of `MethodSpec.options`; None for its defaults.

    Returns:
        The map, and a sentence for each frame that was skipped, those that a scene could not read first.

    Raises:
        UserError: no map can be built from the usable frames; the message says why others were skipped.
    """
    return _run(make_mapper(method, options, method_options), options, frames, budget)


def extend_map(scene_map: SceneMap, options: MappingOptions, frames: Iterable[Frame], budget: MappingBudget, *,
               fade_after: int = FADE_AFTER) -> tuple[SceneMap, list[str]]:
    """Extend a map by posed frames in its map frame, within the budget, which includes reading them.

    Args:
        scene_map: of a method whose maps can grow; it stays as it is.
        options: options that every method has; the encoder is that of the map.
        frames: posed frames; unusable ones are skipped.
        budget: time limit, progress reports and stop request.
        fade_after: landmarks that this many recordings, one after the other, should have seen and did not are dropped;
            0 keeps all.

    Returns:
        The extended map, and a sentence for each frame that was skipped.

    Raises:
        UserError: the map cannot grow, or the frames show nothing that can be added.
    """
    check_growth(scene_map)
    extender = DatabaseExtender(scene_map, options, fade_after=fade_after)
    extended, skipped = _run(extender, options, frames, budget)
    before, added = scene_map.statistics, extended.statistics
    statistics = replace(added, skipped=before.skipped + added.skipped, held_out=before.held_out + added.held_out,
                         mapping_s=before.mapping_s + added.mapping_s)
    scale = max(scene_map.covariance_scale, extended.covariance_scale)
    return replace(extended, covariance_scale=scale, statistics=statistics), skipped


def _run(mapper: Mapper, options: MappingOptions, frames: Iterable[Frame], budget: MappingBudget
         ) -> tuple[SceneMap, list[str]]:
    """Give a mapper all frames but those held out, let it build, and calibrate its map."""
    unseen, skipped = _add_frames(mapper, frames)
    reserve_s = min(_CALIBRATION_S + _CALIBRATION_S_PER_IMAGE * len(unseen), 0.1 * budget.total_s)
    skipped = _unreadable(frames) + skipped
    try:
        scene_map = mapper.build(budget.reserve(reserve_s) if unseen else budget)
    except UserError as error:
        raise UserError(f"{error}{_told(skipped)}") from None
    scale = MIN_COVARIANCE_SCALE
    if unseen and not budget.should_stop():
        raw = replace(scene_map, covariance_scale=1.0)
        localizer = make_localizer(raw, options.device, options.seed)
        scale = calibrate_covariance_scale(localizer.localize, unseen, budget)
    statistics = replace(scene_map.statistics, skipped=len(skipped), held_out=len(unseen), mapping_s=budget.elapsed_s())
    return replace(scene_map, covariance_scale=scale, statistics=statistics), skipped


def _unreadable(frames: Iterable[Frame]) -> list[str]:
    """Why the reader of these frames left some out, if it is a scene."""
    return [skipped.reason for skipped in getattr(frames, "skipped", ())]


def _told(reasons: list[str]) -> str:
    """What to add to a sentence to tell why frames were skipped; nothing if none were."""
    return f" Skipped frames: {len(reasons)}. {' '.join(grouped_reasons(reasons))}" if reasons else ""


def _add_frames(mapper: Mapper, frames: Iterable[Frame]) -> tuple[list[Frame], list[str]]:
    """Add all frames to the mapper but those held out for calibration. Returns these, and why others were skipped."""
    held_out = held_out_indices(len(frames) if isinstance(frames, Sized) else 0)
    unseen: list[Frame] = []
    skipped: list[str] = []
    for index, frame in enumerate(frames):
        if index in held_out:
            unseen.append(frame)
            continue
        try:
            mapper.add(frame)
        except UserError as error:
            skipped.append(str(error))
    return unseen, skipped
