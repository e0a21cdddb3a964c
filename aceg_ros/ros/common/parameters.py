"""Node parameters as frozen dataclasses: one class per concern, declared, described and validated by one helper.

    @dataclass(frozen=True)
    class StreamParameters:
        rate: float = parameter(5.0, "Frames per second.", minimum=0.1, maximum=100.0)

    stream = ParameterGroup(node, StreamParameters)
    stream.value.rate
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, fields, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

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
              check_change: Check | None = None) -> Any:
    """A dataclass field that is a node parameter. Its type is that of `default`.

    read_only: can be given at start-up, not changed later. check: a value to the sentence that refuses it, or None;
    check_change: the same for later changes only.
    """
    if (minimum is None) != (maximum is None):
        raise ValueError("A range needs both ends.")
    metadata = {"description": description, "range": (minimum, maximum), "choices": choices, "read_only": read_only,
                "check": check, "check_change": check_change}
    return field(default=default, metadata=metadata)


class ParameterGroup(Generic[T]):
    """The parameters of one dataclass on one node: `value` is always a valid instance.

    on_change(old, new) runs after a change was accepted. A method `refusal()` of the class, where it has one, gives the
    sentence that refuses values which do not go together, or None. Raises UserError on refused start-up values.
    """

    def __init__(self, node: Node, kind: type[T], on_change: Callable[[T, T], None] | None = None) -> None:
        self._fields = {f.name: f for f in fields(kind)}
        self._on_change = on_change
        values = {name: self._declare(node, name) for name in self._fields}
        self.value: T = kind(**values)
        reason = _joint_refusal(self.value)
        if reason:
            raise UserError(reason)
        node.add_on_set_parameters_callback(self._validate)
        node.add_post_set_parameters_callback(self._apply)

    def _declare(self, node: Node, name: str) -> Any:
        default = self._fields[name].default
        value = node.declare_parameter(name, default, _descriptor(name, default, self._fields[name].metadata)).value
        reason = self._refusal(name, value)
        if reason:
            raise UserError(f"Parameter '{name}': {reason}")
        return value

    def _refusal(self, name: str, value: Any) -> str | None:
        metadata = self._fields[name].metadata
        if metadata["choices"] and value not in metadata["choices"]:
            return f"'{value}' is not one of {', '.join(metadata['choices'])}."
        return metadata["check"](value) if metadata["check"] else None

    def _validate(self, changes: list[Parameter]) -> SetParametersResult:
        for change in (change for change in changes if change.name in self._fields):
            check_change = self._fields[change.name].metadata["check_change"] or (lambda _: None)
            reason = self._refusal(change.name, change.value) or check_change(change.value)
            if reason:
                return SetParametersResult(successful=False, reason=reason)
        reason = _joint_refusal(replace(self.value, **self._mine(changes)))
        if reason:
            return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    def _apply(self, changes: list[Parameter]) -> None:
        mine = self._mine(changes)
        if not mine:
            return
        old, self.value = self.value, replace(self.value, **mine)
        if self._on_change:
            self._on_change(old, self.value)

    def _mine(self, changes: list[Parameter]) -> dict[str, Any]:
        return {change.name: change.value for change in changes if change.name in self._fields}


def _joint_refusal(value: Any) -> str | None:
    return value.refusal() if hasattr(value, "refusal") else None


def _descriptor(name: str, default: Any, metadata: Any) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(name=name, description=metadata["description"], read_only=metadata["read_only"],
                                     additional_constraints=", ".join(metadata["choices"]))
    minimum, maximum = metadata["range"]
    if minimum is not None:
        if isinstance(default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=float(minimum), to_value=float(maximum))]
        else:
            descriptor.integer_range = [IntegerRange(from_value=minimum, to_value=maximum, step=1)]
    return descriptor


def not_empty(value: str) -> str | None:
    """Check for names that must be given."""
    return None if value.strip() else "it must not be empty."
