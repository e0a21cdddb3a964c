"""ROS bags: rosbag2 (mcap, sqlite3) and ROS 1, read by rosbags without ROS.

Topics of images, cameras and poses are found by their types, or named in `BagOptions`. Poses are interpolated to the
stamps of the images; images without a pose are skipped. Poses and stamps are read at once, images one by one.
"""

from __future__ import annotations

import struct
import threading
from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.rosbag2 import ReaderError
from rosbags.typesys import Stores, get_typestore

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets.bag.messages import frame_name, stamp_ns
from aceg_ros.datasets.bag.options import BagOptions
from aceg_ros.datasets.bag.poses import Poses, TfPoses, TopicPoses, add_pose, add_transforms
from aceg_ros.datasets.bag.topics import Topics, choose_topics, odometry_child_frame
from aceg_ros.datasets.bag.transform_tree import TransformTree
from aceg_ros.datasets.camera_info import camera_from_info
from aceg_ros.datasets.image_decoder import decode_image
from aceg_ros.errors import UserError
from aceg_ros.utils.stamps import NS_PER_S, ns_to_s

NAME = "ROS bag"
EXPECTED_FILES = "metadata.yaml and .mcap or .db3 files, an .mcap or .db3 file, or a .bag file"

_SUFFIXES = (".mcap", ".db3", ".bag")
_LONGEST_S = 1e9        # stands for an infinite end
# What rosbags and the storages below it raise on damaged bags.
_DAMAGE = (AnyReaderError, ReaderError, OSError, ValueError, KeyError, IndexError, EOFError, AssertionError,
           OverflowError, MemoryError, struct.error)


class ImageStream:
    """Random access to the images of one topic; fast in ascending order."""

    def __init__(self, path: Path, topic: str) -> None:
        self.path, self.topic = path, topic
        self._messages: Iterator[Any] = iter(())
        self._next, self._thread = 0, 0

    def image(self, index: int) -> np.ndarray:
        """Return image number `index` as (H, W, 3) uint8 RGB. Raises UserError if it cannot be read or decoded."""
        # An sqlite3 database can only be read by the thread that opened it.
        if index < self._next or self._thread != threading.get_ident() or self._next == 0:
            self._messages, self._next, self._thread = self._read_all(), 0, threading.get_ident()
        message: Any = None
        try:
            while self._next <= index:
                message = next(self._messages)
                self._next += 1
        except (*_DAMAGE, StopIteration) as error:
            raise UserError(f"the bag cannot be read there ({error!r}).") from None
        return decode_image(message)

    def _read_all(self) -> Iterator[Any]:
        for _, message in read_messages(self.path, {self.topic}):
            yield message


@dataclass(frozen=True, kw_only=True)
class BagEntry:
    """One image of a bag. index: its number in the topic. camera: None if no camera_info is usable."""

    index: int
    stamp_ns: int
    frame_id: str
    images: ImageStream
    camera: Camera | None
    poses: Poses
    posed: bool

    @property
    def name(self) -> str:
        return f"{ns_to_s(self.stamp_ns):.6f}"

    def load(self) -> Frame:
        try:
            if self.camera is None:
                raise UserError("there is no usable camera_info before it.")
            pose = self._pose()
            image = self.images.image(self.index)
        except UserError as error:
            raise UserError(f"Image {self.name} of {self.images.path}: {error}") from None
        if image.shape[:2] != (self.camera.height, self.camera.width):
            raise UserError(f"Image {self.name} of {self.images.path} has {image.shape[1]}x{image.shape[0]} pixels,"
                            f" camera_info says {self.camera.width}x{self.camera.height}.")
        return Frame(image=image, camera=self.camera, stamp_s=ns_to_s(self.stamp_ns), map_from_camera=pose,
                     name=self.name)

    def _pose(self) -> np.ndarray | None:
        try:
            return self.poses.at(self.stamp_ns, self.frame_id)
        except UserError:
            if self.posed:
                raise
            return None


