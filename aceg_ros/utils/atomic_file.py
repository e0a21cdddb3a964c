"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from aceg_ros.errors import UserError


def write_bytes(path: Path, content: bytes) -> None:
    """Temporary file beside the target, fsync, rename: a crash leaves the old file or the new one, never a half.

    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, but raises UserError where the place cannot be written."""
    try:
        write_bytes(path, text.encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from None


def write_json(content: dict[str, Any], path: Path) -> None:
    """As `write_text`. NaN is a programming error (ValueError): see `without_nan`."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def without_nan(value: Any) -> Any:
    """The same structure with None (null) for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
