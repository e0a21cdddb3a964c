# SPDX-License-Identifier: Apache-2.0
"""Publish the localizer's pose on initialpose while AMCL does not know where it is, or is lost."""

import math
import time

import rclpy
from geometry_msgs.msg import Pose, PoseWithCovarianceStamped
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
MAX_DISTANCE_M, MAX_ANGLE_RAD = 1.0, math.radians(30.0)
DISAGREEING_POSES = 5           # in a row: while the robot drives, AMCL's pose is older than the localizer's
REPEAT_S = 2.0


def yaw(pose: Pose) -> float:
    q = pose.orientation
    return math.atan2(2.0 * (q.w * q.z + q.x * q.y), 1.0 - 2.0 * (q.y * q.y + q.z * q.z))


def agree(one: Pose, other: Pose) -> bool:
    distance_m = math.hypot(one.position.x - other.position.x, one.position.y - other.position.y)
    angle_rad = abs(math.remainder(yaw(one) - yaw(other), math.tau))
    return distance_m < MAX_DISTANCE_M and angle_rad < MAX_ANGLE_RAD


class AmclSeeder(Node):
    def __init__(self) -> None:
        super().__init__("amcl_seeder")
        self._amcl: Pose | None = None
        self._disagreeing = 0
        self._sent_s = -math.inf
        self._publisher = self.create_publisher(PoseWithCovarianceStamped, "initialpose", 1)
        self.create_subscription(PoseWithCovarianceStamped, "amcl_pose", self._amcl_received, LATCHED)
        self.create_subscription(PoseWithCovarianceStamped, "localizer/pose", self._localized, 1)

    def _amcl_received(self, message: PoseWithCovarianceStamped) -> None:
        self._amcl = message.pose.pose

    def _localized(self, message: PoseWithCovarianceStamped) -> None:
        if self._amcl is not None:
            self._disagreeing = 0 if agree(message.pose.pose, self._amcl) else self._disagreeing + 1
            if self._disagreeing < DISAGREEING_POSES:
                return
        now_s = time.monotonic()
        if now_s - self._sent_s < REPEAT_S:
            return
        self._sent_s, self._disagreeing = now_s, 0
        position = message.pose.pose.position
        why = "AMCL has no pose" if self._amcl is None else "AMCL is elsewhere"
        self.get_logger().info(f"{why}: seeded with x {position.x:.2f} m, y {position.y:.2f} m.")
        self._publisher.publish(message)


def main() -> None:
    rclpy.init()
    node = AmclSeeder()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