class _Cameras:
    """The cameras of a camera_info topic by stamp; None for an unusable camera_info."""

    def __init__(self, by_stamp: dict[int, Camera | None]) -> None:
        self._by_stamp, self._stamps = by_stamp, sorted(by_stamp)

    def at(self, stamp_ns: int) -> Camera | None:
        """Return the camera of the last camera_info up to that stamp, or of the first one if all are later."""
        if not self._stamps:
            return None
        return self._by_stamp[self._stamps[max(bisect_right(self._stamps, stamp_ns) - 1, 0)]]


@dataclass(frozen=True, kw_only=True)
class _ImageHeader:
    index: int
    stamp_ns: int
    frame_id: str


def can_read(path: Path) -> bool:
    if path.is_file():
        return path.suffix in _SUFFIXES
    return (path / "metadata.yaml").is_file() and any(p.suffix in _SUFFIXES for p in path.iterdir())


def open_bag(path: Path) -> AnyReader:
    """Open a bag with rosbags; the result is a context manager."""
    return AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))


def read_messages(path: Path, topics: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield (topic, message) of these topics in the order of recording."""
    with open_bag(path) as reader:
        connections = [connection for connection in reader.connections if connection.topic in topics]
        for connection, _, data in reader.messages(connections):
            yield connection.topic, reader.deserialize(data, connection.msgtype)


def list_entries(path: Path, options: BagOptions | None = None) -> list[BagEntry]:
    """List the images in the order of recording. Raises UserError if the bag cannot be read."""
    options = options or BagOptions()
    try:
        with open_bag(path) as reader:
            topics = choose_topics(reader, options)
            tree = TransformTree()
            headers, cameras = _read_messages(reader, topics, options, tree)
            poses = _poses(reader, topics, options, tree)
    except _DAMAGE as error:
        raise UserError(f"The bag {path} cannot be read ({error}).") from None
    images = ImageStream(path, topics.image)
    return [BagEntry(index=header.index, stamp_ns=header.stamp_ns, frame_id=header.frame_id, images=images,
                     camera=cameras.at(header.stamp_ns), poses=poses, posed=options.posed) for header in headers]


def _read_messages(reader: AnyReader, topics: Topics, options: BagOptions,
                   tree: TransformTree) -> tuple[list[_ImageHeader], _Cameras]:
    """Read the headers of the images and the cameras, and add transforms and poses to the tree."""
    headers: list[_ImageHeader] = []
    cameras: dict[int, Camera | None] = {}
    first_ns, last_ns = _time_range(reader, options)
    count = 0
    for connection, recorded_ns, data in reader.messages(topics.connections(reader)):
        message: Any = reader.deserialize(data, connection.msgtype)
        if connection.topic == topics.image:
            if first_ns <= recorded_ns <= last_ns:
                headers.append(_ImageHeader(index=count, stamp_ns=stamp_ns(message),
                                            frame_id=frame_name(message.header.frame_id)))
            count += 1
        elif connection.topic == topics.camera_info:
            cameras[stamp_ns(message)] = _camera(message, options.rectified)
        elif connection.topic == topics.pose:
            add_pose(tree, message)
        else:
            add_transforms(tree, message, static=connection.topic.endswith("_static"))
    return headers, _Cameras(cameras)


def _time_range(reader: AnyReader, options: BagOptions) -> tuple[int, int]:
    """Return the first and last recording time to read, in nanoseconds (as integers: a double is not exact)."""
    return (reader.start_time + round(NS_PER_S * options.start_s),
            reader.start_time + round(NS_PER_S * min(options.end_s, _LONGEST_S)))


def _poses(reader: AnyReader, topics: Topics, options: BagOptions, tree: TransformTree) -> Poses:
    if options.tf is not None:
        map_frame, camera_frame = (frame_name(name) for name in options.tf)
        return TfPoses(tree=tree, map_frame=map_frame, camera_frame=camera_frame)
    child = frame_name(options.pose_of) or odometry_child_frame(reader, topics.pose)
    return TopicPoses(tree=tree, child=child)


def _camera(message: Any, rectified: bool) -> Camera | None:
    try:
        return camera_from_info(message, rectified)
    except UserError:
        return None
