# SPDX-License-Identifier: Apache-2.0
"""Atomic writes: after a crash, a file is either the old one or the complete new one."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aceg_ros.errors import UserError


@contextmanager
def atomic_replacement(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file; when the block ends, that file replaces the target.

    For writers that need a path, such as np.savez and save_file. The temporary file has the target's suffix. If the
    block raises, it is deleted and the target stays as it was. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file as `atomic_replacement` does. Raises OSError."""
    with atomic_replacement(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file as `atomic_replacement` does. Raises UserError if it cannot be written."""
    try:
        write_bytes(path, text.encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from None


def write_json(content: dict[str, Any], path: Path) -> None:
    """Write a JSON file as `write_text` does. Raises ValueError on NaN: see `without_nan`."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def without_nan(value: Any) -> Any:
    """Return the same structure with None (null) instead of NaN, which JSON lacks."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
