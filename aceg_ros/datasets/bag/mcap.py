# SPDX-License-Identifier: Apache-2.0
"""Reads .mcap files of rosbag2, also without an index, truncated, or with channels other than ROS messages.

The format is specified at https://mcap.dev/spec, which names the records as here.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from aceg_ros.datasets.bag.compression import decompress_chunk
from aceg_ros.datasets.bag.storage import Connection

_MAGIC = b"\x89MCAP0\r\n"
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _CHUNK_INDEX, _STATISTICS, _DATA_END = 2, 3, 4, 5, 6, 8, 11, 15
_MESSAGE_HEADER = struct.Struct("<HIQQ")        # channel, sequence, log time, publish time
_RECORD_HEADER = struct.Struct("<BQ")
# Encodings of messages with the default encoding of their schemas, and encodings of schemas.
_ROS_MESSAGES = {"cdr": "ros2msg", "ros1": "ros1msg"}
_ROS_SCHEMAS = {"ros1msg": "ros1msg", "ros2msg": "ros2msg", "ros2idl": "ros2idl", "omgidl": "ros2idl"}


class _Fields:
    """Reads the fields of a record in sequence. Raises ValueError beyond its end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0

    def take(self, length: int) -> bytes:
        end = self._position + length
        if end > len(self._data):
            raise ValueError("a record ends too early")
        taken = self._data[self._position:end]
        self._position = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def block(self) -> bytes:
        return self.take(self.number(4))

    def string(self) -> str:
        return self.block().decode(errors="replace")


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Position of a chunk's content in the file. channels: channels with messages in the chunk; None if unknown."""

    start_ns: int
    position: int
    length: int
    channels: frozenset[int] | None


