# SPDX-License-Identifier: Apache-2.0
"""The services of the localizer node. Each responds when it is done, ~/stop_mapping when the training has started."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from datetime import datetime
from pathlib import Path

from rclpy.node import Node

from aceg_ros.ros.common.parameters import ParameterGroup
from aceg_ros.ros.common.services import Outcome, create_switch_service, create_trigger_services
from aceg_ros.ros.localizer.map_loader import MapLoader
from aceg_ros.ros.localizer.parameters import LocalizerParameters
from aceg_ros.ros.localizer.pipeline import LocalizationPipeline
from aceg_ros.ros.localizer.status import activation_advice
from aceg_ros.ros.mapping.controller import MappingController
from aceg_ros.utils.atomic_file import write_bytes

LOAD_TIMEOUT_S, LOCALIZE_TIMEOUT_S = 120.0, 10.0


class LocalizerServices:
    """Implements the services for maps, localization and mapping.

    lifecycle() returns the label of the node's lifecycle state; reset() discards poses and transforms.
    """

    def __init__(self, node: Node, parameters: ParameterGroup[LocalizerParameters], *,
                 pipeline: LocalizationPipeline, maps: MapLoader, mapping: MappingController,
                 lifecycle: Callable[[], str], reset: Callable[[], None]) -> None:
        self._node, self._parameters, self._pipeline, self._maps = node, parameters, pipeline, maps
        self._lifecycle, self._reset_poses = lifecycle, reset
        create_trigger_services(node, {
            "start_mapping": self._if_active(mapping.start), "stop_mapping": self._if_active(mapping.stop),
            "cancel_mapping": mapping.cancel, "load_map": self._if_active(self._load_map),
            "save_map": self._save_map, "reset": self._reset,
            "trigger_localization": self._if_active(self._trigger_localization)})
        create_switch_service(node, "enable", self._enable)

    def _if_active(self, action: Callable[[], Outcome]) -> Callable[[], Outcome]:
        def run_if_active() -> Outcome:
            return action() if self._pipeline.is_active else (
                False, activation_advice(self._node.get_fully_qualified_name(), self._lifecycle()))
        return run_if_active

    def _load_map(self) -> Outcome:
        path = self._parameters.value.map_path
        if not path:
            return False, "Set the parameter map_path to the map first."
        if not self._maps.is_running:
            return False, f"The node is {self._lifecycle()}."
        try:
            state = self._maps.load(path).result(LOAD_TIMEOUT_S)
        except FutureTimeoutError:
            return False, f"{path} is still being loaded after {LOAD_TIMEOUT_S:.0f} s; ~/status will say how it ends."
        if state.error:
            return False, f"{state.error} {f'The map {state.path} stays in use.' if state.path else ''}".strip()
        return True, f"Localizing in {path}."

    def _save_map(self) -> Outcome:
        source, path = self._maps.state.path, self._parameters.value.save_path
        if not source:
            return False, "There is no map to save."
        if not path:
            return False, f"Set the parameter save_path first; the map in use is {source}."
        target = Path(path).expanduser()
        if target.is_dir():
            return False, f"save_path {target} is a folder: give a file name, such as {target / 'scene.map'}."
        try:
            if target.exists() and target.samefile(source):
                return True, f"The map in use is {target} already."
            content = Path(source).read_bytes()
            backup = _back_up(target)
            write_bytes(target, content)
        except OSError as error:
            return False, f"{source} cannot be saved as {target}: {error.strerror or error}."
        return True, f"Saved {source} as {target}.{f' The map that was there is now {backup}.' if backup else ''}"

    def _reset(self) -> Outcome:
        self._reset_poses()
        return True, "Discarded poses, path and transforms."

    def _enable(self, on: bool) -> Outcome:
        self._pipeline.is_enabled = on
        return True, "Localizing." if on else "Localization is switched off; ~/trigger_localization still works."

    def _trigger_localization(self) -> Outcome:
        before = self._pipeline.input.received
        result = self._pipeline.wait_for_result(LOCALIZE_TIMEOUT_S)
        if result is None:
            return False, self._explain_no_result(self._pipeline.input.received - before)
        if not result.accepted:
            return False, f"{result.status}: {result.message}"
        assert result.estimate is not None and result.estimate.map_from_camera is not None
        x, y, z = result.estimate.map_from_camera[:3, 3]
        return True, f"The camera is at x {x:.3f}, y {y:.3f}, z {z:.3f} m: {result.message}"

    def _explain_no_result(self, received: int) -> str:
        """Return why no image was localized in time. received: how many came."""
        images = self._pipeline.input
        if received:
            return (f"{received} images came on {images.images.topic} within {LOCALIZE_TIMEOUT_S:.0f} s, but none was"
                    " finished.")
        return (f"No image came on {images.images.topic} within {LOCALIZE_TIMEOUT_S:.0f} s:"
                f" {images.explain_silence()}")


def _back_up(target: Path) -> Path | None:
    """Copy an existing file to a name with the current time. Returns the new path, None if there was no file."""
    if not target.exists():
        return None
    backup = target.with_name(f"{target.name}.{datetime.now():%Y%m%d_%H%M%S_%f}")
    shutil.copy2(target, backup)
    return backup
