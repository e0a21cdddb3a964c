# SPDX-License-Identifier: Apache-2.0
"""Load maps in a separate thread, and keep the one in use."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, ParamSpec, Protocol, TypeVar, cast

import numpy as np
from rclpy.impl.rcutils_logger import RcutilsLogger

from aceg_ros.camera import Camera, Frame
from aceg_ros.errors import UserError
from aceg_ros.estimate import PriorPose
from aceg_ros.methods.base import CompiledLocalizer, Localizer, StreamLocalizer
from aceg_ros.rig import RigEstimate, RigFrame
from aceg_ros.utils.garbage import exempt_present_objects
from aceg_ros.utils.malloc import release_free_memory

if TYPE_CHECKING:      # a node starts seconds sooner without torch
    from aceg_ros.maps.scene_map import SceneMap


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class LocalizesRigs(Protocol):
    def localize(self, frame: RigFrame) -> RigEstimate:
        """Estimate the pose of a rig's base, or reject its images."""


@dataclass(frozen=True, kw_only=True)
class LoadedMap:
    """A map that is ready for localization. scene_map: for display, or None. rig_localizer: for several cameras."""

    localizer: Localizer
    scene_map: SceneMap | None = None
    rig_localizer: LocalizesRigs | None = None


@dataclass(frozen=True, kw_only=True)
class MapState:
    """The map in use.

    Attributes:
        path: Empty if there is none.
        error: Why the newest map could not be loaded; empty if it could.
        number: Number of changes of the map so far.
        loaded: The map, None if there is none.
    """

    path: str = ""
    error: str = ""
    number: int = 0
    loaded: LoadedMap | None = field(default=None, repr=False)


class MapLoader:
    """Loads maps; the current map stays in use until the new one is loaded, and if loading fails.

    on_change(state) is called from the loading thread after each attempt.
    """

    def __init__(self, load: Callable[[str], LoadedMap], on_change: Callable[[MapState], None],
                 logger: RcutilsLogger) -> None:
        self._load, self._on_change, self._logger = load, on_change, logger
        self._executor: ThreadPoolExecutor | None = None
        self.state = MapState()     # replaced as a whole: readers in other threads take one snapshot

    @property
    def is_running(self) -> bool:
        return self._executor is not None

    def start(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="map loading")

    def stop(self) -> None:
        """Wait until the current loading is finished, end the thread and release the map."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None
        self.state = MapState(number=self.state.number + 1)

    def load(self, path: str) -> Future[MapState]:
        """Load a map, or unload it if the path is empty. The future's result is the state afterwards."""
        if self._executor is None:
            raise RuntimeError("The map loader is not running.")
        return self._executor.submit(self._replace_map, path)

    def _replace_map(self, path: str) -> MapState:
        try:
            loaded = self._load(path) if path else None
            self.state = MapState(path=path, number=self.state.number + 1, loaded=loaded)
        except UserError as error:
            self.state = replace(self.state, error=str(error))
        except Exception as error:
            self._logger.error(f"Unexpected failure while loading {path}: {error!r}")
            self.state = replace(self.state, error=f"{path} could not be loaded ({error!r}).")
        try:
            self._on_change(self.state)
        except Exception as error:
            self._logger.error(f"Publishing failed: {error!r}")
        return self.state


@dataclass(frozen=True, kw_only=True)
class _OnThreads(Generic[Arguments, Result]):
    """A localizer of images or of rigs that uses this number of torch threads. torch keeps the number per calling
    thread. estimate: the localizer's `localize`."""

    estimate: Callable[Arguments, Result]
    threads: int

    def localize(self, *arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        import torch
        torch.set_num_threads(self.threads)
        return self.estimate(*arguments, **named)


def load_rig_localizer(path: str, device: str, seed: int, threads: int = 0) -> LoadedMap:
    """Load a map file as `load_localizer` does, with a localizer for rigs of cameras.

    Raises UserError also if the map has no keyframe database.
    """
    from aceg_ros.methods.rig_localizer import RigLocalizer
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder of maps: a rig of cameras is localized in one map.")
    loaded = load_localizer(path, device, seed, threads)
    assert loaded.scene_map is not None
    localizer = RigLocalizer.from_map(loaded.scene_map, device=device, seed=seed)
    return replace(loaded, rig_localizer=_OnThreads(estimate=localizer.localize,
                                                    threads=threads or _half_of_the_cores()))


def _half_of_the_cores() -> int:
    return max(1, (os.cpu_count() or 1) // 2)


def load_localizer(path: str, device: str, seed: int, threads: int = 0) -> LoadedMap:
    """Load a map file, or a folder of maps (`maps.map_folder`), and warm up its localizer.

    Args:
        threads: CPU cores for inference; 0 for half of them. Parallel operations wait for the slowest thread, so if
            other programs use a core as well, fewer threads are as fast and vary less
            (docs/benchmarks/2026-11-25-node.md).

    Raises:
        UserError: if the file is not a usable map.
    """
    from aceg_ros.maps.scene_map import SceneMap
    from aceg_ros.methods.registry import make_localizer
    from aceg_ros.methods.several_maps import SeveralMapsLocalizer
    scene_map, loaded = None, None
    if Path(path).is_dir():
        loaded = SeveralMapsLocalizer.load(Path(path), device=device, seed=seed)
    else:
        scene_map = SceneMap.load(path)
    used = loaded or make_localizer(cast(SceneMap, scene_map), device, seed)
    threads = threads or _half_of_the_cores()
    release_free_memory()        # left over from loading this map and earlier ones
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    camera = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=320.0, cy=240.0)
    # The first call is slow. It tries all that an image may need, with a prior and without.
    prior = PriorPose(map_from_camera=np.eye(4), covariance=1e-4 * np.eye(6))
    for known in (prior, None):
        _OnThreads(estimate=used.localize, threads=threads).localize(Frame(image=noise, camera=camera), known)
    if isinstance(used, CompiledLocalizer):
        used.warm_up()
    exempt_present_objects()
    of_stream = used.for_stream() if isinstance(used, StreamLocalizer) else used
    return LoadedMap(localizer=_OnThreads(estimate=of_stream.localize, threads=threads), scene_map=scene_map)
