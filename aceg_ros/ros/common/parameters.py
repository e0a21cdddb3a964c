# SPDX-License-Identifier: Apache-2.0
"""Node parameters as frozen dataclasses, which `ParameterGroup` declares, describes and validates.

    @dataclass(frozen=True, kw_only=True)
    class StreamParameters:
        rate: float = parameter(5.0, "Rate of the frames in Hz.", minimum=0.1, maximum=100.0)

    stream = ParameterGroup(node, StreamParameters)
    stream.value.rate
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, fields, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from aceg_ros.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Check = Callable[[Any], str | None]
T = TypeVar("T", bound="DataclassInstance")


def parameter(default: Any, description: str, *, minimum: float | None = None, maximum: float | None = None,
              choices: tuple[str, ...] = (), read_only: bool = False, check: Check | None = None,
              check_change: Check | None = None, old_name: str = "") -> Any:
    """Declare a dataclass field as a node parameter of the type of `default`.

    Args:
        description: A full sentence with the unit, because `ros2 param describe` shows it without context.
        minimum, maximum: The allowed range, both ends included; both or none.
        choices: The allowed values; empty for any.
        read_only: Whether it can only be set at start-up.
        check: Returns the reason why a value is rejected, or None.
        check_change: As `check`, but only called for changes at run time.
        old_name: Its name in the last release, which is accepted with a warning.
    """
    if (minimum is None) != (maximum is None):
        raise ValueError("A range needs both ends.")
    metadata = {"description": description, "range": (minimum, maximum), "choices": choices, "read_only": read_only,
                "check": check, "check_change": check_change, "old_name": old_name}
    return field(default=default, metadata=metadata)


class ParameterGroup(Generic[T]):
    """Declares the parameters of one dataclass on one node; `value` is the current, always valid instance.

    on_change(old, new) is called after a change was accepted. The dataclass may have a method `rejection()`, which
    returns the reason why a combination of values is rejected, or None.

    Raises:
        UserError: if a start-up value is rejected.
    """

    def __init__(self, node: Node, kind: type[T], on_change: Callable[[T, T], None] | None = None) -> None:
        self._fields = {f.name: f for f in fields(kind)}
        self._on_change = on_change
        values = {name: self._declare(node, name) for name in self._fields}
        self.value: T = kind(**values)
        reason = _joint_rejection(self.value)
        if reason:
            raise UserError(reason)
        node.add_on_set_parameters_callback(self._validate)
        node.add_post_set_parameters_callback(self._apply)

    def _declare(self, node: Node, name: str) -> Any:
        default, metadata = self._fields[name].default, self._fields[name].metadata
        given = default
        if metadata["old_name"]:
            given = _value_of_old_name(node, metadata["old_name"], name, default)
            _accept_old_name(node, metadata["old_name"], name)
        value = node.declare_parameter(name, given, _descriptor(name, default, metadata)).value
        reason = self._rejection(name, value)
        if reason:
            raise UserError(f"Parameter '{name}': {reason}")
        return value

    def _rejection(self, name: str, value: Any) -> str | None:
        metadata = self._fields[name].metadata
        if metadata["choices"] and value not in metadata["choices"]:
            return f"'{value}' is not one of {', '.join(metadata['choices'])}."
        return metadata["check"](value) if metadata["check"] else None

    def _validate(self, changes: list[Parameter]) -> SetParametersResult:
        for change in (change for change in changes if change.name in self._fields):
            check_change = self._fields[change.name].metadata["check_change"] or (lambda _: None)
            reason = self._rejection(change.name, change.value) or check_change(change.value)
            if reason:
                return SetParametersResult(successful=False, reason=reason)
        reason = _joint_rejection(replace(self.value, **self._own_values(changes)))
        if reason:
            return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    def _apply(self, changes: list[Parameter]) -> None:
        own = self._own_values(changes)
        if not own:
            return
        old, self.value = self.value, replace(self.value, **own)
        if self._on_change:
            self._on_change(old, self.value)

    def _own_values(self, changes: list[Parameter]) -> dict[str, Any]:
        return {change.name: change.value for change in changes if change.name in self._fields}


# Old names by node. rclpy concatenates the results of several pre-set callbacks, so a node must have only one.
_new_names: WeakKeyDictionary[Node, dict[str, str]] = WeakKeyDictionary()


def _value_of_old_name(node: Node, old_name: str, name: str, default: Any) -> Any:
    """Return the start-up value given under the old name, or the default."""
    given = node.declare_parameter(old_name, descriptor=ParameterDescriptor(dynamic_typing=True)).value
    node.undeclare_parameter(old_name)
    if given is None:
        return default
    if type(given) is not type(default):
        raise UserError(f"Parameter '{old_name}' must be of type {type(default).__name__}.")
    _warn_of_old_name(node, old_name, name)
    return given


def _accept_old_name(node: Node, old_name: str, name: str) -> None:
    """Accept changes of the parameter under its old name."""
    if node in _new_names:
        _new_names[node][old_name] = name
        return
    renamed = _new_names[node] = {old_name: name}

    def rename(changes: list[Parameter]) -> list[Parameter]:
        for change in (change for change in changes if change.name in renamed):
            _warn_of_old_name(node, change.name, renamed[change.name])
        return [Parameter(renamed.get(change.name, change.name), change.type_, change.value) for change in changes]

    node.add_pre_set_parameters_callback(rename)


def _warn_of_old_name(node: Node, old_name: str, name: str) -> None:
    node.get_logger().warning(f"The parameter '{old_name}' is now called '{name}'; the next release will not know the"
                              " old name.")


def _joint_rejection(value: Any) -> str | None:
    return value.rejection() if hasattr(value, "rejection") else None


def _descriptor(name: str, default: Any, metadata: Any) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(name=name, description=metadata["description"], read_only=metadata["read_only"])
    if metadata["choices"]:
        choices = ", ".join(choice or "(empty)" for choice in metadata["choices"])
        descriptor.additional_constraints = f"One of: {choices}."
    minimum, maximum = metadata["range"]
    if minimum is not None:
        if isinstance(default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=float(minimum), to_value=float(maximum))]
        else:
            descriptor.integer_range = [IntegerRange(from_value=minimum, to_value=maximum, step=1)]
    return descriptor


def not_empty(value: str) -> str | None:
    """Reject an empty name."""
    return None if value.strip() else "it must not be empty."
