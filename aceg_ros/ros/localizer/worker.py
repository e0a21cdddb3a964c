# SPDX-License-Identifier: Apache-2.0
"""The thread that localizes images, always the newest one. Submitting an image never blocks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rclpy.impl.rcutils_logger import RcutilsLogger

from aceg_ros.errors import UserError
from aceg_ros.estimate import PoseEstimate, PriorPose, Status
from aceg_ros.ros.common.messages import BadCameraError, frame_from_messages
from aceg_ros.ros.localizer.map_loader import LoadedMap, MapLoader
from aceg_ros.ros.localizer.pose_output import PoseOutput
from aceg_ros.ros.localizer.results import (
    INTERNAL_ERROR,
    NO_MAP,
    NO_MAP_MESSAGE,
    LocalizationRequest,
    LocalizationResult,
)
from aceg_ros.ros.localizer.rig_frames import NO_RIG_LOCALIZER, base_estimate, rig_frame, with_problems

# Given a prior: the estimate, and the fields of the result that have the decoded images.
_Localize = Callable[[PriorPose | None], tuple[PoseEstimate, dict[str, Any]]]


class LocalizationWorker:
    """A thread that localizes the most recently submitted image.

    on_result is called from that thread, once for each request that was not replaced by a newer one.
    """

    def __init__(self, maps: MapLoader, on_result: Callable[[LocalizationResult], None], logger: RcutilsLogger,
                 output: PoseOutput) -> None:
        self._maps, self._on_result, self._logger, self._output = maps, on_result, logger, output
        self._changed = threading.Condition()
        self._request: LocalizationRequest | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        return self._thread is not None

    def start(self) -> None:
        self._stopping, self._request = threading.Event(), None
        self._thread = threading.Thread(target=self._run, args=(self._stopping,), name="localization", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Finish the current image and end the thread."""
        thread, self._thread = self._thread, None
        with self._changed:
            self._stopping.set()
            self._changed.notify()
        if thread is not None:
            thread.join(timeout_s)

    def submit(self, request: LocalizationRequest) -> LocalizationRequest | None:
        """Localize this image next. Returns the waiting image that it replaces, or None."""
        with self._changed:
            replaced, self._request = self._request, request
            self._changed.notify()
        return replaced

    def _run(self, stopping: threading.Event) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: stopping.is_set() or self._request is not None)
                if stopping.is_set():
                    return
                request, self._request = self._request, None
            assert request is not None
            try:
                self._on_result(self._localize(request))
            except Exception as error:      # publishing failed: the thread must continue
                self._logger.error(f"Publishing failed: {error!r}")

    def _localize(self, request: LocalizationRequest) -> LocalizationResult:
        start = time.perf_counter()
        map_state = self._maps.state
        result = request.result(self._output.parameters.base_frame, status=INTERNAL_ERROR, message="",
                                map_number=map_state.number)
        if map_state.loaded is None:
            return result.rejected(NO_MAP, map_state.error or NO_MAP_MESSAGE)
        try:
            localize = self._decoded(request, map_state.loaded)
        except BadCameraError as error:
            return result.rejected(Status.BAD_CAMERA.value, str(error))
        except UserError as error:
            return result.rejected(Status.BAD_IMAGE.value, str(error))
        decoded = time.perf_counter()
        try:
            prior = None if request.is_rig else self._output.prior(result.header)
            estimate, decoded_images = localize(prior)
        except Exception as error:
            # Localizers do not raise on bad input, so this is a bug: report it, and keep the node running.
            self._logger.error(f"The localizer failed: {error!r}")
            return result.rejected(INTERNAL_ERROR, f"The localizer failed ({error!r}).")
        stage_ms = {"convert": (decoded - start) * 1e3, **estimate.stage_ms, "all": (time.perf_counter() - start) * 1e3}
        return replace(result, status=estimate.status.value, message=estimate.message, estimate=estimate,
                       stage_ms=stage_ms, had_prior=prior is not None, **decoded_images)

    def _decoded(self, request: LocalizationRequest, loaded: LoadedMap) -> _Localize:
        """Decode the image of a request, or those of a rig. Returns what localizes it."""
        if not request.is_rig:
            frame = frame_from_messages(request.image, request.camera_info, request.rectified)
            return lambda prior: (loaded.localizer.localize(frame, prior), {"frame": frame})
        localizer = loaded.rig_localizer
        if localizer is None:
            return lambda _: (NO_RIG_LOCALIZER, {})
        images, problems = rig_frame(request, self._output.base_from_camera)

        def localize(_: PriorPose | None) -> tuple[PoseEstimate, dict[str, Any]]:
            found = with_problems(localizer.localize(images), problems)
            return base_estimate(found), {"rig": (images, found)}
        return localize
