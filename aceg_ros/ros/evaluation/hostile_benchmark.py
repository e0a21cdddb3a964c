# SPDX-License-Identifier: Apache-2.0
"""Send a localizer node messages that no camera should send, and watch its poses, its memory and whether it lives.

    python -m aceg_ros.ros.evaluation.hostile_benchmark MAP [--messages 100000]

Exit code 1 if the node crashed, published a pose or a transform, or met an error of its own.
"""

from __future__ import annotations

import argparse
import os
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from aceg_ros.camera import Camera
from aceg_ros.demo.processes import NodeProcess, Processes
from aceg_ros.ros.common.messages import info_message
from aceg_ros.ros.localizer.results import INTERNAL_ERROR

ENCODINGS = ("rgb8", "bgr8", "mono8", "mono16", "rgba8", "bgra8", "yuv422", "yuv422_yuy2", "bayer_rggb8",
             "bayer_gbrg16", "32FC1", "16UC1", "8UC3", "64FC4", "", "jpeg", "rgb8; compressed", "\N{SNOWMAN}8",
             "8UC9999999999", "nv12")
MODELS = ("plumb_bob", "rational_polynomial", "equidistant", "", "kannala", "PLUMB_BOB", "fisheye\n")
FRAMES = ("cam", "", "/", "a" * 1000, "\N{SNOWMAN}")
HUGE = 2**32 - 1
CAMERA = Camera(width=64, height=48, fx=60.0, fy=61.0, cx=31.5, cy=23.5)
REPORTS = 10
STATUS_TIMEOUT_S = 1.0        # after which the next message is sent all the same


def hostile_number(rng: np.random.Generator) -> float:
    """Anything that eight bytes can be, and the worst of it often."""
    if rng.random() < 0.5:
        return float(rng.choice([0.0, -1.0, np.nan, np.inf, -np.inf, 1e308, -1e-308, 5e-324, 500.0]))
    return struct.unpack("d", rng.bytes(8))[0]


def hostile_info(rng: np.random.Generator, good: CameraInfo) -> CameraInfo:
    info = CameraInfo(width=good.width, height=good.height, distortion_model=str(rng.choice(MODELS)))
    info.d = [hostile_number(rng) for _ in range(rng.integers(0, 15))]
    info.k = [hostile_number(rng) for _ in range(9)] if rng.random() < 0.6 else good.k
    info.p = [hostile_number(rng) for _ in range(12)]
    if rng.random() < 0.3:
        info.width, info.height = (int(v) for v in rng.choice([0, 1, 64, HUGE], 2))
    if rng.random() < 0.3:
        info.binning_x, info.binning_y = (int(v) for v in rng.choice([0, 1, 2, HUGE], 2))
    if rng.random() < 0.3:
        info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = (
            int(v) for v in rng.choice([0, 1, 7, 64, HUGE], 4))
    return info


def hostile_image(rng: np.random.Generator) -> Image:
    image = Image(encoding=str(rng.choice(ENCODINGS)), is_bigendian=int(rng.integers(0, 2)))
    image.height, image.width = (int(v) for v in rng.choice([0, 1, 2, 47, 48, 64, HUGE], 2))
    image.step = int(rng.choice([0, 1, 64, 128, 192, 256, HUGE]))
    image.data = rng.bytes(int(rng.choice([0, 1, 64 * 48, 64 * 48 * 2, 64 * 48 * 3, 64 * 48 * 4])))
    if rng.random() < 0.3:        # an honest shape with noise in it
        image.height, image.width, image.step, image.encoding = 48, 64, 192, "rgb8"
        image.data = rng.bytes(64 * 48 * 3)
    return image


def hostile_pair(rng: np.random.Generator, good: CameraInfo, index: int) -> tuple[CameraInfo, Image]:
    """A camera_info and an image of the same header, often of a strange one."""
    stamp = Time(sec=int(rng.choice([0, 1000 + index, 2**31 - 1, -(2**31)])), nanosec=index)
    info, image = hostile_info(rng, good), hostile_image(rng)
    info.header.stamp = image.header.stamp = stamp
    info.header.frame_id = image.header.frame_id = str(rng.choice(FRAMES))
    return info, image


class Sender(Node):
    """Sends pairs, and counts the statuses of the images and everything that looks like a pose."""

    def __init__(self) -> None:
        super().__init__("sender")
        self.statuses: Counter[str] = Counter()
        self.poses = 0
        self._image = self.create_publisher(Image, "image", qos_profile_sensor_data)
        self._info = self.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
        deep = QoSProfile(depth=1000)
        self.create_subscription(DiagnosticArray, "/localizer/status", self._count, deep)
        self.create_subscription(PoseWithCovarianceStamped, "/localizer/pose", self._pose_received, deep)
        self.create_subscription(TFMessage, "/tf", self._pose_received, deep)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)

    def is_connected(self) -> bool:
        return self._image.get_subscription_count() > 0 and self._info.get_subscription_count() > 0

    def send(self, info: CameraInfo, image: Image) -> None:
        self._info.publish(info)
        self._image.publish(image)

    def spin(self, seconds: float, enough: int = sys.maxsize) -> None:
        """Handle messages for a time, or until so many statuses have come."""
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s and self.statuses.total() < enough:
            self._executor.spin_once(timeout_sec=0.02)

    def _count(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.endswith(": image"):
                self.statuses[next(pair.value for pair in status.values if pair.key == "status")] += 1

    def _pose_received(self, _: object) -> None:
        self.poses += 1


def resident_mb(pid: int) -> float:
    """Memory that a process has in use, MB."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1e3


def send_all(sender: Sender, node: NodeProcess, messages: int, seed: int) -> bool:
    """Send so many messages, half of them images, and print the node's memory from time to time.

    Returns whether the node lives.
    """
    rng, good = np.random.default_rng(seed), info_message(CAMERA, Header(frame_id="cam"))
    pairs, started_s = messages // 2, time.monotonic()

    def report(count: int) -> None:
        print(f"{count:8} messages, {time.monotonic() - started_s:5.0f} s, {resident_mb(node.popen.pid):6.1f} MB"
              " resident", flush=True)

    for index in range(pairs):
        if node.popen.poll() is not None:
            return False
        if index % max(1, pairs // REPORTS) == 0:
            report(2 * index)
        info, image = hostile_pair(rng, good, index)
        if index % 2:             # otherwise hardly an image would get past its camera
            good.header, info = info.header, good
        sender.send(info, image)
        sender.spin(STATUS_TIMEOUT_S, enough=sender.statuses.total() + 1)    # so that the node takes each image
    sender.spin(2.0)
    if node.popen.poll() is not None:
        return False
    report(2 * pairs)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("map", type=Path)
    parser.add_argument("--messages", type=int, default=100_000, help="images and camera_infos together")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder) / "logs") as processes:
        node = processes.start("aceg_ros.ros.localizer_node", {
            "map_path": options.map.resolve(), "data_folder": Path(folder) / "data"})
        processes.wait_for_line(node, "Localizing in")
        rclpy.init()
        sender = Sender()
        while not sender.is_connected():
            sender.spin(0.1)
        lives = send_all(sender, node, options.messages, options.seed)
        statuses, poses, last_line = sender.statuses, sender.poses, node.last_line()
        sender.destroy_node()
        rclpy.shutdown()
    print(f"the node {'lives' if lives else f'has crashed: {last_line}'}; poses and transforms: {poses}; statuses of"
          f" images: {', '.join(f'{name} {count}' for name, count in statuses.most_common())}")
    return 0 if lives and not poses and not statuses[INTERNAL_ERROR] else 1


if __name__ == "__main__":
    sys.exit(main())
