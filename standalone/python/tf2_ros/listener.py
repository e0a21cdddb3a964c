# SPDX-License-Identifier: Apache-2.0
"""Fills a Buffer from /tf and /tf_static."""

from __future__ import annotations

from threading import Thread

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from tf2_msgs.msg import TFMessage

from tf2_ros.buffer import Buffer


class TransformListener:
    """spin_thread: spin the node in a thread of its own; without it, somebody else has to."""

    def __init__(self, buffer: Buffer, node: Node, *, spin_thread: bool = False, qos: QoSProfile | int = 100,
                 static_qos: QoSProfile | None = None, tf_topic: str = "/tf",
                 tf_static_topic: str = "/tf_static") -> None:
        self.buffer = buffer
        self.node = node
        self.group = ReentrantCallbackGroup()  # a callback that waits in lookup_transform must not hold up /tf
        static_qos = static_qos or QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.tf_sub = node.create_subscription(TFMessage, tf_topic, self.callback, qos, callback_group=self.group)
        self.tf_static_sub = node.create_subscription(
            TFMessage, tf_static_topic, self.static_callback, static_qos, callback_group=self.group)
        self.executor = SingleThreadedExecutor(context=node.context) if spin_thread else None
        if self.executor:
            self.executor.add_node(node)
            self.thread = Thread(target=self._spin, daemon=True)
            self.thread.start()

    def unregister(self) -> None:
        if self.executor:
            self.executor.shutdown()
            self.thread.join()
        self.node.destroy_subscription(self.tf_sub)
        self.node.destroy_subscription(self.tf_static_sub)

    def callback(self, message: TFMessage) -> None:
        for transform in message.transforms:
            self.buffer.set_transform(transform, "default_authority")

    def static_callback(self, message: TFMessage) -> None:
        for transform in message.transforms:
            self.buffer.set_transform_static(transform, "default_authority")

    def _spin(self) -> None:
        try:
            self.executor.spin()
        except ExternalShutdownException:
            pass
