# SPDX-License-Identifier: Apache-2.0
"""Record topics into an mcap bag, without deserializing the messages."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from aceg_ros.errors import UserError
from aceg_ros.ros.common.parameters import ParameterGroup, not_empty, parameter
from aceg_ros.ros.common.run import after_first_spin, run

_TYPES = Stores.ROS2_KILTED


@dataclass(frozen=True, kw_only=True)
class BagParameters:
    output: str = parameter("", "Folder of the new bag; it must not exist yet.", read_only=True, check=not_empty)
    topics: str = parameter("", "Topics to record, separated by spaces; empty means all.", read_only=True)


class BagRecorder(Node):
    """Subscribes to every wanted topic that appears, with the QoS of its publishers."""

    def __init__(self) -> None:
        super().__init__("bag_recorder")
        parameters = ParameterGroup(self, BagParameters).value
        output = Path(parameters.output)
        self._wanted = {self.resolve_topic_name(topic) for topic in parameters.topics.split()}
        if output.exists():
            raise UserError(f"{output} exists already: choose another folder for the bag.")
        self._typestore = get_typestore(_TYPES)
        self._writer = Writer(output, version=Writer.VERSION_LATEST, storage_plugin=StoragePlugin.MCAP)
        self._known: set[str] = set()
        self._is_open = False
        self._counts: Counter[str] = Counter()
        after_first_spin(self, self._start)

    def _start(self) -> None:
        self._writer.open()
        self._is_open = True
        self.create_timer(0.2, self._subscribe_to_new_topics)

    def destroy_node(self) -> None:
        if self._is_open:
            self._writer.close()        # first: destroying the node may hang in Fast DDS
            counted = ", ".join(f"{count} of {topic}" for topic, count in sorted(self._counts.items()))
            print(f"Recorded {counted or 'nothing: no message came'}.", flush=True)
        super().destroy_node()

    def _subscribe_to_new_topics(self) -> None:
        for topic, types in self.get_topic_names_and_types():
            publishers = self.get_publishers_info_by_topic(topic)
            if topic in self._known or not publishers or (self._wanted and topic not in self._wanted):
                continue
            self._known.add(topic)
            if types[0] not in self._typestore.fielddefs:
                self.get_logger().warning(f"{topic} is not recorded: the bag writer does not know {types[0]}.")
                continue
            self._subscribe(topic, types[0], _common_qos(publishers))

    def _subscribe(self, topic: str, type_name: str, qos: QoSProfile) -> None:
        connection = self._writer.add_connection(topic, type_name, typestore=self._typestore)

        def write(data: bytes) -> None:
            self._counts[topic] += 1
            self._writer.write(connection, self.get_clock().now().nanoseconds, data)

        self.create_subscription(_message_class(type_name), topic, write, qos, raw=True)
        self.get_logger().info(f"Recording {topic}.")


def _message_class(type_name: str) -> type:
    package, kind, name = type_name.split("/")
    return getattr(import_module(f"{package}.{kind}"), name)


def _common_qos(publishers: list) -> QoSProfile:
    """Return the strictest QoS that is compatible with all publishers of a topic, with a deep queue for bursts."""
    reliable = all(p.qos_profile.reliability == ReliabilityPolicy.RELIABLE for p in publishers)
    latched = all(p.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in publishers)
    return QoSProfile(depth=100,
                      reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
                      durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE)


def main() -> int:
    return run(BagRecorder)


if __name__ == "__main__":
    sys.exit(main())
