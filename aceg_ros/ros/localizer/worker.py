"""The threads that think: one localizes the newest image, one loads maps. Callers never wait for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rclpy.impl.rcutils_logger import RcutilsLogger
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from aceg_ros.camera import Frame
from aceg_ros.errors import UserError
from aceg_ros.estimate import PoseEstimate, Status
from aceg_ros.ros.common.messages import BadCameraError, frame_from_messages, stamp_ns

if TYPE_CHECKING:      # a node starts seconds sooner without torch
    from aceg_ros.maps.scene_map import SceneMap
    from aceg_ros.methods.base import Localizer

# Reasons that only a node has; all others are `Status` values.
NO_MAP = "no_map"
REPLACED = "replaced"
INTERNAL_ERROR = "internal_error"
BAD_STAMP = "bad_stamp"              # zero, or in the future
NO_TRANSFORM = "no_transform"        # TF lacks the odometry or the camera's place on the robot
UNCONFIRMED = "unconfirmed"          # lies elsewhere than expected: further fixes must agree first


@dataclass(frozen=True)
class Request:
    """An image to localize. number: counts the images. info: the camera_info that belongs to it, or None where none has
    come yet. rectified: whether the image is free of distortion already."""

    number: int
    image: Image | CompressedImage
    info: CameraInfo | None
    rectified: bool = False


@dataclass(frozen=True)
class Answer:
    """What became of one image. status: a `Status` value or one of the reasons above. map_number: of the worker when it
    began. frame: the picture, where it could be read."""

    number: int
    header: Header
    status: str
    message: str
    estimate: PoseEstimate | None = None
    stage_ms: dict[str, float] = field(default_factory=dict)
    map_number: int = 0
    frame: Frame | None = field(default=None, repr=False)

    @property
    def accepted(self) -> bool:
        return self.status == Status.ACCEPTED.value

    def refused(self, status: str, message: str) -> Answer:
        """The same image, but its pose is not to be used."""
        return replace(self, status=status, message=message)


@dataclass(frozen=True)
class LoadedMap:
    """A map ready to localize in. scene_map: None where there is nothing to show."""

    localizer: Localizer
    scene_map: SceneMap | None = None


@dataclass(frozen=True)
class MapState:
    """served: path of the map in use, or empty. error: why the newest one could not be loaded, or empty."""

    served: str = ""
    error: str = ""
    scene_map: SceneMap | None = field(default=None, repr=False)


class Worker:
    """A one-slot mailbox for images and the thread that empties it; beside it the thread that loads maps.

    on_answer is called from the first, on_map from the second.
    """

    def __init__(self, load: Callable[[str], LoadedMap], on_answer: Callable[[Answer], None],
                 on_map: Callable[[MapState], None], logger: RcutilsLogger) -> None:
        self._load, self._on_answer, self._on_map, self._logger = load, on_answer, on_map, logger
        self._changed = threading.Condition()
        self._request: Request | None = None
        self._stopping = False
        self._localizer: Localizer | None = None
        self.map_number = 0             # counts the changes
        self.map_state = MapState()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="map loading")
        self._thread = threading.Thread(target=self._run, name="localization", daemon=True)
        self._thread.start()

    def load_map(self, path: str) -> Future[MapState]:
        """Load this map (empty: none); the present one serves until the new one is there, or for ever where that fails.

        The result is the state after it.
        """
        return self._loader.submit(self._replace_map, path)

    def localize(self, request: Request) -> Request | None:
        """Localize this image next. Returns the image that was still waiting and is replaced by this one."""
        with self._changed:
            replaced, self._request = self._request, request
            self._changed.notify()
        return replaced

    def stop(self, timeout_s: float = 10.0) -> None:
        """Finish the work at hand, end the threads and let go of the map."""
        self._loader.shutdown(wait=True, cancel_futures=True)
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout_s)
        self._localizer = None

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._request is not None)
                if self._stopping:
                    return
                request, self._request = self._request, None
            assert request is not None
            try:
                self._on_answer(self._answer(request))
            except Exception as error:      # publishing failed: the thread must outlive it
                self._logger.error(f"Publishing failed: {error!r}")

    def _replace_map(self, path: str) -> MapState:
        try:
            loaded = self._load(path) if path else None
            self.map_number += 1        # before: an answer of the old map never passes for one of the new
            self._localizer = None if loaded is None else loaded.localizer
            self.map_state = MapState(path, scene_map=None if loaded is None else loaded.scene_map)
        except UserError as error:
            self.map_state = replace(self.map_state, error=str(error))
        except Exception as error:
            self._logger.error(f"Unexpected failure while loading {path}: {error!r}")
            self.map_state = replace(self.map_state, error=f"{path} could not be loaded ({error!r}).")
        try:
            self._on_map(self.map_state)
        except Exception as error:
            self._logger.error(f"Publishing failed: {error!r}")
        return self.map_state

    def _answer(self, request: Request) -> Answer:
        map_number = self.map_number
        number, header, localizer = request.number, request.image.header, self._localizer
        start = time.perf_counter()
        if localizer is None:
            return Answer(number, header, NO_MAP, self.map_state.error or "No map is loaded: set the parameter"
                          " map_path, or make one with ~/start_mapping.")
        try:
            frame = frame_from_messages(request.image, request.info, request.rectified)
        except BadCameraError as error:
            return Answer(number, header, Status.BAD_CAMERA.value, str(error))
        except UserError as error:
            return Answer(number, header, Status.BAD_IMAGE.value, str(error))
        frame = replace(frame, stamp_s=stamp_ns(header.stamp) * 1e-9)
        converted = time.perf_counter()
        try:
            estimate = localizer.localize(frame)
        except Exception as error:
            # A localizer never raises on bad input; if it does, the node stays up and says so.
            self._logger.error(f"The localizer failed: {error!r}")
            return Answer(number, header, INTERNAL_ERROR, f"The localizer failed ({error!r}).")
        stage_ms = {"convert": (converted - start) * 1e3, **estimate.stage_ms,
                    "all": (time.perf_counter() - start) * 1e3}
        return Answer(number, header, estimate.status.value, estimate.message, estimate, stage_ms, map_number, frame)
