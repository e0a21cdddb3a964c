# SPDX-License-Identifier: Apache-2.0
"""Say why nothing comes on a topic that a node listens to."""

from __future__ import annotations

from rclpy.event_handler import QoSRequestedIncompatibleQoSInfo, SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import qos_policy_name_from_kind

_MOST_NAMED = 3         # other topics in a sentence


class TopicWatch:
    """What is known of the publishers of one topic of one type.

    Attributes:
        topic: Its full name, after remapping.
    """

    def __init__(self, node: Node, kind: type, topic: str) -> None:
        self.topic = node.resolve_topic_name(topic)
        self.type_name = _type_name(kind)
        self._node = node
        self._policies: list[str] = []          # that publishers and this node do not agree on

    def event_callbacks(self) -> SubscriptionEventCallbacks:
        """Return what a subscription to this topic has to call on its events."""
        return SubscriptionEventCallbacks(incompatible_qos=self._incompatible_qos_found)

    def explain_silence(self) -> str:
        """Return the sentence that says why nothing has come, as far as the graph tells."""
        publishers = self._node.get_publishers_info_by_topic(self.topic)
        types = sorted({publisher.topic_type for publisher in publishers} - {self.type_name})
        if not publishers:
            return f"nobody publishes it.{self._name_others()}"
        if all(publisher.topic_type != self.type_name for publisher in publishers):
            return f"its publisher sends {', '.join(types)}, and this node expects {self.type_name}."
        if self._policies:
            return self._advise(self._policies[-1])
        hint = (" Large images are lost without FASTDDS_DEFAULT_PROFILES_FILE in the publisher's process"
                " (config/fastdds_profile.xml).") if "Image" in self.type_name else ""
        return f"its publisher is there, but no message comes.{hint}"

    def others(self) -> list[str]:
        """Return other topics of this type that somebody else publishes, those with the closest names first."""
        own = self._node.get_fully_qualified_name() + "/"
        names = [name for name, types in self._node.get_topic_names_and_types()
                 if self.type_name in types and name != self.topic and not name.startswith(own)]
        return sorted((name for name in names if self._node.count_publishers(name)),
                      key=lambda name: -len(set(name.split("/")) & set(self.topic.split("/"))))

    def has_publisher(self, topic: str, type_name: str) -> bool:
        """Return whether somebody publishes this type on another topic."""
        return any(publisher.topic_type == type_name for publisher in self._node.get_publishers_info_by_topic(topic))

    def _name_others(self) -> str:
        others = self.others()[:_MOST_NAMED]
        return f" {self.type_name} is published on {', '.join(others)}: remap to it." if others else ""

    def _incompatible_qos_found(self, event: QoSRequestedIncompatibleQoSInfo) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        if policy not in self._policies:
            self._policies.append(policy)
            self._node.get_logger().warning(f"Nothing is received on {self.topic}: {self._advise(policy)}")

    def _advise(self, policy: str) -> str:
        parameter = f"qos_overrides.{self.topic}.subscription.{policy.lower()}"
        change = f"set {parameter} to" if self._node.has_parameter(parameter) else "make the publisher offer"
        return (f"its publisher's QoS does not go with this node's ({policy}): {change} what"
                f" {'it offers' if change.startswith('set') else 'this node asks for'}"
                f" ('ros2 topic info --verbose {self.topic}' shows both).")


def _type_name(kind: type) -> str:
    return f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"
