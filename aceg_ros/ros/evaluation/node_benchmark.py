# SPDX-License-Identifier: Apache-2.0
"""Measure the speed of the localizer node from outside, while a scene is played at a fixed rate.

    python -m aceg_ros.ros.evaluation.node_benchmark MAP SCENE --rate 15 --seconds 30 [--mapping] [--odometry]

It measures the published status of each image, the arrival of its pose, and twice a second a service call. With
--mapping, the node first records the scene, and is measured while it trains a map. With --odometry, the player has
odometry, and images are localized near the pose that it predicts.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.client import Client
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.task import Future
from std_srvs.srv import SetBool, Trigger

from aceg_ros.demo.processes import Processes
from aceg_ros.errors import UserError
from aceg_ros.evaluation.metrics import percentiles
from aceg_ros.ros.localizer.results import REPLACED
from aceg_ros.utils.stamps import ns_to_ms, stamp_to_ns

QUEUE = 1000          # messages: more than arrive while this process is busy
SERVICE_PERIOD_S = 0.5
COLLECT_S, MAPPING_BUDGET_S = 20.0, 120.0


class Observer(Node):
    """Counts statuses, and measures milliseconds from image stamp to status and pose, and of service calls.

    Attributes:
        ages_ms: From image stamp to status, as the node measures it.
        arrivals_ms: From image stamp to the arrival of the pose here.
        calls_ms: From service call to response.
        stages_ms: By stage of the localization.
    """

    def __init__(self) -> None:
        super().__init__("observer")
        self.training = False
        self._enable: Client = self.create_client(SetBool, "/localizer/enable")
        self.create_subscription(DiagnosticArray, "/localizer/status", self._count, QoSProfile(depth=QUEUE))
        self.create_subscription(PoseWithCovarianceStamped, "/localizer/pose", self._arrived, QoSProfile(depth=QUEUE))
        self.create_timer(SERVICE_PERIOD_S, self._call)
        self.clear()

    def clear(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.ages_ms: list[float] = []
        self.arrivals_ms: list[float] = []
        self.calls_ms: list[float] = []
        self.stages_ms: defaultdict[str, list[float]] = defaultdict(list)

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline:
            rclpy.spin_once(self, timeout_sec=0.05)
        return condition()

    def trigger(self, name: str) -> None:
        client: Client = self.create_client(Trigger, f"/localizer/{name}")
        client.wait_for_service(30.0)
        future = client.call_async(Trigger.Request())
        response = future.result() if self.wait(future.done, 30.0) else None
        if response is None or not response.success:
            raise UserError(f"~/{name} failed: {'no response' if response is None else response.message}")

    def _count(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {pair.key: pair.value for pair in status.values}
            if status.name.endswith(": mapping"):
                self.training = values["state"] == "training"
            elif status.name.endswith(": image"):
                self.outcomes[values["status"]] += 1
                if values["status"] != REPLACED:
                    self.ages_ms.append(float(values["age_ms"]))
                    for key in (key for key in values if key.startswith("stage_ms.")):
                        self.stages_ms[key.removeprefix("stage_ms.")].append(float(values[key]))

    def _arrived(self, message: PoseWithCovarianceStamped) -> None:
        self.arrivals_ms.append(ns_to_ms(self.get_clock().now().nanoseconds - stamp_to_ns(message.header.stamp)))

    def _call(self) -> None:
        if not self._enable.service_is_ready():
            return
        called = time.perf_counter()

        def responded(_: Future) -> None:
            self.calls_ms.append((time.perf_counter() - called) * 1e3)

        self._enable.call_async(SetBool.Request(data=True)).add_done_callback(responded)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("map", type=Path)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--rate", type=float, default=15.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--mapping", action="store_true")
    parser.add_argument("--odometry", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder) / "logs") as processes:
        frames = {"odom_frame": "odom", "base_frame": "base_link"} if options.odometry else {}
        localizer = processes.start("aceg_ros.ros.localizer_node", {
            "map_path": options.map.resolve(), "data_folder": Path(folder) / "data", "mapping_pose_source": "pose",
            "mapping_budget": MAPPING_BUDGET_S, **frames}, {"mapping_pose": "/scene_player/ground_truth"})
        processes.wait_for_line(localizer, "Localizing in")
        rclpy.init()
        observer = Observer()
        processes.start("aceg_ros.ros.scene_player", {"scene": options.scene.resolve(), "rate": options.rate,
                                                      "loop": True, "start_delay": 2.0,
                                                      "odometry": options.odometry})
        observer.wait(lambda: bool(observer.outcomes), 120.0)
        if options.mapping:
            observer.trigger("start_mapping")
            observer.wait(lambda: False, COLLECT_S)
            observer.trigger("stop_mapping")
            observer.wait(lambda: observer.training, 10.0)
        observer.clear()
        started = time.monotonic()
        observer.wait(lambda: options.mapping and not observer.training, options.seconds)
        seconds = time.monotonic() - started
        observer.destroy_node()
        rclpy.shutdown()
    localized = len(observer.ages_ms)
    print(f"{sum(observer.outcomes.values()) / seconds:.1f} images a second, {localized / seconds:.1f} processed in"
          f" {seconds:.0f} s{' of training' if options.mapping else ''}: {dict(observer.outcomes)}")
    for name, values in (("image to status, measured by the node", observer.ages_ms),
                         ("image to pose, measured outside", observer.arrivals_ms),
                         ("service call to response", observer.calls_ms)):
        print(f"{name}: {', '.join(f'{key} {value:.0f}' for key, value in percentiles(values).items())} ms,"
              f" most {max(values, default=float('nan')):.0f} ms")
    stages = ", ".join(f"{stage} {median(values):.1f}" for stage, values in observer.stages_ms.items())
    print(f"stages of an image, p50: {stages or 'none'} ms")
    if options.odometry:
        tracked, searched = len(observer.stages_ms["track"]), len(observer.stages_ms["solve"])
        print(f"of {localized} images, {tracked} had a prior, and {localized - searched} needed no search")
    return 0


if __name__ == "__main__":
    sys.exit(main())
