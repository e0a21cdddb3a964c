# SPDX-License-Identifier: Apache-2.0
"""Check the arguments of launch files before anything is started: a failure later leaves processes behind."""

from __future__ import annotations

from pathlib import Path

from aceg_ros.errors import UserError

_TRUE, _FALSE = ("true", "True", "1", "yes", "on"), ("false", "False", "0", "no", "off")
BOOLEANS = [*_TRUE, *_FALSE]                                        # for DeclareLaunchArgument's choices
OPTIONAL_BOOLEANS = ["", *BOOLEANS]
LOG_LEVELS = ["debug", "info", "warn", "error", "fatal"]


def is_true(text: str) -> bool:
    """Return the value of a boolean argument. Raises UserError if it is none."""
    if text not in BOOLEANS:
        raise UserError(f"'{text}' is neither true nor false.")
    return text in _TRUE


def number(name: str, text: str, kind: type = float) -> float:
    """Return the value of an argument that is a number, of type float or int. Raises UserError."""
    try:
        return kind(text)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise UserError(f"The argument {name} must be {wanted}, not '{text}'.") from None


def require_file(name: str, path: str) -> None:
    """Raise UserError if the file that an argument names does not exist."""
    if not Path(path).is_file():
        raise UserError(f"The argument {name} names the file {path}, which does not exist.")


def require_executables(package: str, *executables: str) -> None:
    """Raise UserError if these programs of a ROS package are not installed."""
    from ament_index_python.packages import PackageNotFoundError, get_package_prefix
    try:
        folder = Path(get_package_prefix(package)) / "lib" / package
    except PackageNotFoundError:
        raise UserError(f"The ROS package {package} is not installed, or its workspace is not sourced: nothing was"
                        " started.") from None
    missing = [name for name in executables if not (folder / name).exists()]
    if missing:
        raise UserError(f"The ROS package {package} lacks {', '.join(missing)} in {folder}: nothing was started.")
