# SPDX-License-Identifier: Apache-2.0
"""Publish the transform from the map, after each pose and periodically in between."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from rclpy.node import Node
from std_msgs.msg import Header
from tf2_ros import TransformBroadcaster

from aceg_ros.ros.common.messages import pose_to_message, pose_to_transform, stamp_message
from aceg_ros.ros.common.transform_lookup import TransformLookup, normalize_frame_id
from aceg_ros.ros.localizer.parameters import PoseParameters
from aceg_ros.utils.stamps import s_to_ns

_LIVE_NS = 10_000_000_000        # older images are replayed without /clock: no transform gets the current time then


class TransformPublisher:
    """Publishes the transform. Not thread-safe: callers must hold a lock.

    is_suspended() returns whether another node currently publishes the transform from the map.

    Attributes:
        problem: The sentence that says why the transform is not published, if TF does not allow it; else empty.
    """

    problem: str
    _transform: tuple[np.ndarray, str] | None       # from the map to this child frame
    _is_live: bool                                  # whether stamps of images are close to the current time
    _pose_ns: int                                   # stamp of the pose behind the transform
    _sent_ns: int                                   # stamp of the transform that was sent last

    def __init__(self, node: Node, transforms: TransformLookup, is_suspended: Callable[[], bool]) -> None:
        self._node, self._transforms, self._is_suspended = node, transforms, is_suspended
        self._broadcaster = TransformBroadcaster(node)
        self._told: set[str] = set()
        self.reset()

    def reset(self) -> None:
        """Publish nothing before the next pose."""
        self._transform = None
        self._is_live = False
        self._pose_ns = self._sent_ns = 0
        self.problem = ""

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
        self._check_tree(normalize_frame_id(parameters.map_frame), child, parameters)
        if self.problem:
            return
        # Stamps never go back, so that published transforms are not changed afterwards.
        self._sent_ns = max(stamp_ns + s_to_ns(parameters.transform_tolerance), self._sent_ns + 1000)
        self._transforms.note_sent(self._sent_ns)
        header = Header(stamp=stamp_message(self._sent_ns), frame_id=parameters.map_frame)
        self._broadcaster.sendTransform(pose_to_transform(pose_to_message(matrix), header, child))

    def _check_tree(self, map_frame: str, child: str, parameters: PoseParameters) -> None:
        """Find out whether the transform would tear the tree: a frame has one parent, and is not its own ancestor."""
        ancestors = self._transforms.ancestors(child, without=(map_frame, child))
        above_map = self._transforms.ancestors(map_frame)
        if child == map_frame or child in above_map:
            self.problem = (f"TF has '{map_frame}' below '{child}', so that {map_frame} -> {child} would be a loop and"
                            f" is not published: set map_frame to the topmost frame, or tf_policy to none.")
        elif ancestors:
            chain = " -> ".join([*reversed(ancestors), child])
            self.problem = (f"TF has a parent of '{child}' already ({chain}), and a frame can have only one:"
                            f" {map_frame} -> {child} is not published. {_advise(child, ancestors, parameters)}")
        elif self._transforms.others_publish(map_frame, child):
            self.problem = (f"Another node publishes {map_frame} -> {child} too, and the robot would jump between both:"
                            " this node does not publish it. End the other one, or set tf_policy to none.")
        else:
            self.problem = ""
        if self.problem and self.problem not in self._told:
            self._told.add(self.problem)
            self._node.get_logger().warning(self.problem)


def _advise(child: str, ancestors: list[str], parameters: PoseParameters) -> str:
    """Return what to do about a frame that has a parent. ancestors: of it, from the parent up."""
    otherwise = "or tf_policy to none if another node localizes the robot."
    if normalize_frame_id(parameters.map_frame) in ancestors:
        return "Another node localizes the robot already: end it, or set tf_policy to none."
    if parameters.published_transform == "map_to_odom":
        return f"End the node that gives '{child}' its parent, set odom_frame to '{ancestors[-1]}', {otherwise}"
    if parameters.published_transform == "map_to_base":
        return f"Set odom_frame to the frame of the odometry ('{ancestors[-1]}'?), {otherwise}"
    if len(ancestors) > 1:
        return (f"Set base_frame to the frame of the robot ('{ancestors[-2]}'?) and odom_frame to that of its odometry"
                f" ('{ancestors[-1]}'?), {otherwise}")
    return (f"Set base_frame to the frame of the robot ('{ancestors[-1]}'?), and odom_frame to that of its odometry if"
            f" there is one, {otherwise}")
