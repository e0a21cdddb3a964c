# SPDX-License-Identifier: Apache-2.0
"""Bags as they lie on disks: compressed, split, without metadata, cut off, with channels of others in them."""

import json
import shutil
import sqlite3
import struct

import numpy as np
import pytest
import yaml
from bag_writer import BagStyle, write_bag
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets import BagOptions, open_scene
from aceg_ros.datasets.bag import can_read
from aceg_ros.datasets.bag.mcap import McapStorage
from aceg_ros.datasets.bag.reader import read_messages
from aceg_ros.errors import UserError

CAMERA = Camera(width=64, height=48, fx=60.0, fy=61.0, cx=31.5, cy=23.5)
FRAMES = [Frame(image=np.random.default_rng(index).integers(0, 255, (48, 64, 3), np.uint8), camera=CAMERA,
                stamp_s=0.1 * index, map_from_camera=np.eye(4)) for index in range(8)]
SUFFIX = {"mcap": ".mcap", "sqlite3": ".db3"}


def check(path, frames=FRAMES, options=None):
    scene = open_scene(path, bag_options=options)
    read = list(scene)
    assert len(read) == len(frames) and not scene.skipped
    for frame, true in zip(read, frames, strict=True):
        np.testing.assert_array_equal(frame.image, true.image)


def storage_file(bag):
    return next(path for path in bag.iterdir() if path.suffix != ".yaml")


def edit_metadata(bag, **changes):
    content = yaml.safe_load((bag / "metadata.yaml").read_text())
    content["rosbag2_bagfile_information"] |= changes
    (bag / "metadata.yaml").write_text(yaml.safe_dump(content))


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("mode", ["FILE", "MESSAGE"])
def test_compressed_bags(tmp_path, storage, mode):
    bag = write_bag(tmp_path / "bag", FRAMES, BagStyle(storage=storage, compression=mode))
    file = storage_file(bag)
    assert file.name.endswith(".zstd") == (mode == "FILE")
    check(bag)
    check(file)
    (bag / "metadata.yaml").unlink()
    check(bag)
    if mode == "FILE":
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(UserError, match="decompressed"):
            open_scene(bag)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_metadata_is_not_needed(tmp_path, storage):
    """Nor has it to be right: an empty storage_identifier after `ros2 bag reindex`, other serializations beside."""
    bag = write_bag(tmp_path / "bag", FRAMES, BagStyle(storage=storage))
    edit_metadata(bag, storage_identifier="")
    check(bag)
    topic = {"topic_metadata": {"name": "/j", "type": "Log", "serialization_format": "json"}, "message_count": 1}
    edit_metadata(bag, topics_with_message_count=[topic], version=99)
    check(bag)
    (bag / "metadata.yaml").write_text("rosbag2_bagfile_information: {")
    check(bag)
    (bag / "metadata.yaml").unlink()
    check(bag)


def test_what_is_no_bag_is_not_taken_for_one(tmp_path):
    (tmp_path / "metadata.yaml").write_text("a: 1")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "metadata.yaml"):
        assert not can_read(path)


def test_what_metadata_lists_has_to_be_there(tmp_path):
    bag = write_bag(tmp_path / "bag", FRAMES)
    edit_metadata(bag, relative_file_paths=["bag.mcap", "bag_1.mcap"])
    with pytest.raises(UserError, match=r"lacks bag_1\.mcap"):
        open_scene(bag)
    storage_file(bag).unlink()
    edit_metadata(bag, relative_file_paths=[])
    with pytest.raises(UserError, match=r"no \.mcap"):
        open_scene(bag)


def test_parts_are_read_as_one_bag_and_bags_are_not(tmp_path):
    bag = tmp_path / "drive"
    bag.mkdir()
    for index, frames in enumerate((FRAMES[:4], FRAMES[4:])):
        shutil.copy(storage_file(write_bag(tmp_path / str(index), frames)), bag / f"drive_{9 + index}.mcap")
    check(bag)
    shutil.move(bag / "drive_9.mcap", bag / "lab_0.mcap")
    with pytest.raises(UserError, match="several recordings: name one of drive_10.mcap, lab_0.mcap"):
        open_scene(bag)


