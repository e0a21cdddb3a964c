"""Localizes a camera in a map, and maps new places: images in, pose + TF + status out, services beside them."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as NotInTime
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header

from aceg_ros.camera import Camera, Frame
from aceg_ros.errors import UserError
from aceg_ros.estimate import PoseEstimate
from aceg_ros.ros.common.executor import WaitingCallbackGroup
from aceg_ros.ros.common.frames import Frames
from aceg_ros.ros.common.messages import cloud_message, image_message, pose_from_message, stamp_ns
from aceg_ros.ros.common.parameters import ParameterGroup, parameter
from aceg_ros.ros.common.run import run
from aceg_ros.ros.common.services import Outcome, offer_switch, offer_triggers
from aceg_ros.ros.localizer.image_input import ImageInput
from aceg_ros.ros.localizer.last_pose import load_last_pose, save_last_pose
from aceg_ros.ros.localizer.pose_output import FUTURE_NS, PoseOutput, Prior
from aceg_ros.ros.localizer.status import Tally, Window, answer_status, array, mapping_status, node_status
from aceg_ros.ros.localizer.worker import BAD_STAMP, REPLACED, Answer, LoadedMap, MapState, Request, Worker
from aceg_ros.ros.mapping.mapping import Mapping
from aceg_ros.utils.atomic_file import write_bytes
from aceg_ros.utils.malloc import configure_malloc, release_free_memory
from aceg_ros.visualization.overlay import draw_estimate

if TYPE_CHECKING:
    from aceg_ros.methods.base import Localizer
    from aceg_ros.visualization.rerun_viewer import Viewer

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
LOAD_S, LOCALIZE_S = 120.0, 10.0        # the most that ~/load_map and ~/trigger_localization wait
SAVE_POSE_S = 5.0
UNKNOWN_STD = np.array([0.3, 0.3, 1.0, 0.3, 0.3, 0.3])      # of an initialpose that leaves an entry at zero


def _map_path_refusal(path: str) -> str | None:
    return None if not path or os.path.isfile(path) else f"there is no file {path}."


Transition = Callable[["LocalizerNode", LifecycleState], TransitionCallbackReturn]


def _logged(transition: Transition) -> Transition:
    """rclpy takes an exception in a transition for an error without a word."""
    @wraps(transition)
    def logging(node: LocalizerNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except Exception as error:
            node.get_logger().error(f"{transition.__name__} failed: {error!r}")
            raise
    return logging


@dataclass(frozen=True)
class LocalizerParameters:
    map_path: str = parameter("", "Map file to localize in; changeable at run time, empty: none.",
                              check_change=_map_path_refusal)
    save_path: str = parameter("", "Where ~/save_map puts a copy of the map in use.")
    rerun: str = parameter("", "File (.rrd) to record map, images and poses into for the Rerun viewer, or window, to "
                           "open it; needs rerun-sdk.", read_only=True)
    autostart: bool = parameter(True, "Configure and activate at start, without a lifecycle manager.", read_only=True)
    device: str = parameter("auto", "Where inference runs.", choices=("auto", "cpu", "cuda"), read_only=True)
    threads: int = parameter(0, "CPU cores that inference may use; 0: half of them, the others are for the robot.",
                             minimum=0, maximum=1024, read_only=True)
    seed: int = parameter(0, "Seed of the pose solver and of mapping.", minimum=0, maximum=2**31 - 1, read_only=True)


class LocalizerNode(LifecycleNodeMixin, Node):
    """load: (map path, device, seed, threads) to a map in memory; raises UserError on a file that cannot be used."""

    _complete = False       # rclpy destroys nodes whose constructor failed, too

    def __init__(self, load: Callable[[str, str, int, int], LoadedMap], **node_options) -> None:
        Node.__init__(self, "localizer", **node_options)
        transitions = WaitingCallbackGroup()        # loading a map takes seconds
        LifecycleNodeMixin.__init__(self, callback_group=transitions)
        self._settings = ParameterGroup(self, LocalizerParameters, self._parameters_changed)
        settings = self._settings.value
        self._load = lambda path: load(path, settings.device, settings.seed, settings.threads)
        self._tally, self._window = Tally(), Window()
        self._status_lock = threading.Lock()        # several threads count and publish
        self._active, self._enabled = False, True
        self._worker: Worker | None = None
        self._loading: Future[MapState] | None = None
        self._awaited: list[tuple[int, Future[Answer]]] = []       # ~/trigger_localization: after which image, answer
        self._frames = Frames(self)
        self._output = PoseOutput(self, self._frames)
        self._input = ImageInput(self, self._image_received)
        self._status_publisher = self.create_publisher(DiagnosticArray, "~/status", 50)
        self._mapping_publisher = self.create_publisher(DiagnosticArray, "~/mapping_status", LATCHED)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._clouds = self.create_publisher(PointCloud2, "~/map_cloud", LATCHED)
        self._debug_images = self.create_publisher(Image, "~/debug_image", 2)
        self._viewer = _viewer(settings.rerun)
        self._mapping = Mapping(self, self._frames, settings.device, settings.seed, self._output.settings.map_frame,
                                self._output.settings.camera_frame, self._serve, self._mapping_changed)
        self._output.is_suspended = lambda: self._mapping.collects_from_tf
        self.create_subscription(PoseWithCovarianceStamped, "initialpose", self._initial_pose_received, 1)
        self._offer_services()
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0, self._publish_node_status, clock=steady)
        self.create_timer(1.0 / self._output.settings.tf_rate, self._republish, clock=steady)
        self.create_timer(SAVE_POSE_S, self._save_pose, clock=steady)
        self._jumps = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True),
            post_callback=lambda _: self._forget_transforms())
        if settings.autostart:
            self._starter = self.create_timer(0.0, self._start, callback_group=transitions, clock=steady)
        self._complete = True

    # --- lifecycle ---

    def _start(self) -> None:
        self._starter.cancel()
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    @_logged
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the map and warm up. Without a map that can be used: a failure, but with autostart the node stays up
        and says so, so that another can be loaded or made."""
        settings = self._settings.value
        self._worker = Worker(self._load, self._answer_given, self._map_changed, self.get_logger())
        if settings.map_path:
            self._loading = self._worker.load_map(settings.map_path)
            if self._loading.result().error and not settings.autostart:
                self._free()
                return TransitionCallbackReturn.FAILURE
            prior = load_last_pose(self._pose_file, settings.map_path)
            if prior is not None:
                self._output.expect(Prior(*prior))
        return TransitionCallbackReturn.SUCCESS

    @_logged
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._active = True
        self._input.start()
        return TransitionCallbackReturn.SUCCESS

    @_logged
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._active = False
        self._input.stop()
        self._save_pose()
        self._output.reset()
        return TransitionCallbackReturn.SUCCESS

    @_logged
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._mapping.shutdown()
        self._free()
        return TransitionCallbackReturn.SUCCESS

    @_logged
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.on_deactivate(state)
        return self.on_cleanup(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.on_shutdown(state)

    def destroy_node(self) -> None:
        if self._complete:
            self._active = False
            self._save_pose()
            self._mapping.shutdown()
            self._free()
        super().destroy_node()

    @property
    def _lifecycle(self) -> str:
        return self._state_machine.current_state[1]

    def _free(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    # --- images ---

    def _image_received(self, request: Request, is_due: bool) -> None:
        self._tally.received += 1
        self._window.received()
        self._mapping.offer(request)
        worker = self._worker
        if worker is None or (not self._awaited and not (self._enabled and is_due)):
            self._tally.skipped += 1
            return
        stamp = stamp_ns(request.image.header.stamp)
        if stamp == 0 or stamp > self.get_clock().now().nanoseconds + FUTURE_NS:
            message = "The image has no stamp: the camera driver must set it." if stamp == 0 else \
                "The image's stamp lies in the future: synchronize the clocks, or set use_sim_time with a bag's clock."
            self._conclude(Answer(request.number, request.image.header, BAD_STAMP, message))
            return
        replaced = worker.localize(request)
        if replaced is not None:
            self._publish_status(Answer(replaced.number, replaced.image.header, REPLACED,
                                        "A newer image came before this one's turn."))

    def _answer_given(self, answer: Answer) -> None:
        """In the worker's thread."""
        worker = self._worker
        if not self._active or worker is None:
            return
        with self._unless_shut_down():
            if answer.accepted and answer.map_number != worker.map_number:
                answer = answer.refused(REPLACED, "The map was changed while this image was being localized.")
            if answer.accepted:
                answer = self._output.take(answer)
            self._conclude(answer)
            if answer.frame is not None and answer.estimate is not None:
                self._show(answer.frame, answer.estimate, answer.header)

    def _show(self, frame: Frame, estimate: PoseEstimate, header: Header) -> None:
        """To those who look."""
        if self._viewer is not None:
            self._viewer.show_estimate(frame, estimate)
        if self._debug_images.get_subscription_count():
            self._debug_images.publish(image_message(draw_estimate(frame, estimate), header))

    def _conclude(self, answer: Answer) -> None:
        self._publish_status(answer)
        with self._status_lock:
            heard = [future for number, future in self._awaited if answer.number > number]
            self._awaited = [(number, future) for number, future in self._awaited if answer.number <= number]
        for future in heard:
            future.set_result(answer)

    def _initial_pose_received(self, message: PoseWithCovarianceStamped) -> None:
        if message.header.frame_id.lstrip("/") != self._output.settings.map_frame.lstrip("/"):
            self.get_logger().warning(f"An initial pose in '{message.header.frame_id}' is of no use here: give it in"
                                      f" '{self._output.settings.map_frame}'.")
            return
        covariance = np.reshape(message.pose.covariance, (6, 6)).astype(float)
        try:
            pose = pose_from_message(message.pose.pose)
        except UserError as error:
            self.get_logger().warning(f"The initial pose was not taken: {error}")
            return
        if not np.isfinite(covariance).all() or (np.diag(covariance) < 0).any():
            self.get_logger().warning("The initial pose was not taken: its covariance is none.")
            return
        # RViz gives x, y and heading only.
        unknown = np.diag(covariance) == 0
        covariance[unknown, unknown] = UNKNOWN_STD[unknown] ** 2
        self._output.expect(Prior(pose, covariance, is_base=True))

    # --- services ---

    def _offer_services(self) -> None:
        mapping = self._mapping
        offer_triggers(self, {
            "start_mapping": self._when_active(mapping.start), "stop_mapping": self._when_active(mapping.stop),
            "cancel_mapping": mapping.cancel, "load_map": self._when_active(self._load_map),
            "save_map": self._save_map, "reset": self._reset,
            "trigger_localization": self._when_active(self._trigger_localization)})
        offer_switch(self, "enable", self._enable)

    def _when_active(self, action: Callable[[], Outcome]) -> Callable[[], Outcome]:
        def guarded() -> Outcome:
            return action() if self._active else (
                False, f"The node is {self._lifecycle}: 'ros2 lifecycle set {self.get_fully_qualified_name()}"
                       " configure', then 'activate'.")
        return guarded

    def _load_map(self) -> Outcome:
        path, worker = self._settings.value.map_path, self._worker
        if not path:
            return False, "Set the parameter map_path to the map first."
        if worker is None:
            return False, f"The node is {self._lifecycle}."
        try:
            state = worker.load_map(path).result(LOAD_S)
        except NotInTime:
            return False, f"{path} is still being loaded after {LOAD_S:.0f} s; ~/status will say how it ends."
        if state.error:
            return False, f"{state.error} {f'The map {state.served} stays in use.' if state.served else ''}".strip()
        return True, f"Localizing in {path}."

    def _save_map(self) -> Outcome:
        served, path = self._worker.map_state.served if self._worker else "", self._settings.value.save_path
        if not served:
            return False, "There is no map to save."
        if not path:
            return False, f"Set the parameter save_path first; the map in use is {served}."
        target = Path(path).expanduser()
        if target.is_dir():
            return False, f"save_path {target} is a folder: give a file name, such as {target / 'place.map'}."
        kept = ""
        try:
            if target.exists() and target.samefile(served):
                return True, f"The map in use is {target} already."
            content = Path(served).read_bytes()
            if target.exists():
                backup = target.with_name(f"{target.name}.{datetime.now():%Y%m%d_%H%M%S_%f}")
                shutil.copy2(target, backup)    # the old name serves the old map until the new one takes it
                kept = f" The map that was there is now {backup}."
            write_bytes(target, content)
        except OSError as error:
            return False, f"{served} cannot be saved as {target}: {error.strerror or error}."
        return True, f"Saved {served} as {target}.{kept}"

    def _forget_transforms(self) -> None:
        self._output.reset()
        self._frames.clear()

    def _reset(self) -> Outcome:
        self._forget_transforms()
        return True, "Forgot poses, path and transforms; the next fixes start anew."

    def _enable(self, on: bool) -> Outcome:
        self._enabled = on
        return True, "Localizing." if on else "Localization is switched off; ~/trigger_localization still works."

    def _trigger_localization(self) -> Outcome:
        answered: Future[Answer] = Future()
        with self._status_lock:
            self._awaited.append((self._tally.received, answered))
        try:
            answer = answered.result(LOCALIZE_S)
        except NotInTime:
            with self._status_lock:
                self._awaited = [entry for entry in self._awaited if entry[1] is not answered]
            return False, f"No image was answered within {LOCALIZE_S:.0f} s."
        if not answer.accepted:
            return False, f"{answer.status}: {answer.message}"
        assert answer.estimate is not None and answer.estimate.map_from_camera is not None
        x, y, z = answer.estimate.map_from_camera[:3, 3]
        return True, f"The camera is at x {x:.3f}, y {y:.3f}, z {z:.3f} m: {answer.message}"

    # --- maps ---

    def _parameters_changed(self, old: LocalizerParameters, new: LocalizerParameters) -> None:
        if new.map_path != old.map_path and self._worker is not None:
            self._loading = self._worker.load_map(new.map_path)

    def _serve(self, path: str) -> str | None:
        """Switch to a new map; in the thread that trained it."""
        result = self.set_parameters([Parameter("map_path", value=path)])[0]
        if not result.successful:
            return result.reason
        try:
            return self._loading.result(LOAD_S).error or None if self._loading is not None else None
        except (NotInTime, CancelledError):
            return f"{path} was not loaded within {LOAD_S:.0f} s."

    def _map_changed(self, state: MapState) -> None:
        """In the thread that loads maps."""
        if state.error:
            self.get_logger().error(state.error)
        else:
            self._output.change_map()
            self.get_logger().info(f"Localizing in {state.served}." if state.served else "No map.")
        with self._unless_shut_down():
            if not state.error:
                header = Header(stamp=self.get_clock().now().to_msg(), frame_id=self._output.settings.map_frame)
                scene_map = state.scene_map
                xyz, rgb = (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8)) if scene_map is None else \
                    (scene_map.cloud_xyz, scene_map.cloud_rgb)
                self._clouds.publish(cloud_message(xyz, rgb, header))
                if self._viewer is not None and scene_map is not None:
                    self._viewer.show_map(scene_map)
            self._publish_node_status()

    @property
    def _pose_file(self) -> Path:
        return self._mapping.folder / "last_pose.json"

    def _save_pose(self) -> None:
        last, worker = self._output.last_camera, self._worker
        if last is None or worker is None or not worker.map_state.served:
            return
        try:
            save_last_pose(self._pose_file, worker.map_state.served, *last)
        except UserError as error:
            self.get_logger().warning(str(error), once=True)

    # --- saying how it goes ---

    def _republish(self) -> None:
        if self._active:
            self._output.republish()

    def _publish_status(self, answer: Answer) -> None:
        age_ms = (self.get_clock().now().nanoseconds - stamp_ns(answer.header.stamp)) * 1e-6
        with self._status_lock:
            self._tally.by_status[answer.status] += 1
            self._window.answered(answer, age_ms)
            self._status_publisher.publish(answer_status(self.get_name(), answer, age_ms, self._tally))

    def _publish_node_status(self) -> None:
        header = Header(stamp=self.get_clock().now().to_msg())
        map_state = self._worker.map_state if self._worker is not None else MapState()
        with self._status_lock:
            status = node_status(self.get_name(), self._lifecycle, self._enabled, map_state, self._input.has_info,
                                 self._settings.value.device, self._tally, self._window)
            self._status_publisher.publish(array(header, status))
            self._diagnostics.publish(array(header, status, mapping_status(self.get_name(), self._mapping)))

    def _mapping_changed(self) -> None:
        with self._unless_shut_down():
            header = Header(stamp=self.get_clock().now().to_msg())
            status = mapping_status(self.get_name(), self._mapping)
            with self._status_lock:
                self._mapping_publisher.publish(array(header, status))
                self._status_publisher.publish(array(header, status))

    @contextmanager
    def _unless_shut_down(self) -> Iterator[None]:
        """A signal can end the context at any moment: what a thread then fails to publish, nobody waits for."""
        try:
            yield
        except Exception:
            if self.context.ok():
                raise


def _viewer(target: str) -> Viewer | None:
    if not target:
        return None
    from aceg_ros.visualization.rerun_viewer import Viewer
    return Viewer(None if target == "window" else Path(target).expanduser())


@dataclass(frozen=True)
class _OnThreads:
    """A localizer that computes on so many threads, whichever thread calls it: torch keeps their number per thread."""

    localizer: Localizer
    threads: int

    def localize(self, frame: Frame) -> PoseEstimate:
        import torch
        torch.set_num_threads(self.threads)
        return self.localizer.localize(frame)


def load_localizer(path: str, device: str, seed: int, threads: int = 0) -> LoadedMap:
    """threads: 0 for half of the cores. An operation of two threads waits for the slower one, so where the second core
    has other work as well, one thread is as fast and steadier (docs/benchmarks/2026-11-25-node.md)."""
    from aceg_ros.maps.scene_map import SceneMap
    from aceg_ros.methods.registry import make_localizer
    scene_map = SceneMap.load(path)
    localizer = _OnThreads(make_localizer(scene_map, device, seed), threads or max(1, (os.cpu_count() or 1) // 2))
    release_free_memory()        # of this map's making, and of maps before it
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    camera = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=320.0, cy=240.0)
    localizer.localize(Frame(image=noise, camera=camera))       # the first call is the slow one
    return LoadedMap(localizer, scene_map)


def main() -> int:
    # Here, before there are threads: scipy fails in one thread while another one is in the middle of importing torch.
    import torch  # noqa: F401
    configure_malloc()
    cv2.setNumThreads(1)        # torch has the cores
    return run(lambda: LocalizerNode(load_localizer))


if __name__ == "__main__":
    sys.exit(main())
