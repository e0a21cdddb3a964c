# SPDX-License-Identifier: Apache-2.0
"""Publishes transforms on /tf and /tf_static."""

from __future__ import annotations

from collections.abc import Sequence

from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from tf2_msgs.msg import TFMessage


def _as_list(transform: TransformStamped | Sequence[TransformStamped]) -> list[TransformStamped]:
    return [transform] if isinstance(transform, TransformStamped) else list(transform)


class TransformBroadcaster:
    def __init__(self, node: Node, qos: QoSProfile | int = 100) -> None:
        self.pub_tf = node.create_publisher(TFMessage, "/tf", qos)

    def sendTransform(self, transform: TransformStamped | Sequence[TransformStamped]) -> None:
        self.pub_tf.publish(TFMessage(transforms=_as_list(transform)))


class StaticTransformBroadcaster:
    """Keeps every transform it was given: a latched message must hold them all."""

    def __init__(self, node: Node, qos: QoSProfile | None = None) -> None:
        qos = qos or QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.pub_tf = node.create_publisher(TFMessage, "/tf_static", qos)
        self._by_child: dict[str, TransformStamped] = {}

    def sendTransform(self, transform: TransformStamped | Sequence[TransformStamped]) -> None:
        self._by_child |= {t.child_frame_id: t for t in _as_list(transform)}
        self.pub_tf.publish(TFMessage(transforms=list(self._by_child.values())))