def test_a_recorder_that_was_killed_leaves_what_it_wrote(tmp_path, caplog):
    bag = write_bag(tmp_path / "bag", FRAMES, BagStyle(chunk_each=True))
    content = storage_file(bag).read_bytes()
    (bag / "metadata.yaml").unlink()
    assert len(open_scene(bag)) == 8 and not caplog.records
    for share in (0.5, 0.9):
        caplog.clear()
        storage_file(bag).write_bytes(content[:int(share * len(content))])
        frames = list(open_scene(bag))
        assert 8 * share - 3 <= len(frames) <= 8 * share
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert f"was not closed ({storage_file(bag).name})" in caplog.text and f": {len(frames)} images" in caplog.text
        np.testing.assert_array_equal(frames[-1].image, FRAMES[len(frames) - 1].image)
    for part in (b"", b"x" * 200, content[:9]):
        storage_file(bag).write_bytes(part)
        with pytest.raises(UserError, match=r"cannot be read .*(bag\.mcap|no topics)"):
            open_scene(bag)


def test_a_recorder_killed_while_sqlite_kept_a_log(tmp_path, caplog):
    bag = write_bag(tmp_path / "bag", FRAMES, BagStyle(storage="sqlite3"))
    file = storage_file(bag)
    database = sqlite3.connect(file)
    database.execute("PRAGMA journal_mode=WAL")
    last = database.execute("SELECT MAX(id) FROM messages").fetchone()[0]
    database.execute("UPDATE messages SET timestamp = timestamp WHERE id = ?", (last,))
    database.commit()
    killed = tmp_path / "killed"
    shutil.copytree(bag, killed)                # as it lies there before the log is written back
    database.close()
    check(bag)
    assert not caplog.records
    check(killed)
    assert f"was not closed ({file.name})" in caplog.text


# --- mcap files by hand ---------------------------------------------------------------------------------------------


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<I", len(data)) + data


def record(op: int, content: bytes) -> bytes:
    return struct.pack("<BQ", op, len(content)) + content


def schema(number: int, name: str, encoding: str, data: str | bytes) -> bytes:
    return record(3, struct.pack("<H", number) + string(name) + string(encoding) + string(data))


def channel(number: int, schema_number: int, topic: str, encoding: str) -> bytes:
    return record(4, struct.pack("<HH", number, schema_number) + string(topic) + string(encoding) + string(b""))


def message(number: int, stamp_ns: int, data: bytes) -> bytes:
    return record(5, struct.pack("<HIQQ", number, 0, stamp_ns, stamp_ns) + data)


MAGIC = b"\x89MCAP0\r\n"
FOREIGN = (schema(101, "Log", "jsonschema", json.dumps({"type": "object"}))
           + schema(102, "foxglove.CompressedImage", "protobuf", b"\n\xff\xfe\x80\x00binary")
           + schema(103, "Table", "flatbuffer", b"\x10\x00\x00\x00\xff\xff")
           + channel(101, 101, "/log", "json") + channel(102, 102, "/video", "protobuf")
           + channel(103, 103, "/table", "flatbuffer") + channel(104, 0, "/raw", "msgpack"))


def by_hand(source, profile="ros2", foreign=b"", footer=True) -> bytes:
    """The messages of a bag in an mcap file without chunks and summary, after some records of others."""
    storage = McapStorage(storage_file(source))
    body = foreign
    for connection in storage.connections:
        body += schema(connection.number, connection.msgtype, connection.definition_format, connection.definition)
        body += channel(connection.number, connection.number, connection.topic, "cdr")
    for number, stamp_ns, data in storage.messages([connection.number for connection in storage.connections]):
        body += message(number, stamp_ns, data)
        body += message(101, stamp_ns, b'{"a": 1}') if foreign else b""
    storage.close()
    end = record(15, b"\0" * 4) + record(2, b"\0" * 20) + MAGIC
    return MAGIC + record(1, string(profile) + string("test")) + body + (end if footer else b"")


@pytest.mark.parametrize(("profile", "footer"), [("ros2", True), ("", True), ("ros2", False)])
def test_channels_of_others_are_in_nobodys_way(tmp_path, profile, footer):
    bag = write_bag(tmp_path / "bag", FRAMES)
    file = tmp_path / "mixed.mcap"
    file.write_bytes(by_hand(bag, profile, FOREIGN, footer))
    check(file)
    with pytest.raises(UserError, match=r"/video holds no ROS messages, but protobuf foxglove\.CompressedImage"):
        open_scene(file, bag_options=BagOptions(image="/video"))
    file.write_bytes(MAGIC + record(1, string("") + string("")) + FOREIGN + message(101, 5, b"{}"))
    with pytest.raises(UserError, match=r"/log \(jsonschema Log\)"):
        open_scene(file)