class McapStorage:
    """An .mcap file."""

    def __init__(self, path: Path) -> None:
        self._chunks: list[_Chunk] = []
        self._loose: list[tuple[int, int, int, int]] = []       # outside chunks: time, position, length, channel
        self._schemas: dict[int, tuple[str, str, bytes]] = {}   # name, encoding, definition
        self._channels: dict[int, Connection] = {}
        self.start_ns: int | None = None
        self.cut_off = False
        self._file = path.open("rb")
        try:
            self._size = path.stat().st_size
            if self._file.read(8) != _MAGIC:
                raise ValueError("it is empty or no mcap file")
            if not self._has_summary():
                self._schemas.clear()
                self._channels.clear()
                self._chunks.clear()
                self._scan()
        except BaseException:
            self._file.close()
            raise
        self._chunks.sort(key=lambda chunk: chunk.start_ns)
        self.connections = list(self._channels.values())

    def messages(self, numbers: Collection[int]) -> Iterator[tuple[int, int, bytes]]:
        wanted = set(numbers)
        loose = ((log_ns, number, position, length) for log_ns, position, length, number in sorted(self._loose)
                 if number in wanted)
        in_files = ((log_ns, number, self._content(position, length)) for log_ns, number, position, length in loose)
        for log_ns, number, data in heapq.merge(self._in_chunks(wanted), in_files, key=lambda message: message[0]):
            yield number, log_ns, data

    def close(self) -> None:
        self._file.close()

    def _in_chunks(self, wanted: set[int]) -> Iterator[tuple[int, int, bytes]]:
        """Yield (log time, channel, message) of the chunks, which may overlap in time."""
        waiting: list[tuple[int, int, int, bytes]] = []
        count = 0
        for chunk in [*(c for c in self._chunks if c.channels is None or c.channels & wanted), None]:
            while waiting and (chunk is None or waiting[0][0] < chunk.start_ns):
                log_ns, _, number, data = heapq.heappop(waiting)
                yield log_ns, number, data
            for op, record in self._chunk_records(chunk) if chunk is not None else ():
                if op == _MESSAGE and len(record) >= _MESSAGE_HEADER.size:
                    number, _, log_ns, _ = _MESSAGE_HEADER.unpack_from(record)
                    if number in wanted:
                        heapq.heappush(waiting, (log_ns, count, number, record[_MESSAGE_HEADER.size:]))
                        count += 1

    def _content(self, position: int, length: int) -> bytes:
        if position + length > self._size:
            raise ValueError("the file ends too early")
        self._file.seek(position)
        return self._file.read(length)

    def _has_summary(self) -> bool:
        try:
            return self._read_summary()
        except ValueError:              # damaged; the file can be scanned instead
            return False

    def _read_summary(self) -> bool:
        """Read topics and chunk index at the end of the file. Return False if they are missing or incomplete."""
        if self._size < 45:
            return False
        footer = self._content(self._size - 37, 37)
        if not footer.endswith(_MAGIC) or footer[0] != _FOOTER:
            return False
        position, count, chunk_count = int.from_bytes(footer[9:17], "little"), 0, -1
        while 8 <= position < self._size - 37:
            op, length = _RECORD_HEADER.unpack(self._content(position, 9))
            position += 9
            if op in (_SCHEMA, _CHANNEL, _CHUNK_INDEX, _STATISTICS):
                record = self._content(position, length)
                self._add_topic(op, record)
                if op == _CHUNK_INDEX:
                    self._chunks.append(_indexed_chunk(_Fields(record)))
                    count += 1
                elif op == _STATISTICS:
                    fields = _Fields(record)
                    fields.take(8 + 2 + 4 + 4 + 4)
                    chunk_count = fields.number(4)
                    self.start_ns = fields.number(8)
            position += length
        if not self._channels or not count or chunk_count not in (-1, count):
            return False
        if self.start_ns is None:
            self.start_ns = min(chunk.start_ns for chunk in self._chunks)
        return True

    def _scan(self) -> None:
        """Read the records of a file without an index, up to its end or to the first incomplete record."""
        position = 8
        self.cut_off = True
        while position + 9 <= self._size:
            op, length = _RECORD_HEADER.unpack(self._content(position, 9))
            position += 9
            if position + length > self._size or op in (0, _FOOTER, _DATA_END):
                self.cut_off = op not in (_FOOTER, _DATA_END)
                break
            if op in (_SCHEMA, _CHANNEL):
                self._add_topic(op, self._content(position, length))
            elif op == _MESSAGE and length >= _MESSAGE_HEADER.size:
                number, _, log_ns, _ = _MESSAGE_HEADER.unpack(self._content(position, _MESSAGE_HEADER.size))
                self._loose.append((log_ns, position + _MESSAGE_HEADER.size, length - _MESSAGE_HEADER.size, number))
            elif op == _CHUNK:
                self._add_chunk(position, length)
            position += length
        starts = [chunk.start_ns for chunk in self._chunks if chunk.channels] + [entry[0] for entry in self._loose]
        self.start_ns = min(starts, default=None)

    def _add_chunk(self, position: int, length: int) -> None:
        channels = set()
        start_ns = int.from_bytes(self._content(position, 8), "little")
        chunk = _Chunk(start_ns=start_ns, position=position, length=length, channels=None)
        for op, record in self._chunk_records(chunk):
            self._add_topic(op, record)
            if op == _MESSAGE:
                channels.add(int.from_bytes(record[:2], "little"))
        self._chunks.append(_Chunk(start_ns=start_ns, position=position, length=length, channels=frozenset(channels)))

    def _chunk_records(self, chunk: _Chunk) -> Iterator[tuple[int, bytes]]:
        fields = _Fields(self._content(chunk.position, chunk.length))
        fields.take(16)
        size, checksum, compression = fields.number(8), fields.number(4), fields.string()
        records = decompress_chunk(fields.take(fields.number(8)), compression, size, checksum)
        position = 0
        while position + 9 <= len(records):
            op, length = _RECORD_HEADER.unpack_from(records, position)
            position += 9
            if position + length > len(records):
                raise ValueError("a record of a chunk ends too early")
            yield op, records[position:position + length]
            position += length

    def _add_topic(self, op: int, record: bytes) -> None:
        """Add the content of a schema or channel record; ignore other records."""
        fields = _Fields(record)
        if op == _SCHEMA:
            number = fields.number(2)
            self._schemas[number] = fields.string(), fields.string(), fields.block()
        elif op == _CHANNEL:
            number, schema = fields.number(2), fields.number(2)
            topic, message_encoding = fields.string(), fields.string()
            name, encoding, definition = self._schemas.get(schema, ("", "", b""))
            form = _ROS_SCHEMAS.get(encoding, _ROS_MESSAGES.get(message_encoding, "") if not encoding else "")
            is_ros = message_encoding in _ROS_MESSAGES and bool(form and name)
            if name.count("/") == 1:
                name = name.replace("/", "/msg/")
            self._channels.setdefault(number, Connection(
                number=number, topic=topic, msgtype=name, definition_format=form,
                definition=definition.decode(errors="replace") if is_ros else "",
                foreign="" if is_ros else encoding or message_encoding or "unknown"))


def _indexed_chunk(fields: _Fields) -> _Chunk:
    start_ns, _, position, length = (fields.number(8) for _ in range(4))
    entries = fields.block()
    channels = frozenset(int.from_bytes(entries[at:at + 2], "little") for at in range(0, len(entries), 10))
    return _Chunk(start_ns=start_ns, position=position + 9, length=length - 9, channels=channels or None)
