"""The one thread that thinks: loads maps and localizes the newest image. Callers never wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rclpy.impl.rcutils_logger import RcutilsLogger
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from aceg_ros.camera import Frame
from aceg_ros.errors import UserError
from aceg_ros.estimate import PoseEstimate, Status
from aceg_ros.ros.messages import camera_from_info, check_same_size, image_to_rgb, stamp_ns

if TYPE_CHECKING:      # a node starts seconds sooner without torch
    from aceg_ros.methods.base import Localizer

# Reasons that only a node has; all others are `Status` values.
NO_MAP = "no_map"
REPLACED = "replaced"
INTERNAL_ERROR = "internal_error"


@dataclass(frozen=True)
class Request:
    """An image to localize. info: the camera_info that belongs to it, or None where none has come yet."""

    image: Image
    info: CameraInfo | None


@dataclass(frozen=True)
class Answer:
    """What became of one image. status: a `Status` value or one of the reasons above."""

    header: Header
    status: str
    message: str
    estimate: PoseEstimate | None = None
    stage_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class MapState:
    """served: path of the map in use, or empty. error: why the newest one could not be loaded, or empty."""

    served: str = ""
    error: str = ""


class Worker:
    """Two one-slot mailboxes, map path and image, and the thread that empties them, maps first.

    on_answer and on_map are called from that thread.
    """

    def __init__(self, load: Callable[[str], Localizer], on_answer: Callable[[Answer], None],
                 on_map: Callable[[MapState], None], logger: RcutilsLogger) -> None:
        self._load, self._on_answer, self._on_map, self._logger = load, on_answer, on_map, logger
        self._changed = threading.Condition()
        self._path: str | None = None
        self._request: Request | None = None
        self._stopping = False
        self._localizer: Localizer | None = None
        self.map_state = MapState()
        self._thread = threading.Thread(target=self._run, name="localization", daemon=True)
        self._thread.start()

    def load_map(self, path: str) -> None:
        """Load this map (empty: none) after the work at hand; the present map serves until the new one is there."""
        with self._changed:
            self._path = path
            self._changed.notify()

    def localize(self, request: Request) -> Request | None:
        """Localize this image next. Returns the image that was still waiting and is replaced by this one."""
        with self._changed:
            replaced, self._request = self._request, request
            self._changed.notify()
        return replaced

    def stop(self, timeout_s: float = 10.0) -> None:
        """Finish the work at hand and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._path is not None or self._request is not None)
                if self._stopping:
                    return
                path, self._path = self._path, None
                request = None
                if path is None:
                    request, self._request = self._request, None
            try:
                if path is not None:
                    self._replace_map(path)
                elif request is not None:
                    self._on_answer(self._answer(request))
            except Exception as error:      # publishing failed: the thread must outlive it
                self._logger.error(f"Publishing failed: {error!r}")

    def _replace_map(self, path: str) -> None:
        try:
            self._localizer = self._load(path) if path else None
            self.map_state = MapState(served=path)
        except UserError as error:
            self.map_state = MapState(self.map_state.served, str(error))
        except Exception as error:
            self._logger.error(f"Unexpected failure while loading {path}: {error!r}")
            self.map_state = MapState(self.map_state.served, f"{path} could not be loaded ({error!r}).")
        self._on_map(self.map_state)

    def _answer(self, request: Request) -> Answer:
        header = request.image.header
        start = time.perf_counter()
        if self._localizer is None:
            return Answer(header, NO_MAP, self.map_state.error or "No map is loaded: set the parameter map_path.")
        if request.info is None:
            return Answer(header, Status.BAD_CAMERA.value, "No camera_info has been received yet.")
        try:
            camera = camera_from_info(request.info)
        except UserError as error:
            return Answer(header, Status.BAD_CAMERA.value, str(error))
        try:
            rgb = image_to_rgb(request.image)
        except UserError as error:
            return Answer(header, Status.BAD_IMAGE.value, str(error))
        try:
            check_same_size(rgb, camera)
        except UserError as error:
            return Answer(header, Status.BAD_CAMERA.value, str(error))
        converted = time.perf_counter()
        try:
            estimate = self._localizer.localize(Frame(rgb, camera, stamp_s=stamp_ns(header.stamp) * 1e-9))
        except Exception as error:
            # A localizer never raises on bad input; if it does, the node stays up and says so.
            self._logger.error(f"The localizer failed: {error!r}")
            return Answer(header, INTERNAL_ERROR, f"The localizer failed ({error!r}).")
        stage_ms = {"convert": (converted - start) * 1e3, **estimate.stage_ms,
                    "all": (time.perf_counter() - start) * 1e3}
        return Answer(header, estimate.status.value, estimate.message, estimate, stage_ms)