def test_messages_that_are_not_in_order_are_put_into_it(tmp_path):
    bag = write_bag(tmp_path / "bag", FRAMES)
    whole = by_hand(bag, footer=False)
    storage = McapStorage(storage_file(bag))
    late = [message(number, stamp_ns, data) for number, stamp_ns, data in storage.messages([3, 4])][:2]
    storage.close()
    assert all(whole.count(part) == 1 for part in late)
    head, moved = whole, b"".join(late)
    for part in late:
        head = head.replace(part, b"")
    (tmp_path / "late.mcap").write_bytes(head + moved)
    check(tmp_path / "late.mcap")


def test_types_that_nobody_can_parse_are_in_nobodys_way(tmp_path):
    """Definitions of other topics, and one of a known type that is damaged: it is what it is in ROS."""
    bag = write_bag(tmp_path / "bag", FRAMES)
    strange = (schema(201, "my_msgs/msg/Strange", "ros2msg", "int32[ what is this\n===")
               + channel(201, 201, "/s", "cdr")
               + schema(202, "my_msgs/msg/Idl", "ros2idl", "module {") + channel(202, 202, "/i", "cdr"))
    (tmp_path / "a.mcap").write_bytes(by_hand(bag, foreign=strange))
    check(tmp_path / "a.mcap")


def test_one_damaged_message_is_one_image_less(tmp_path):
    bag = tmp_path / "bag"
    whole = by_hand(write_bag(bag, FRAMES), footer=False)
    storage = McapStorage(storage_file(bag))
    image = next(c.number for c in storage.connections if c.topic == "/camera/image")
    third = list(storage.messages([image]))[2]
    storage.close()
    broken = whole.replace(message(*third), message(image, third[1], third[2][:60]))
    (tmp_path / "broken.mcap").write_bytes(broken)
    scene = open_scene(tmp_path / "broken.mcap")
    frames = list(scene)
    assert len(scene) == 8 and len(frames) == 7 and "damaged" in scene.skipped[0].reason
    np.testing.assert_array_equal(frames[-1].image, FRAMES[-1].image)


def test_ros1_messages_in_an_mcap_file(tmp_path):
    bag = write_bag(tmp_path / "drive.bag", FRAMES, BagStyle(storage="ros1"))
    store = get_typestore(Stores.ROS1_NOETIC)
    body, numbers = b"", {}
    for topic, sent in read_messages(bag, {"/camera/image", "/camera/camera_info", "/truth"}):
        name = sent.__msgtype__
        if topic not in numbers:
            numbers[topic] = len(numbers) + 1
            definition = store.generate_msgdef(name)[0]
            body += schema(numbers[topic], name.replace("/msg/", "/"), "ros1msg", definition)
            body += channel(numbers[topic], numbers[topic], topic, "ros1")
        stamp_ns = sent.header.stamp.sec * 10**9 + sent.header.stamp.nanosec
        body += message(numbers[topic], stamp_ns, bytes(store.serialize_ros1(sent, name)))
    (tmp_path / "converted.mcap").write_bytes(MAGIC + record(1, string("ros1") + string("")) + body)
    check(tmp_path / "converted.mcap")


def test_a_type_without_a_definition_is_no_reason_to_refuse(tmp_path):
    """rosbag2 writes sqlite3 files with unknown definitions of types that it does not find."""
    import sqlite3

    bag = write_bag(tmp_path / "bag", FRAMES, BagStyle(storage="sqlite3"))
    with sqlite3.connect(storage_file(bag)) as database:
        database.execute("UPDATE message_definitions SET encoding = 'unknown', encoded_message_definition = ''")
    check(bag)


def test_message_compression_needs_no_metadata_to_be_seen(tmp_path):
    store = get_typestore(Stores.ROS2_HUMBLE)
    writer = Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.SQLITE3)
    writer.set_compression(CompressionMode.MESSAGE, CompressionFormat.ZSTD)
    with writer:
        connection = writer.add_connection("/a", "std_msgs/msg/String", typestore=store)
        sent = store.types["std_msgs/msg/String"](data="hello " * 50)
        writer.write(connection, 1, bytes(store.serialize_cdr(sent, "std_msgs/msg/String")))
    assert [m.data for _, m in read_messages(storage_file(tmp_path / "bag"), {"/a"})] == [sent.data]
