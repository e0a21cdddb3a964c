"""Judges a localizer node over its topics while a scene is played with its clock, and compares with `aceg evaluate`."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.task import Future
from sensor_msgs.msg import Image

from aceg_ros.errors import UserError
from aceg_ros.evaluation.evaluate import Evaluation, evaluate_map, report_json
from aceg_ros.evaluation.html_page import write_page
from aceg_ros.evaluation.metrics import FrameResult, summarize
from aceg_ros.evaluation.node_recording import ImageStatus, NodeRecording
from aceg_ros.geometry import pose_error
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.ros.common.messages import pose_from_message
from aceg_ros.ros.common.parameters import ParameterGroup, not_empty, parameter
from aceg_ros.ros.common.run import run
from aceg_ros.ros.players.playback import clock_offset_ns, recorded_ns
from aceg_ros.ros.players.scene_player import SceneParameters
from aceg_ros.utils.atomic_file import without_nan, write_json
from aceg_ros.utils.device import pick_device
from aceg_ros.utils.malloc import configure_malloc
from aceg_ros.utils.stamps import stamp_to_ns

START_S = 120.0         # for player and localizer to get ready
_DEEP = QoSProfile(depth=10000)


@dataclass(frozen=True)
class EvaluationParameters:
    map: str = parameter("", "Map file that the localizer has.", read_only=True, check=not_empty)
    output: str = parameter("evaluation", "Folder for evaluation.json and report.html.", read_only=True)
    silence: float = parameter(15.0, "Seconds without a word of the localizer, beyond the pauses of the recording, "
                               "after which the drive is over.", minimum=1.0, maximum=3600.0, read_only=True)
    speed: float = parameter(1.0, "Recorded seconds in a real one, as the player has it: for latencies.",
                             minimum=0.01, maximum=100.0, read_only=True)
    device: str = parameter("auto", "Where the offline evaluation runs.", choices=("auto", "cpu", "cuda"),
                            read_only=True)
    seed: int = parameter(0, "Seed of the pose solver.", minimum=0, maximum=2**31 - 1, read_only=True)


class EvaluationNode(Node):
    """Collects answers and poses until the last frame of the scene was answered, or until nothing comes any more."""

    def __init__(self) -> None:
        super().__init__("evaluation")
        self.done: Future[None] = Future()
        self.parameters = ParameterGroup(self, EvaluationParameters).value
        self.scene = ParameterGroup(self, SceneParameters).value.open()
        self.recording, self.recorded = _expected(self.scene)
        pause_s = 1e-9 * max(np.diff(self.recording.images), default=0) / self.parameters.speed
        self._patience_s = self.parameters.silence + pause_s
        self._heard_s = time.monotonic() + START_S
        self.create_subscription(DiagnosticArray, "localizer/status", self._status, _DEEP)
        self.create_subscription(PoseWithCovarianceStamped, "localizer/pose", self._pose, _DEEP)
        # The player waits for this subscriber: nothing is played before everybody listens.
        self._listening = self.create_subscription(Image, "image", self._begun, qos_profile_sensor_data, raw=True)
        self.create_timer(0.5, self._check, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.get_logger().info(f"Waiting for answers to {len(self.recording.images)} frames of {self.scene.name}.")

    def _begun(self, _image: bytes) -> None:
        self.destroy_subscription(self._listening)
        self._heard_s = time.monotonic()

    def _status(self, message: DiagnosticArray) -> None:
        status, stamp = message.status[0], stamp_to_ns(message.header.stamp)
        if status.name.endswith(": image") and stamp in self.recorded:
            values = {pair.key: pair.value for pair in status.values}
            self.recording.statuses[stamp] = ImageStatus(status=values["status"], message=status.message, values=values)
            self._heard_s = time.monotonic()

    def _pose(self, message: PoseWithCovarianceStamped) -> None:
        self.recording.poses[stamp_to_ns(message.header.stamp)] = (pose_from_message(message.pose.pose),
                                                                   np.reshape(message.pose.covariance, (6, 6)))

    def _check(self) -> None:
        last = self.recording.images[-1]
        complete = last in self.recording.statuses and time.monotonic() > self._heard_s + 1.0
        if complete or time.monotonic() > self._heard_s + self._patience_s:
            self.done.set_result(None)


def _expected(scene: Any) -> tuple[NodeRecording, dict[int, tuple[str, float]]]:
    """The frames that will be played, with true poses, names and own stamps, by the stamps they will have."""
    recording, recorded, offset = NodeRecording(), {}, None
    for frame in scene:
        offset = clock_offset_ns(frame.stamp_s) if offset is None else offset
        stamp = recorded_ns(frame.stamp_s) + offset
        recording.images.append(stamp)
        recording.truths[stamp], recorded[stamp] = frame.map_from_camera, (frame.name, frame.stamp_s)
    return recording, recorded


def judge(node: EvaluationNode) -> dict[str, Any]:
    """Evaluate the scene offline as well; write and return both, and how far they are apart."""
    parameters, recording = node.parameters, node.recording
    answered = recording.frame_results(node.recorded, parameters.speed)
    if not answered:
        raise UserError("The localizer answered no frame: is it running, with this map and use_sim_time?")
    device = pick_device(parameters.device)
    scene_map = SceneMap.load(parameters.map)
    offline = evaluate_map(scene_map, node.scene, name="offline", path=Path(parameters.map), device=device,
                           seed=parameters.seed)
    figures = report_json(summarize(answered), scene_map, path=Path(parameters.map), device=device,
                          seed=parameters.seed, skipped=len(node.scene.skipped))
    content = without_nan({
        "frames": len(recording.images), "not_answered": {"lost": 0} | recording.not_evaluated(),
        "difference": difference(answered, offline.results), "over_topics": figures, "offline": offline.statistics})
    output = Path(parameters.output)
    write_json(content, output / "evaluation.json")
    over_topics = Evaluation(name="over topics", results=answered, scene_map=scene_map, statistics=figures)
    write_page(output / "report.html", [over_topics, offline], node.scene.name, node.scene)
    return content


def difference(answered: Sequence[FrameResult], offline: Sequence[FrameResult]) -> dict[str, Any]:
    """Frames that were accepted only once, and the largest distance between the two poses of a frame."""
    expected = {result.name: result.estimate for result in offline}
    both = [(result.estimate, expected[result.name]) for result in answered]
    apart = [pose_error(a.map_from_camera, b.map_from_camera) for a, b in both
             if a.map_from_camera is not None and b.map_from_camera is not None]
    largest = np.max(apart, axis=0) if apart else (float("nan"), float("nan"))
    return {"compared": len(both), "accepted_only_once": sum(a.accepted != b.accepted for a, b in both),
            "most_m": float(largest[0]), "most_deg": float(largest[1])}


def main() -> int:
    configure_malloc()
    nodes: list[EvaluationNode] = []

    def make_node() -> EvaluationNode:
        nodes.append(EvaluationNode())
        return nodes[-1]

    code = run(make_node)
    if code or not nodes or not nodes[0].done.done():
        return code
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)       # what follows takes as long as the scene did
    try:
        content = judge(nodes[0])
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    topics, offline, apart = content["over_topics"], content["offline"], content["difference"]
    for name, figures in (("over topics", topics), ("offline", offline)):
        print(f"{name:12s} {figures['localized']} of {figures['frames']} localized, median"
              f" {figures['median_translation_m']} m {figures['median_rotation_deg']} deg, recall {figures['recall']}")
    print(f"{apart['compared']} frames compared, {apart['accepted_only_once']} accepted only once; poses at most"
          f" {apart['most_m']} m {apart['most_deg']} deg apart. {nodes[0].parameters.output}/report.html", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
