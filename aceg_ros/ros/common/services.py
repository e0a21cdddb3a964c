# SPDX-License-Identifier: Apache-2.0
"""Services that run an action and respond with its outcome: a success flag and a sentence."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.node import Node
from std_srvs.srv import SetBool, Trigger

from aceg_ros.ros.common.executor import WaitingCallbackGroup

Outcome = tuple[bool, str]


def create_trigger_services(node: Node, actions: dict[str, Callable[[], Outcome]]) -> None:
    """Create a std_srvs/Trigger service ~/name for each action. Actions may wait, and run in parallel."""
    for name, action in actions.items():
        node.create_service(Trigger, f"~/{name}", _handler(node, name, action), callback_group=WaitingCallbackGroup())


def create_switch_service(node: Node, name: str, action: Callable[[bool], Outcome]) -> None:
    """Create a std_srvs/SetBool service ~/name."""
    def call(request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        return _handler(node, name, lambda: action(request.data))(request, response)

    node.create_service(SetBool, f"~/{name}", call, callback_group=WaitingCallbackGroup())


def _handler(node: Node, name: str, action: Callable[[], Outcome]) -> Callable:
    def call(_request, response):
        try:
            response.success, response.message = action()
        except Exception as error:      # a bug: report it to the caller, and keep the node running
            node.get_logger().error(f"~/{name} failed: {error!r}")
            response.success, response.message = False, f"An internal error: {error!r}."
        return response

    return call
