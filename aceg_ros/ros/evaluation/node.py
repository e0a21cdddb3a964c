# SPDX-License-Identifier: Apache-2.0
"""Evaluate a localizer node over its topics while a scene is played, and compare with `aceg evaluate`."""

from __future__ import annotations

import signal
import sys
import time

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.task import Future
from sensor_msgs.msg import Image

from aceg_ros.datasets import Scene
from aceg_ros.errors import UserError
from aceg_ros.evaluation.node_recording import ImageStatus, NodeRecording
from aceg_ros.ros.common.messages import pose_from_message
from aceg_ros.ros.common.parameters import ParameterGroup
from aceg_ros.ros.common.run import run
from aceg_ros.ros.evaluation.comparison import describe, evaluate_recording
from aceg_ros.ros.evaluation.parameters import EvaluationParameters
from aceg_ros.ros.players.playback import clock_offset_ns
from aceg_ros.ros.players.scene_player import SceneParameters
from aceg_ros.ros.start import exit_at_once
from aceg_ros.utils.malloc import configure_malloc
from aceg_ros.utils.stamps import ns_to_s, s_to_ns, stamp_to_ns

START_S = 120.0         # time for player and localizer to start
_DEEP = QoSProfile(depth=10000)


class EvaluationNode(Node):
    """Collects results and poses until the result of the last frame arrives, or until a timeout without results."""

    def __init__(self) -> None:
        super().__init__("evaluation")
        self.done: Future[None] = Future()
        self.parameters = ParameterGroup(self, EvaluationParameters).value
        self.scene = ParameterGroup(self, SceneParameters).value.open()
        self.recording, self.recorded = _expected_frames(self.scene)
        pause_s = ns_to_s(int(max(np.diff(self.recording.images), default=0))) / self.parameters.speed
        self._timeout_s = self.parameters.result_timeout + pause_s
        self._last_result_s = time.monotonic() + START_S
        self.create_subscription(DiagnosticArray, "localizer/status", self._status_received, _DEEP)
        self.create_subscription(PoseWithCovarianceStamped, "localizer/pose", self._pose_received, _DEEP)
        # The player waits for this subscriber, so that no image is played before all nodes are ready.
        self._first_image = self.create_subscription(
            Image, "image", self._first_image_received, qos_profile_sensor_data, raw=True)
        self.create_timer(0.5, self._check, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.get_logger().info(f"Waiting for the results of {len(self.recording.images)} frames of {self.scene.name}.")

    def _first_image_received(self, _image: bytes) -> None:
        self.destroy_subscription(self._first_image)
        self._last_result_s = time.monotonic()

    def _status_received(self, message: DiagnosticArray) -> None:
        status, stamp = message.status[0], stamp_to_ns(message.header.stamp)
        if status.name.endswith(": image") and stamp in self.recorded:
            values = {pair.key: pair.value for pair in status.values}
            self.recording.statuses[stamp] = ImageStatus(status=values["status"], message=status.message, values=values)
            self._last_result_s = time.monotonic()

    def _pose_received(self, message: PoseWithCovarianceStamped) -> None:
        self.recording.poses[stamp_to_ns(message.header.stamp)] = (pose_from_message(message.pose.pose),
                                                                   np.reshape(message.pose.covariance, (6, 6)))

    def _check(self) -> None:
        last = self.recording.images[-1]
        complete = last in self.recording.statuses and time.monotonic() > self._last_result_s + 1.0
        if complete or time.monotonic() > self._last_result_s + self._timeout_s:
            self.done.set_result(None)


def _expected_frames(scene: Scene) -> tuple[NodeRecording, dict[int, tuple[str, float]]]:
    """Return the frames that will be played: true poses, names and recorded stamps, by their stamps in playback."""
    recording, recorded, offset = NodeRecording(), {}, None
    for frame in scene:
        offset = clock_offset_ns(frame.stamp_s) if offset is None else offset
        stamp = s_to_ns(frame.stamp_s) + offset
        recording.images.append(stamp)
        assert frame.map_from_camera is not None        # a scene that was opened as posed has no others
        recording.truths[stamp], recorded[stamp] = frame.map_from_camera, (frame.name, frame.stamp_s)
    return recording, recorded


def main() -> int:
    configure_malloc()
    nodes: list[EvaluationNode] = []

    def make_node() -> EvaluationNode:
        nodes.append(EvaluationNode())
        return nodes[-1]

    code = run(make_node)
    if code or not nodes or not nodes[0].done.done():
        return code
    signal.signal(signal.SIGINT, exit_at_once)      # what follows takes as long as the scene did
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        content = evaluate_recording(nodes[0].recording, nodes[0].recorded, nodes[0].scene, nodes[0].parameters)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(f"{describe(content)} {nodes[0].parameters.output}/report.html", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
