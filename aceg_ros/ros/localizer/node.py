# SPDX-License-Identifier: Apache-2.0
"""LocalizerNode: connects the parts of this package and implements the lifecycle.

The docstring of `aceg_ros.ros.localizer` lists the steps from an image to its pose.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import wraps
from pathlib import Path

import cv2
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter

from aceg_ros.errors import UserError
from aceg_ros.ros.common.executor import WaitingCallbackGroup
from aceg_ros.ros.common.parameters import ParameterGroup
from aceg_ros.ros.common.run import run
from aceg_ros.ros.common.transform_lookup import TransformLookup
from aceg_ros.ros.localizer.bond import Bond
from aceg_ros.ros.localizer.display import Display
from aceg_ros.ros.localizer.map_loader import LoadedMap, MapLoader, MapState, load_localizer, load_rig_localizer
from aceg_ros.ros.localizer.parameters import LocalizerParameters
from aceg_ros.ros.localizer.pipeline import LocalizationPipeline, ignore_errors_after_shutdown
from aceg_ros.ros.localizer.pose_output import PoseOutput
from aceg_ros.ros.localizer.prior import load_last_pose, prior_from_message, save_last_pose
from aceg_ros.ros.localizer.services import LOAD_TIMEOUT_S, LocalizerServices
from aceg_ros.ros.localizer.status import NodeState, activation_advice
from aceg_ros.ros.localizer.status_publisher import StatusPublisher
from aceg_ros.ros.mapping.controller import MappingConfig, MappingController
from aceg_ros.utils.malloc import configure_malloc

STATUS_PERIOD_S, SAVE_POSE_PERIOD_S = 1.0, 5.0
SWITCH_INTERVAL_S = 0.0005
LoadMap = Callable[[str, str, int, int], LoadedMap]
Transition = Callable[["LocalizerNode", LifecycleState], TransitionCallbackReturn]


def _log_errors(transition: Transition) -> Transition:
    """Log exceptions of a transition, which rclpy turns into an error state without a message."""
    @wraps(transition)
    def logged(node: LocalizerNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except Exception as error:
            node.get_logger().error(f"{transition.__name__} failed: {error!r}")
            raise
    return logged


class LocalizerNode(LifecycleNodeMixin, Node):
    """Localizes a camera in a map, and builds maps on the robot.

    Args:
        load: Loads a map, given its path, device, seed and threads. Raises UserError if the file cannot be used.
        load_for_rigs: The same, for the parameter cameras.
        node_options: Options of rclpy.node.Node.
    """

    _is_complete = False        # rclpy also destroys nodes whose constructor failed

    def __init__(self, load: LoadMap, load_for_rigs: LoadMap = load_rig_localizer, **node_options) -> None:
        Node.__init__(self, "localizer", **node_options)
        self._transitions = WaitingCallbackGroup()        # loading a map takes seconds
        LifecycleNodeMixin.__init__(self, callback_group=self._transitions)
        self._own_parameters = ParameterGroup(self, LocalizerParameters, self._parameters_changed)
        self._loading: Future[MapState] | None = None
        self._maps = MapLoader(lambda path: self._load(load_for_rigs if self._pipeline.is_rig else load, path),
                               self._map_changed, self.get_logger())
        self._transforms = TransformLookup(self)
        self._output = PoseOutput(self, self._transforms, lambda: self._mapping.uses_map_tf)
        self._status = StatusPublisher(self)
        self._display = Display(self, self._own_parameters.value)
        self._mapping = MappingController(
            self, self._transforms, self._mapping_config(), cameras=lambda: self._pipeline.cameras,
            map_in_use=lambda: self._maps.state.path, use_map=self._use_map, on_change=self._mapping_changed)
        self._pipeline = LocalizationPipeline(self, maps=self._maps, mapping=self._mapping, output=self._output,
                                              status=self._status, display=self._display)
        self._service_calls = LocalizerServices(
            self, self._own_parameters, pipeline=self._pipeline, maps=self._maps, mapping=self._mapping,
            lifecycle=lambda: self._lifecycle, reset=self._reset_poses)
        self.create_subscription(PoseWithCovarianceStamped, "initialpose", self._initial_pose_received, 1)
        self._bond = Bond(self)
        self._create_timers()
        self._status.publish_mapping(self._mapping)
        self._check_rig()
        self._is_complete = True

    def _check_rig(self) -> None:
        frames = self._output.parameters
        if self._pipeline.is_rig and not frames.base_frame:
            raise UserError("The parameter cameras needs base_frame, the TF frame that the cameras are mounted on.")
        if self._pipeline.is_rig and frames.camera_frame:
            raise UserError("The parameter camera_frame is for one camera: those of a rig are the frame_ids of images.")

    def _load(self, load: LoadMap, path: str) -> LoadedMap:
        parameters = self._own_parameters.value
        return load(path, parameters.device, parameters.seed, parameters.threads)

    def _mapping_config(self) -> MappingConfig:
        parameters, frames = self._own_parameters.value, self._output.parameters
        return MappingConfig(device=parameters.device, seed=parameters.seed, map_frame=frames.map_frame,
                             camera_frame=frames.camera_frame)

    def _create_timers(self) -> None:
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(STATUS_PERIOD_S, self._report, clock=steady)
        self.create_timer(1.0 / self._output.parameters.tf_rate, self._republish_transform, clock=steady)
        self.create_timer(SAVE_POSE_PERIOD_S, self._save_last_pose, clock=steady)
        self._jumps = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True),
            post_callback=lambda _: self._reset_poses())
        if self._own_parameters.value.autostart:
            self._starter = self.create_timer(0.0, self._autostart, callback_group=self._transitions, clock=steady)

    # --- lifecycle ---

    @property
    def _lifecycle(self) -> str:
        return self._state_machine.current_state[1]

    def _autostart(self) -> None:
        self._starter.cancel()
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    @_log_errors
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the map and warm up.

        Fails if the map cannot be used. With autostart, the node starts all the same and reports the problem, so that
        another map can be loaded or made.
        """
        parameters = self._own_parameters.value
        self._pipeline.input.prepare()
        self._maps.start()
        self._pipeline.worker.start()
        if parameters.map_path:
            self._loading = self._maps.load(parameters.map_path)
            if self._loading.result().error and not parameters.autostart:
                self._stop_threads()
                self._pipeline.input.release()
                return TransitionCallbackReturn.FAILURE
            prior = load_last_pose(self._last_pose_file, parameters.map_path)
            if prior is not None:
                self._output.set_prior(prior)
        return TransitionCallbackReturn.SUCCESS

    @_log_errors
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._pipeline.is_active = True
        self._pipeline.input.start()
        self._bond.start()
        return TransitionCallbackReturn.SUCCESS

    @_log_errors
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._pipeline.is_active = False
        self._pipeline.input.stop()
        self._save_last_pose()
        self._output.reset()
        self._bond.end()
        return TransitionCallbackReturn.SUCCESS

    @_log_errors
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._mapping.cancel()
        self._stop_threads()
        self._pipeline.input.release()
        return TransitionCallbackReturn.SUCCESS

    @_log_errors
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.on_deactivate(state)
        return self.on_cleanup(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.on_shutdown(state)

    def destroy_node(self) -> None:
        if self._is_complete:
            self._pipeline.is_active = False
            self._save_last_pose()
            self._mapping.cancel()
            self._stop_threads()
        super().destroy_node()

    def _stop_threads(self) -> None:
        """Finish the current work, end the threads and release the map."""
        self._pipeline.worker.stop()
        self._maps.stop()

    # --- maps ---

    def _parameters_changed(self, old: LocalizerParameters, new: LocalizerParameters) -> None:
        if new.map_path != old.map_path and self._maps.is_running:
            self._loading = self._maps.load(new.map_path)

    def _map_changed(self, state: MapState) -> None:
        """Called in the thread that loads maps."""
        if state.error:
            self.get_logger().error(state.error)
        else:
            self._output.change_map()
            self.get_logger().info(f"Localizing in {state.path}." if state.path else "No map.")
        with ignore_errors_after_shutdown(self):
            if not state.error:
                self._display.show_map(state, self._output.parameters.map_frame)
            self._publish_node_status()

    def _use_map(self, path: str) -> str | None:
        """Switch to a new map. Called in the thread of the training. Returns the reason if that fails, or None."""
        result = self.set_parameters([Parameter("map_path", value=path)])[0]
        if not result.successful:
            return result.reason
        try:
            return self._loading.result(LOAD_TIMEOUT_S).error or None if self._loading is not None else None
        except (FutureTimeoutError, CancelledError):
            return f"{path} was not loaded within {LOAD_TIMEOUT_S:.0f} s."

    # --- poses ---

    def _republish_transform(self) -> None:
        if self._pipeline.is_active:
            self._output.republish()

    def _reset_poses(self) -> None:
        self._output.reset()
        self._transforms.clear()

    def _initial_pose_received(self, message: PoseWithCovarianceStamped) -> None:
        logger, parameters = self.get_logger(), self._output.parameters
        try:
            prior = prior_from_message(message, parameters.map_frame)
        except UserError as error:
            logger.warning(f"The initial pose was not used: {error}")
            return
        if not parameters.odom_frame:
            logger.warning("The initial pose is of no use without odom_frame: every image is localized by itself, and"
                           " its pose is not checked against earlier ones.")
            return
        self._output.set_prior(prior)
        x, y, z = prior.pose[:3, 3]
        logger.info(f"The initial pose (x {x:.2f}, y {y:.2f}, z {z:.2f} m) was taken: the next pose that agrees with it"
                    " counts at once.")

    @property
    def _last_pose_file(self) -> Path:
        return self._mapping.folder / "last_pose.json"

    def _save_last_pose(self) -> None:
        last, map_path = self._output.last_camera_pose, self._maps.state.path
        if last is None or not map_path:
            return
        try:
            save_last_pose(self._last_pose_file, map_path, *last)
        except UserError as error:
            self.get_logger().warning(str(error), once=True)

    # --- status ---

    def _report(self) -> None:
        """In the executor, once a second."""
        with ignore_errors_after_shutdown(self):
            if self._pipeline.is_active:
                self._pipeline.input.look_for_latched_camera_info()
            self._publish_node_status()
            self._status.publish_mapping(self._mapping, only_news=True)

    def _publish_node_status(self) -> None:
        lifecycle = self._lifecycle
        self._status.publish_node(
            NodeState(lifecycle=lifecycle, advice=activation_advice(self.get_fully_qualified_name(), lifecycle),
                      is_enabled=self._pipeline.is_enabled, device=self._own_parameters.value.device,
                      map_state=self._maps.state, missing_input=self._pipeline.missing_input(),
                      transform_problem=self._output.transform_problem),
            self._mapping)

    def _mapping_changed(self) -> None:
        """Called in threads of the mapping."""
        with ignore_errors_after_shutdown(self):
            self._status.publish_mapping(self._mapping)


def main() -> int:
    # Before any threads start: scipy fails in one thread while another thread is importing torch.
    import torch  # noqa: F401
    configure_malloc()
    cv2.setNumThreads(1)        # torch has the cores
    # After each operation of the network, localization waits for the interpreter, which the executor holds meanwhile.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return run(lambda: LocalizerNode(load_localizer))


if __name__ == "__main__":
    sys.exit(main())
