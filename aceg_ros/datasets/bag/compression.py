# SPDX-License-Identifier: Apache-2.0
"""Decompression of bags (zstd and lz4, by the libraries that rosbags depends on)."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from rosbags.rosbag2 import reader as _rosbags_reader
from rosbags.rosbag2.storage_mcap import decompress

ZSTD_SUFFIX = ".zstd"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_zstd = vars(_rosbags_reader)["zstd"]           # of the standard library or a backport of it


def decompress_chunk(data: bytes, compression: str, size: int, checksum: int) -> bytes:
    """Decompress a chunk of an mcap file. Raises ValueError if it is damaged."""
    try:
        return decompress(data, compression, size, checksum)
    except Exception as error:          # each library has its own
        raise ValueError(f"a chunk is damaged: {error}") from None


def decompress_message(data: bytes) -> bytes:
    """Decompress a message if the bag compresses messages. Raises ValueError if it is damaged."""
    if data[:4] != _ZSTD_MAGIC:         # a serialized message begins with 0
        return data
    try:
        return bytes(_zstd.decompress(data))
    except Exception as error:
        raise ValueError(f"a compressed message is damaged: {error}") from None


def decompressed_file(path: Path) -> Path:
    """Return a decompressed copy of a .zstd file. It is deleted when the process ends. Raises ValueError if damaged."""
    status = path.stat()
    return _decompressed_copy(path.resolve(), status.st_mtime_ns, status.st_size)


@cache
def _decompressed_copy(path: Path, modified_ns: int, size: int) -> Path:
    copy = Path(tempfile.mkdtemp(dir=_folder())) / path.stem
    try:
        with _zstd.open(path, "rb") as compressed, copy.open("wb") as file:
            shutil.copyfileobj(compressed, file, 1 << 20)
    except (EOFError, OSError, _zstd.ZstdError) as error:
        copy.unlink(missing_ok=True)
        raise ValueError(f"{path.name} cannot be decompressed: {error}") from None
    return copy


@cache
def _folder() -> str:
    folder = tempfile.mkdtemp(prefix="aceg_bag_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
