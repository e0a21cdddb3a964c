"""From posed frames to a map with calibrated covariances, for every method."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sized
from dataclasses import replace

from aceg_ros.camera import Frame
from aceg_ros.errors import UserError
from aceg_ros.mapping.calibration import COVARIANCE_SCALE, LEAST, covariance_scale, held_out
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.base import MappingOptions, make_localizer, make_mapper
from aceg_ros.utils.progress import Progress

_CALIBRATION_S, _CALIBRATION_S_PER_PICTURE = 2.0, 0.15          # of the budget, on two CPU cores


def build_map(method: str, options: MappingOptions, frames: Iterable[Frame],
              progress: Callable[[Progress], None] | None = None,
              should_stop: Callable[[], bool] | None = None) -> tuple[SceneMap, list[str]]:
    """Map frames within the budget, reading them included. Returns the map, and a sentence for each refused frame.

    Where there are many, some are held out to calibrate the covariances. Raises UserError where the usable frames make
    no map.
    """
    started = time.monotonic()
    mapper = make_mapper(method, options)
    kept_out = held_out(len(frames) if isinstance(frames, Sized) else 0)
    refused, unseen = [], []
    for index, frame in enumerate(frames):
        if index in kept_out:
            unseen.append(frame)
            continue
        try:
            mapper.add(frame)
        except UserError as error:
            refused.append(str(error))
    reserve_s = min(_CALIBRATION_S + _CALIBRATION_S_PER_PICTURE * len(unseen), 0.1 * options.budget_s)
    scene_map = mapper.build(progress, should_stop, time.monotonic() - started + (reserve_s if unseen else 0.0))
    scale = LEAST
    if unseen and not (should_stop is not None and should_stop()):
        raw = replace(scene_map, settings=scene_map.settings | {COVARIANCE_SCALE: 1.0})
        scale = covariance_scale(make_localizer(raw, options.device, options.seed), unseen,
                                 started + options.budget_s)
    return replace(scene_map, settings=scene_map.settings | {COVARIANCE_SCALE: scale},
                   figures=replace(scene_map.figures, skipped=len(refused), held_out=len(unseen))), refused
