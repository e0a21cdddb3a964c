"""Where the camera was when a mapping image was taken: from TF, or from a topic of poses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped, TransformStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import Header
from tf2_ros import Buffer

from aceg_ros.ros.common.frames import Frames, clean, lookup
from aceg_ros.ros.common.messages import pose_to_transform

SOURCES = ("tf", "pose", "pose_with_covariance", "odometry")
_TYPES = {"pose": PoseStamped, "pose_with_covariance": PoseWithCovarianceStamped, "odometry": Odometry}
_QUEUE = QoSProfile(depth=50)


class PoseSource(Protocol):
    def lookup(self, stamp: Time, camera_frame: str, timeout_s: float) -> np.ndarray:
        """map_from_camera (4, 4) at the stamp. Waits for it; not to be called from the executor. Raises UserError."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class TfPoses:
    frames: Frames
    map_frame: str

    def lookup(self, stamp: Time, camera_frame: str, timeout_s: float) -> np.ndarray:
        return self.frames.lookup(self.map_frame, camera_frame, stamp, timeout_s)

    def close(self) -> None: ...


class TopicPoses:
    """Poses of `child_frame` (empty: the camera itself), interpolated; odometry names its child itself."""

    def __init__(self, node: Node, frames: Frames, kind: str, child_frame: str) -> None:
        self._node, self._frames, self._child = node, frames, clean(child_frame)
        self._buffer = Buffer()
        self._parent = ""
        self._subscription = node.create_subscription(_TYPES[kind], "mapping_pose", self._received, _QUEUE)

    def lookup(self, stamp: Time, camera_frame: str, timeout_s: float) -> np.ndarray:
        map_from_child = lookup(self._buffer, self._parent or "mapping_pose", "posed", stamp, timeout_s)
        if self._child in ("", camera_frame):
            return map_from_child
        return map_from_child @ self._frames.lookup(self._child, camera_frame, stamp, timeout_s)

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)

    def _received(self, message: PoseStamped | PoseWithCovarianceStamped | Odometry) -> None:
        if isinstance(message, Odometry):
            self._child = clean(message.child_frame_id)
        pose = message.pose if isinstance(message, PoseStamped) else message.pose.pose
        self._parent = clean(message.header.frame_id) or "mapping_pose"
        header = Header(stamp=message.header.stamp, frame_id=self._parent)
        transform: TransformStamped = pose_to_transform(pose, header, "posed")
        self._buffer.set_transform(transform, "mapping_pose")


def make_pose_source(node: Node, frames: Frames, kind: str, map_frame: str, child_frame: str) -> PoseSource:
    return TfPoses(frames, clean(map_frame)) if kind == "tf" else TopicPoses(node, frames, kind, child_frame)
