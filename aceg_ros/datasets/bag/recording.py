# SPDX-License-Identifier: Apache-2.0
"""Reads the messages of a bag from its files: rosbag2 (mcap, sqlite3; also split or compressed) and ROS 1."""

from __future__ import annotations

import heapq
import re
import sqlite3
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import yaml
from rosbags.rosbag1 import ReaderError
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from aceg_ros.datasets.bag.compression import ZSTD_SUFFIX, decompress_message, decompressed_file
from aceg_ros.datasets.bag.mcap import McapStorage
from aceg_ros.datasets.bag.storage import Connection, Ros1Storage, SqliteStorage, Storage
from aceg_ros.datasets.scene import natural_order
from aceg_ros.errors import UserError

# Raised by the storages and rosbags if a bag is damaged.
DAMAGE = (ReaderError, sqlite3.Error, OSError, ValueError, KeyError, IndexError, EOFError,
          AssertionError, OverflowError, MemoryError, RecursionError, struct.error)

_STORAGES: dict[str, Callable[[Path], Storage]] = {".mcap": McapStorage, ".db3": SqliteStorage, ".bag": Ros1Storage}
_METADATA = "metadata.yaml"


class Recording:
    """The messages of a bag; a context manager.

    connections: topics of ROS messages, one for each file that has the topic. foreign: the other topics, with a
    description of their messages. start_ns: recording time of the first message; 0 if there is none. cut_off: names of
    files that their recorder did not close.
    """

    def __init__(self, path: Path) -> None:
        self.connections: list[Connection] = []
        self.foreign: dict[str, str] = {}
        self.cut_off: list[str] = []
        self._owners: dict[int, Storage] = {}               # by id() of the connection
        self._open_storages = ExitStack()
        try:
            starts = [start_ns for file in storage_files(path) if (start_ns := self._add(file)) is not None]
        except BaseException:
            self.close()
            raise
        self.start_ns = min(starts, default=0)

    def _add(self, file: Path) -> int | None:
        content = decompressed_file(file) if file.suffix == ZSTD_SUFFIX else file
        try:
            storage = _STORAGES[content.suffix](content)
        except DAMAGE as error:
            raise ValueError(f"{file.name}: {error}") from None
        self._open_storages.callback(storage.close)
        if storage.cut_off:
            self.cut_off.append(file.name)
        for connection in storage.connections:
            if connection.foreign:
                self.foreign[connection.topic] = f"{connection.foreign} {connection.msgtype}".strip()
            else:
                self.connections.append(connection)
                self._owners[id(connection)] = storage
        return storage.start_ns

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._open_storages.close()

    def messages(self, connections: Sequence[Connection]) -> Iterator[tuple[Connection, int, bytes]]:
        """Yield (connection, recording time in ns, message) of these connections, ordered by time."""
        by_storage: dict[int, tuple[Storage, dict[int, Connection]]] = {}
        for connection in connections:
            storage = self._owners[id(connection)]
            by_storage.setdefault(id(storage), (storage, {}))[1][connection.number] = connection

        def of_storage(storage: Storage, chosen: dict[int, Connection]) -> Iterator[tuple[Connection, int, bytes]]:
            for number, recorded_ns, data in storage.messages(list(chosen)):
                yield chosen[number], recorded_ns, data

        streams = [of_storage(storage, chosen) for storage, chosen in by_storage.values()]
        yield from heapq.merge(*streams, key=lambda message: message[1])

    def deserialize(self, connection: Connection, data: bytes) -> Any:
        """Deserialize a message. Raises ValueError if it is damaged."""
        data = decompress_message(data)
        store = _typestore(connection.msgtype, connection.definition_format, connection.definition)
        is_ros1 = connection.definition_format == "ros1msg"
        try:
            return (store.deserialize_ros1 if is_ros1 else store.deserialize_cdr)(data, connection.msgtype)
        except Exception as error:      # the parser does not only raise errors of its own
            raise ValueError(f"a message of {connection.topic} is damaged: {error!r}") from None


def can_read(path: Path) -> bool:
    """Return whether path looks like a file of a bag, or a folder with such files."""
    if path.is_file():
        return _is_storage(path)
    return path.is_dir() and (any(map(_is_storage, path.iterdir())) or _is_metadata(path / _METADATA))


def storage_files(path: Path) -> list[Path]:
    """Return the files of a bag in the order of recording. Raises UserError if files are missing or ambiguous."""
    if path.is_file():
        return [path]
    found = sorted((file for file in path.iterdir() if _is_storage(file)), key=lambda file: natural_order(file.name))
    # `ros2 bag play` leaves decompressed files beside the compressed ones.
    found = [file for file in found if file.suffix != ZSTD_SUFFIX or file.with_suffix("") not in found]
    listed = _listed_files(path / _METADATA)
    if listed:
        by_name = {file.name.removesuffix(ZSTD_SUFFIX): file for file in found}
        missing = [name for name in listed if name.removesuffix(ZSTD_SUFFIX) not in by_name]
        if missing:
            raise UserError(f"The bag {path} lacks {', '.join(missing)}, which its metadata.yaml lists: put it there,"
                            " or make a new metadata.yaml with `ros2 bag reindex`.")
        return [by_name[name.removesuffix(ZSTD_SUFFIX)] for name in listed]
    if not found:
        raise UserError(f"The bag {path} has a metadata.yaml, but no .mcap, .db3 or .bag file.")
    # The files of a split bag are numbered: drive_0.mcap, drive_1.mcap.
    if len({re.sub(r"_\d+$", "", file.name.split(".")[0]) for file in found}) > 1:
        raise UserError(f"{path} has no metadata.yaml and holds several recordings: name one of"
                        f" {', '.join(file.name for file in found[:5])}.")
    return found


def _is_storage(path: Path) -> bool:
    name = path.name.removesuffix(ZSTD_SUFFIX)
    return PurePath(name).suffix in _STORAGES and not name.startswith(".") and path.is_file()


def _is_metadata(path: Path) -> bool:
    return path.is_file() and b"rosbag2_bagfile_information" in path.read_bytes()[:1000]


def _listed_files(metadata: Path) -> list[str]:
    """Return the file names in metadata.yaml; none if it is missing or damaged."""
    try:
        content = yaml.safe_load(metadata.read_text())["rosbag2_bagfile_information"]
        return [PurePath(name).name for name in content["relative_file_paths"]]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return []


@cache
def _typestore(msgtype: str, definition_format: str, definition: str) -> Typestore:
    """Return the types for a message: those of ROS (the same in all distributions), or else as recorded."""
    known = _ros_typestore(Stores.ROS1_NOETIC if definition_format == "ros1msg" else Stores.ROS2_HUMBLE)
    if msgtype in known.types:
        return known
    store = get_typestore(Stores.EMPTY)
    try:
        types = {"ros2idl": _types_from_idl}.get(definition_format, get_types_from_msg)(definition, msgtype)
        store.register(types)
    except Exception as error:          # the parsers do not only raise errors of their own
        raise ValueError(f"the definition of {msgtype} is damaged: {error!r}") from None
    return store


@cache
def _ros_typestore(version: Stores) -> Typestore:
    return get_typestore(version)


def _types_from_idl(definition: str, _msgtype: str) -> Any:
    """Parse a definition of several IDL files, each after a line of 80 = and one with its name."""
    types: dict[str, Any] = {}
    for part in definition.split("=" * 80 + "\n"):
        types.update(get_types_from_idl(re.sub(r"\AIDL: .*\n", "", part)) if part.strip() else {})
    return types
