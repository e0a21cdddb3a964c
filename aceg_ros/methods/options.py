# SPDX-License-Identifier: Apache-2.0
"""Options of a method, declared as dataclass fields with a description; command line flags are made from them.

    @dataclass(frozen=True, kw_only=True)
    class AceGOptions:
        codes: int | None = option(None, "map codes of a scene (default: 8192 landmarks)", metavar="N", minimum=1)
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from aceg_ros.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def option(default: Any, description: str, *, metavar: str | None = None, choices: tuple[str, ...] = (),
           minimum: float | None = None, maximum: float | None = None, conflicts_with: str | None = None) -> Any:
    """Declare a dataclass field as an option. A bool becomes a switch that is off by default, others take one value.

    Args:
        default: the default value; None only for a field of type `... | None`.
        description: one phrase for `aceg map --help`, which adds the method's name and the default.
        metavar: name of the value in the help.
        choices: allowed strings; empty for any.
        minimum: smallest allowed number.
        maximum: largest allowed number.
        conflicts_with: a field of `MappingOptions` that cannot be set together with this option.
    """
    metadata = {"description": description, "metavar": metavar, "choices": choices, "minimum": minimum,
                "maximum": maximum, "conflicts_with": conflicts_with}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a method. kind: str, int, float or bool; the other fields are as for `option`."""

    name: str
    kind: type
    default: Any
    description: str
    metavar: str | None
    choices: tuple[str, ...]
    minimum: float | None
    maximum: float | None
    conflicts_with: str | None

    @property
    def flag(self) -> str:
        """The command line flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def help(self) -> str:
        """The description, with the default if it is informative."""
        says_nothing = self.default is None or self.default is False
        return self.description if says_nothing else f"{self.description} (default: {self.default})"

    def convert(self, text: str) -> Any:
        """Convert a string to a value. Raises UserError if it is of the wrong type."""
        try:
            return self.kind(text)
        except ValueError:
            raise UserError(f"'{text}' is not {self._allowed()}") from None

    def parse(self, text: str) -> Any:
        """Convert a string to a value. Raises UserError if it is of the wrong type or not allowed."""
        value = self.convert(text)
        self.check(value)
        return value

    def check(self, value: Any) -> None:
        """Raise UserError if the value is not allowed."""
        if value is None and self.default is None:
            return
        too_small = self.minimum is not None and not value >= self.minimum
        too_large = self.maximum is not None and not value <= self.maximum
        if too_small or too_large or (self.choices and value not in self.choices):
            raise UserError(f"'{value}' is not {self._allowed()}")

    def _allowed(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        number = {int: "a whole number", float: "a number"}.get(self.kind, "a text")
        if self.minimum is not None and self.maximum is not None:
            return f"{number} from {self.minimum} to {self.maximum}"
        if self.minimum is not None:
            return f"{number} of {self.minimum} or more"
        return number if self.maximum is None else f"{number} of {self.maximum} or less"


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """For methods without options of their own."""


def options_of(kind: type[DataclassInstance]) -> tuple[Option, ...]:
    """Return the options that a dataclass declares. Raises TypeError for a field that was not made by `option`."""
    types_of = typing.get_type_hints(kind)
    found = []
    for each in fields(kind):
        if "description" not in each.metadata:
            raise TypeError(f"Declare {kind.__name__}.{each.name} by option(default, description, ...).")
        found.append(Option(name=each.name, kind=_plain(types_of[each.name]), default=each.default, **each.metadata))
    return tuple(found)


def check_options(values: DataclassInstance) -> None:
    """Raise UserError if the value of any option is not allowed."""
    for each in options_of(type(values)):
        try:
            each.check(getattr(values, each.name))
        except UserError as error:
            raise UserError(f"Option {each.name}: {error}.") from None


def make_options(kind: type[DataclassInstance], given: Mapping[str, Any]) -> Any:
    """Return an instance of the dataclass with the given values; others keep their defaults."""
    values = kind(**given)
    check_options(values)
    return values


def _plain(annotation: Any) -> type:
    """Return the type without None: `int` for `int | None`."""
    if isinstance(annotation, types.UnionType):
        annotation = next(each for each in annotation.__args__ if each is not type(None))
    if annotation not in (str, int, float, bool):
        raise TypeError(f"An option is a str, int, float or bool, or one of them or None, not {annotation}.")
    return annotation
