"""How fast the localizer node really is: a scene is played at a rate, and what the node says of each image is counted.

    python -m aceg_ros.ros.node_benchmark MAP SCENE --rate 15 --seconds 30
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSProfile

from aceg_ros.demo_processes import Processes
from aceg_ros.evaluation.metrics import percentiles
from aceg_ros.ros.worker import REPLACED

QUEUE = 1000          # statuses that may wait here: more than come while this process is busy


class StatusCounter(Node):
    """Collects what the localizer says of each image: outcomes, and milliseconds from image stamp to answer."""

    def __init__(self) -> None:
        super().__init__("status_counter")
        self.outcomes: Counter[str] = Counter()
        self.ages_ms: list[float] = []
        self.create_subscription(DiagnosticArray, "/localizer/status", self._count, QoSProfile(depth=QUEUE))

    def _count(self, message: DiagnosticArray) -> None:
        status = message.status[0]
        if status.name.endswith(": image"):
            values = {pair.key: pair.value for pair in status.values}
            self.outcomes[values["status"]] += 1
            if values["status"] != REPLACED:
                self.ages_ms.append(float(values["age_ms"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("map", type=Path)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--rate", type=float, default=15.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder) / "logs") as processes:
        localizer = processes.start("aceg_ros.ros.localizer_node", {"map_path": options.map.resolve()})
        processes.wait_for_line(localizer, "Localizing in")
        rclpy.init()
        counter = StatusCounter()
        processes.start("aceg_ros.ros.scene_player", {"scene": options.scene.resolve(), "rate": options.rate,
                                                      "loop": True, "start_delay": 2.0})
        while not counter.outcomes:
            rclpy.spin_once(counter, timeout_sec=0.1)
        counter.outcomes.clear()
        counter.ages_ms.clear()
        started = time.monotonic()
        while time.monotonic() < started + options.seconds:
            rclpy.spin_once(counter, timeout_sec=0.1)
        seconds = time.monotonic() - started
        counter.destroy_node()
        rclpy.shutdown()
    answered = len(counter.ages_ms)
    ages = ", ".join(f"{name} {value:.0f}" for name, value in percentiles(counter.ages_ms).items())
    print(f"{sum(counter.outcomes.values()) / seconds:.1f} images a second, {answered / seconds:.1f} answered;"
          f" image to answer {ages} ms; {dict(counter.outcomes)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
