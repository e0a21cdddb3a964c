# SPDX-License-Identifier: Apache-2.0
"""The interface of a file of a bag, and the implementations for sqlite3 (rosbag2) and .bag files (ROS 1).

metadata.yaml is not needed: a recorder that was killed has not written it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rosbags.interfaces import MessageDefinitionFormat
from rosbags.rosbag1 import Reader as Reader1


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A topic of a storage.

    number: identifies the topic in its storage. msgtype: such as sensor_msgs/msg/Image, also for ROS 1. definition:
    text of the message definition and its dependencies; empty if not recorded. definition_format: ros1msg, ros2msg or
    ros2idl. foreign: encoding of messages that are not ROS messages; empty for ROS messages.
    """

    number: int
    topic: str
    msgtype: str
    definition: str = ""
    definition_format: str = "ros2msg"
    foreign: str = ""


class Storage(Protocol):
    """A file of messages. All methods raise ValueError, OSError or sqlite3.Error if it is damaged."""

    connections: list[Connection]
    start_ns: int | None        # None if it holds no message
    cut_off: bool               # not closed by its recorder: what came last may be missing

    def messages(self, numbers: Collection[int]) -> Iterator[tuple[int, int, bytes]]:
        """Yield (number, recording time in ns, message) of these connections, ordered by time."""

    def close(self) -> None: ...


class SqliteStorage:
    """A .db3 file."""

    def __init__(self, path: Path) -> None:
        # A recorder that was killed leaves its last writes in a -wal file, which is ignored if opened as immutable.
        log = path.with_name(f"{path.name}-wal")
        has_log = log.is_file() and log.stat().st_size > 0
        self.cut_off = has_log
        uri = f"{path.resolve().as_uri()}?{'mode=ro' if has_log else 'immutable=1'}"
        if not path.stat().st_size:
            raise ValueError("the file is empty")
        self._database = sqlite3.connect(uri, uri=True, check_same_thread=False)
        try:
            tables = {name for name, in self._database.execute("SELECT name FROM sqlite_master")}
            if not {"topics", "messages"} <= tables:
                raise ValueError("it has no tables of topics and messages")
            self.connections = self._read_connections(tables)
            start_ns = self._database.execute("SELECT MIN(timestamp) FROM messages").fetchone()[0]
            self.start_ns = None if start_ns is None else int(start_ns)
        except BaseException:
            self._database.close()
            raise

    def _read_connections(self, tables: set[str]) -> list[Connection]:
        definitions = {}
        if "message_definitions" in tables:
            definitions = {name: (form, text) for name, form, text in self._database.execute(
                "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions")}
        connections = []
        for number, topic, kind, form in self._database.execute(
                "SELECT id, name, type, serialization_format FROM topics ORDER BY id"):
            definition_format, definition = definitions.get(kind, ("ros2msg", ""))
            connections.append(Connection(
                number=number, topic=str(topic), msgtype=str(kind), definition=str(definition),
                definition_format=str(definition_format), foreign="" if form == "cdr" else str(form)))
        return connections

    def messages(self, numbers: Collection[int]) -> Iterator[tuple[int, int, bytes]]:
        places = ",".join("?" * len(numbers))
        rows = self._database.execute(
            f"SELECT topic_id, timestamp, data FROM messages WHERE topic_id IN ({places}) ORDER BY timestamp",
            tuple(numbers))
        for number, recorded_ns, data in rows:
            if not isinstance(recorded_ns, int) or not isinstance(data, bytes):
                raise ValueError("its table of messages is damaged")
            yield number, recorded_ns, data

    def close(self) -> None:
        self._database.close()


class Ros1Storage:
    """A .bag file, read by rosbags, which rejects those that were not closed."""

    cut_off = False

    def __init__(self, path: Path) -> None:
        self._reader = Reader1(path)
        try:
            self._reader.open()
        except Exception as error:      # bz2 and lz4 have errors of their own
            raise ValueError(str(error)) from None
        self._connections = dict(enumerate(self._reader.connections))
        self.connections = [
            Connection(number=number, topic=connection.topic, msgtype=connection.msgtype, definition_format="ros1msg",
                       definition=connection.msgdef.data
                       if connection.msgdef.format == MessageDefinitionFormat.MSG else "")
            for number, connection in self._connections.items()]
        self.start_ns = self._reader.start_time if self._reader.message_count else None

    def messages(self, numbers: Collection[int]) -> Iterator[tuple[int, int, bytes]]:
        chosen = {self._connections[number].id: number for number in numbers}
        connections = [self._connections[number] for number in numbers]
        messages = self._reader.messages(connections)
        while True:
            try:
                connection, recorded_ns, data = next(messages)
            except StopIteration:
                return
            except Exception as error:
                raise ValueError(str(error)) from None
            yield chosen[connection.id], recorded_ns, data

    def close(self) -> None:
        self._reader.close()
