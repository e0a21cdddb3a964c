# SPDX-License-Identifier: Apache-2.0
"""The steps from an image to its result, from top to bottom: received, localized, checked and published, reported."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager

from rclpy.clock import ROSClock
from rclpy.node import Node

from aceg_ros.estimate import Status
from aceg_ros.ros.common.parameters import ParameterGroup
from aceg_ros.ros.localizer.display import Display
from aceg_ros.ros.localizer.image_input import ImageInput
from aceg_ros.ros.localizer.map_loader import MapLoader
from aceg_ros.ros.localizer.parameters import ImageParameters
from aceg_ros.ros.localizer.pose_output import FUTURE_NS, PoseOutput
from aceg_ros.ros.localizer.results import BAD_STAMP, REPLACED, LocalizationRequest, LocalizationResult
from aceg_ros.ros.localizer.rig_input import RigInput
from aceg_ros.ros.localizer.status_publisher import StatusPublisher
from aceg_ros.ros.localizer.worker import LocalizationWorker
from aceg_ros.ros.mapping.controller import MappingController
from aceg_ros.utils.stamps import ns_to_s, stamp_to_ns


class LocalizationPipeline:
    """Processes images, while it is active: from their topic to ~/pose, TF and ~/status.

    is_enabled: set by ~/enable; if it is off, only images that wait_for_result() waits for are localized. cameras:
    names of those of a rig, none for one camera.
    """

    def __init__(self, node: Node, *, maps: MapLoader, mapping: MappingController, output: PoseOutput,
                 status: StatusPublisher, display: Display) -> None:
        self._node, self._maps, self._mapping = node, maps, mapping
        self._output, self._status, self._display = output, status, display
        self.is_active, self.is_enabled = False, True
        self._waiting: list[tuple[int, Future[LocalizationResult]]] = []    # number of the last image before, future
        self._waiting_lock = threading.Lock()
        parameters = ParameterGroup(node, ImageParameters)
        self.cameras = parameters.value.rig
        self.input: ImageInput | RigInput = RigInput(node, self._image_received, self.cameras, parameters) \
            if self.cameras else ImageInput(node, self._image_received, parameters)
        self.worker = LocalizationWorker(maps, self._result_ready, node.get_logger(), output)

    @property
    def is_rig(self) -> bool:
        """Whether the images are those of several cameras."""
        return bool(self.cameras)

    # --- 1. in the executor: the image is received and passed to the worker ---

    def _image_received(self, request: LocalizationRequest, is_due: bool) -> None:
        self._status.count_received()
        self._mapping.submit(request)
        is_wanted = bool(self._waiting) or (self.is_enabled and is_due)
        if not is_wanted or not self.worker.is_running:
            self._status.count_skipped()
            return
        problem = self._missing_clock() or self._stamp_problem(stamp_to_ns(request.image.header.stamp))
        if problem:
            self._finish(self._not_localized(request, BAD_STAMP, problem))
            return
        if request.camera_info is None and self._maps.state.loaded is not None:
            self._finish(self._not_localized(request, Status.BAD_CAMERA.value, "No camera_info has been received on"
                                        f" {self.input.camera_info.topic} yet."))
            return
        replaced = self.worker.submit(request)
        if replaced is not None:
            self._status.publish_result(
                self._not_localized(replaced, REPLACED, "A newer image came before this one's turn."))

    def _stamp_problem(self, stamp_ns: int) -> str:
        if stamp_ns == 0:
            return "The image has no stamp: the camera driver must set it."
        ahead_ns = stamp_ns - self._node.get_clock().now().nanoseconds
        if ahead_ns <= FUTURE_NS:
            return ""
        sentence = f"The image's stamp lies in the future, by {ns_to_s(ahead_ns):.1f} s"
        if self._is_simulated:
            return f"{sentence} of /clock: use_sim_time is set, but the camera stamps by another clock."
        return f"{sentence}: synchronize the clocks, or set use_sim_time with a bag's clock."

    @property
    def _is_simulated(self) -> bool:
        clock = self._node.get_clock()
        return isinstance(clock, ROSClock) and clock.ros_time_is_active

    def _missing_clock(self) -> str:
        """Return the sentence that says so if the simulated time is waited for, else an empty string."""
        if not self._is_simulated or self._node.get_clock().now().nanoseconds:
            return ""
        return ("No time is heard on /clock, and use_sim_time is set: play the bag with its clock ('ros2 bag play"
                " --clock'), start the simulator, or set use_sim_time to false.")

    def missing_input(self) -> str:
        """Return the sentence that names what does not come: clock, camera_info or images; empty if all come."""
        return self._missing_clock() or self.input.missing_camera_info() or self.input.missing_images()

    # --- 2. in the worker's thread: the image was localized (worker.py), its pose is checked and published ---

    def _result_ready(self, result: LocalizationResult) -> None:
        if not self.is_active:
            return
        with ignore_errors_after_shutdown(self._node):
            if result.accepted and result.map_number != self._maps.state.number:
                result = result.rejected(REPLACED, "The map was changed while this image was being localized.")
            if result.accepted:
                result = self._output.publish(result)
            else:
                self._output.note_rejection(result)
            self._mapping.note_result(result)
            self._finish(result)
            self._display.show_result(result)

    # --- 3. in either thread: the result of the image is published and passed to services that wait for it ---

    def _finish(self, result: LocalizationResult) -> None:
        self._status.publish_result(result)
        with self._waiting_lock:
            finished = [future for number, future in self._waiting if result.number > number]
            self._waiting = [(number, future) for number, future in self._waiting if result.number <= number]
        for future in finished:
            future.set_result(result)

    def wait_for_result(self, timeout_s: float) -> LocalizationResult | None:
        """Wait for the result of the next image; None if there is none within timeout_s."""
        future: Future[LocalizationResult] = Future()
        with self._waiting_lock:
            self._waiting.append((self._status.received, future))
        try:
            return future.result(timeout_s)
        except FutureTimeoutError:
            with self._waiting_lock:
                self._waiting = [entry for entry in self._waiting if entry[1] is not future]
            return None

    def _not_localized(self, request: LocalizationRequest, status: str, message: str) -> LocalizationResult:
        return request.result(self._output.parameters.base_frame, status=status, message=message)


@contextmanager
def ignore_errors_after_shutdown(node: Node) -> Iterator[None]:
    """Ignore exceptions of a thread that publishes after a signal has ended the context."""
    try:
        yield
    except Exception:
        if node.context.ok():
            raise
