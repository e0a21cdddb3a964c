"""Publish the transform from the map, after each pose and periodically in between."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from rclpy.node import Node
from std_msgs.msg import Header
from tf2_ros import TransformBroadcaster

from aceg_ros.ros.common.messages import pose_to_message, pose_to_transform, stamp_message
from aceg_ros.ros.localizer.parameters import PoseParameters
from aceg_ros.utils.stamps import s_to_ns

_LIVE_NS = 10_000_000_000        # older images are replayed without /clock: no transform gets the current time then


class TransformPublisher:
    """Publishes the transform. Not thread-safe: callers must hold a lock.

    is_suspended() returns whether another node currently publishes the transform from the map.
    """

    _transform: tuple[np.ndarray, str] | None       # from the map to this child frame
    _is_live: bool                                  # whether stamps of images are close to the current time
    _pose_ns: int                                   # stamp of the pose behind the transform
    _sent_ns: int                                   # stamp of the transform that was sent last

    def __init__(self, node: Node, is_suspended: Callable[[], bool]) -> None:
        self._node, self._is_suspended = node, is_suspended
        self._broadcaster = TransformBroadcaster(node)
        self.reset()

    def reset(self) -> None:
        """Publish nothing before the next pose."""
        self._transform = None
        self._is_live = False
        self._pose_ns = self._sent_ns = 0

    def publish(self, transform: tuple[np.ndarray, str] | None, stamp_ns: int, parameters: PoseParameters) -> None:
        """Publish the transform (map_from_child (4, 4), child frame) of the pose at this stamp."""
        self._is_live = abs(self._node.get_clock().now().nanoseconds - stamp_ns) < _LIVE_NS
        self._pose_ns, self._transform = stamp_ns, transform
        self._send(stamp_ns, parameters)

    def republish(self, parameters: PoseParameters) -> None:
        """Publish the last transform again with the current time, as long as it is valid."""
        now_ns = self._node.get_clock().now().nanoseconds
        holds = (parameters.published_transform == "map_to_odom"
                 or now_ns - self._pose_ns <= parameters.tf_hold * 1e9)
        if self._is_live and holds:
            self._send(now_ns, parameters)

    def _send(self, stamp_ns: int, parameters: PoseParameters) -> None:
        if self._transform is None or self._is_suspended():
            return
        matrix, child = self._transform
        # Stamps never go back, so that published transforms are not changed afterwards.
        self._sent_ns = max(stamp_ns + s_to_ns(parameters.transform_tolerance), self._sent_ns + 1000)
        header = Header(stamp=stamp_message(self._sent_ns), frame_id=parameters.map_frame)
        self._broadcaster.sendTransform(pose_to_transform(pose_to_message(matrix), header, child))
