"""ROS bags: rosbag2 (mcap, sqlite3) and ROS 1, read by rosbags without ROS.

Pictures, cameras and poses are found by their types, or named by `BagOptions`. A picture's pose is interpolated at its
stamp; a picture without one is a frame that cannot be used.
"""

from __future__ import annotations

import struct
import threading
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.rosbag2 import ReaderError
from rosbags.typesys import Stores, get_typestore

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets.bag.transform_tree import TransformTree
from aceg_ros.datasets.camera_info import camera_from_info
from aceg_ros.datasets.image_decoder import decode_image
from aceg_ros.errors import UserError
from aceg_ros.geometry import pose_from_quaternion

NAME = "ROS bag"
LOOKS_FOR = "metadata.yaml and .mcap or .db3 files, an .mcap or .db3 file, or a .bag file"

_IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
_INFO = "sensor_msgs/msg/CameraInfo"
_TF = ("tf2_msgs/msg/TFMessage", "tf/msg/tfMessage")
_ODOMETRY = "nav_msgs/msg/Odometry"
_POSES = ("geometry_msgs/msg/PoseStamped", "geometry_msgs/msg/PoseWithCovarianceStamped", _ODOMETRY)
_SUFFIXES = (".mcap", ".db3", ".bag")
_DAMAGE = (AnyReaderError, ReaderError, OSError, ValueError, KeyError, IndexError, EOFError, AssertionError,
           OverflowError, MemoryError, struct.error)


@dataclass(frozen=True)
class BagOptions:
    """Topics; empty: the only one that fits.

    tf: frames (map, camera), poses from TF; camera may be empty: the frame_id of the pictures. pose_of: the frame whose
    pose pose_topic gives; empty: the camera (odometry names its own). start_s, end_s: from the beginning of the bag.
    rectified: the pictures are free of distortion, their camera is in P. posed: a picture without a pose is unusable;
    else it is a frame without one.
    """

    image: str = ""
    camera_info: str = ""
    pose_topic: str = ""
    pose_of: str = ""
    tf: tuple[str, str] | None = None
    start_s: float = 0.0
    end_s: float = float("inf")
    rectified: bool = False
    posed: bool = True


class Poses(Protocol):
    def at(self, stamp_ns: int, camera: str) -> np.ndarray:
        """map_from_camera (4, 4) of the frame `camera`. Raises UserError where it is not known."""


@dataclass(frozen=True)
class TfPoses:
    """camera_frame: empty for the frame_id of the picture."""

    tree: TransformTree
    map_frame: str
    camera_frame: str

    def at(self, stamp_ns: int, camera: str) -> np.ndarray:
        return self.tree.lookup(self.map_frame, self.camera_frame or camera, stamp_ns)


_WORLD, _POSED = "the pose topic's frame", "the posed frame"        # names that no recording uses


@dataclass(frozen=True)
class TopicPoses:
    """child: whose pose the topic gives, joined to the camera by TF; empty: the camera's own."""

    tree: TransformTree
    child: str

    def at(self, stamp_ns: int, camera: str) -> np.ndarray:
        try:
            pose = self.tree.lookup(_WORLD, _POSED, stamp_ns)
        except UserError:
            raise UserError("there is no pose around its stamp.") from None
        return pose if self.child in ("", camera) else pose @ self.tree.lookup(self.child, camera, stamp_ns)


@dataclass(frozen=True)
class BagEntry:
    index: int
    stamp_ns: int
    frame_id: str
    images: ImageStream
    camera: Camera | None
    poses: Poses
    posed: bool

    @property
    def name(self) -> str:
        return f"{1e-9 * self.stamp_ns:.6f}"

    def load(self) -> Frame:
        try:
            if self.camera is None:
                raise UserError("there is no usable camera_info before it.")
            pose = self._pose()
            image = self.images.picture(self.index)
        except UserError as error:
            raise UserError(f"Picture {self.name} of {self.images.path}: {error}") from None
        if image.shape[:2] != (self.camera.height, self.camera.width):
            raise UserError(f"Picture {self.name} of {self.images.path} has {image.shape[1]}x{image.shape[0]} pixels,"
                            f" camera_info says {self.camera.width}x{self.camera.height}.")
        return Frame(image=image, camera=self.camera, stamp_s=1e-9 * self.stamp_ns, map_from_camera=pose,
                     name=self.name)

    def _pose(self) -> np.ndarray | None:
        try:
            return self.poses.at(self.stamp_ns, self.frame_id)
        except UserError:
            if self.posed:
                raise
            return None


class ImageStream:
    """The pictures of one topic by number; fast in ascending order."""

    def __init__(self, path: Path, topic: str) -> None:
        self.path, self.topic = path, topic
        self._messages: Iterator[Any] = iter(())
        self._next, self._thread = 0, 0

    def picture(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB. Raises UserError where it cannot be decoded."""
        # A database of sqlite3 can only be read by the thread that opened it.
        if index < self._next or self._thread != threading.get_ident() or self._next == 0:
            self._messages, self._next, self._thread = self._all(), 0, threading.get_ident()
        message: Any = None
        try:
            while self._next <= index:
                message = next(self._messages)
                self._next += 1
        except (*_DAMAGE, StopIteration) as error:
            raise UserError(f"the bag cannot be read there ({error!r}).") from None
        return decode_image(message)

    def _all(self) -> Iterator[Any]:
        with _open(self.path) as reader:
            for connection, _, data in reader.messages([c for c in reader.connections if c.topic == self.topic]):
                yield reader.deserialize(data, connection.msgtype)


def recognises(path: Path) -> bool:
    if path.is_file():
        return path.suffix in _SUFFIXES
    return (path / "metadata.yaml").is_file() and any(p.suffix in _SUFFIXES for p in path.iterdir())


def list_entries(path: Path, options: BagOptions | None = None) -> list[BagEntry]:
    options = options or BagOptions()
    try:
        with _open(path) as reader:
            return _entries(path, reader, options)
    except _DAMAGE as error:
        raise UserError(f"The bag {path} cannot be read ({error}).") from None


def _open(path: Path) -> AnyReader:
    return AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))


def _entries(path: Path, reader: AnyReader, options: BagOptions) -> list[BagEntry]:
    image = _image_topic(reader, options.image)
    info = _info_topic(reader, options.camera_info, image)
    pose = "" if options.tf is not None else _pose_topic(reader, options.pose_topic, options.posed)
    tree = TransformTree()
    cameras: dict[int, Camera | None] = {}                  # by stamp
    pictures: list[tuple[int, int, str]] = []               # number in the topic, stamp, frame
    first_ns = reader.start_time + round(1e9 * options.start_s)     # whole numbers: these are beyond a double's digits
    last_ns = reader.start_time + round(1e9 * min(options.end_s, 1e9))
    number = 0
    wanted = [c for c in reader.connections if c.topic in (image, info, pose) or c.msgtype in _TF]
    for connection, recorded_ns, data in reader.messages(wanted):
        message: Any = reader.deserialize(data, connection.msgtype)
        if connection.topic == image:
            if first_ns <= recorded_ns <= last_ns:
                pictures.append((number, _stamp(message.header), message.header.frame_id.lstrip("/")))
            number += 1
        elif connection.topic == info:
            cameras[_stamp(message.header)] = _camera(message, options.rectified)
        elif connection.topic == pose:
            _take_pose(tree, message)
        else:
            _take_transforms(tree, message, connection.topic.endswith("_static"))
    poses: Poses
    if options.tf is not None:
        poses = TfPoses(tree, *(name.lstrip("/") for name in options.tf))
    else:
        poses = TopicPoses(tree, options.pose_of.lstrip("/") or _child(reader, pose))
    images, stamps = ImageStream(path, image), sorted(cameras)

    def camera_at(stamp_ns: int) -> Camera | None:
        """Of the camera_info with that stamp, else of the one before it, else of the first."""
        return cameras[stamps[max(bisect_right(stamps, stamp_ns) - 1, 0)]] if stamps else None

    return [BagEntry(index, stamp, frame, images, camera_at(stamp), poses, options.posed)
            for index, stamp, frame in pictures]


def _image_topic(reader: AnyReader, named: str) -> str:
    if named:
        return _named(reader, named, _IMAGES)
    topics = {c.topic for c in reader.connections if c.msgtype in _IMAGES}
    # The picture itself rather than its compressed copy, and nothing that was made of it.
    candidates = {t for t in topics if not (t.endswith("/compressed") and t.removesuffix("/compressed") in topics)}
    candidates = {t for t in candidates if not any(word in t for word in ("depth", "debug", "overlay"))}
    return _only(candidates, "pictures", "--image", topics)


def _info_topic(reader: AnyReader, named: str, image: str) -> str:
    if named:
        return _named(reader, named, (_INFO,))
    topics = {c.topic for c in reader.connections if c.msgtype == _INFO}
    sibling = f"{image.removesuffix('/compressed').rpartition('/')[0]}/camera_info"
    return sibling if sibling in topics else _only(topics, "camera_info", "--camera-info", topics)


def _pose_topic(reader: AnyReader, named: str, needed: bool) -> str:
    """Empty where there is no obvious one and none is needed."""
    if named:
        return _named(reader, named, _POSES)
    topics = {c.topic for c in reader.connections if c.msgtype in _POSES}
    # Odometry drifts, and what a localizer said is no truth: these are used only where they are named.
    localizers = {c.topic.removesuffix("/mapping_status") for c in reader.connections
                  if c.topic.endswith("/mapping_status")}
    candidates = {c.topic for c in reader.connections if c.msgtype in _POSES[:2] and c.topic != "/initialpose"
                  and c.topic.removesuffix("/pose") not in localizers}
    if len(candidates) != 1 and not needed:
        return ""
    return _only(candidates, "poses", "--pose-topic (or --tf MAP CAMERA)", topics)


def _child(reader: AnyReader, pose_topic: str) -> str:
    """The frame whose pose odometry gives, by its first message; empty for other types."""
    connections = [c for c in reader.connections if c.topic == pose_topic and c.msgtype == _ODOMETRY]
    for connection, _, data in reader.messages(connections) if connections else ():
        message: Any = reader.deserialize(data, connection.msgtype)
        return message.child_frame_id.lstrip("/")
    return ""


def _take_pose(tree: TransformTree, message: Any) -> None:
    pose = message.pose if hasattr(message.pose, "position") else message.pose.pose
    _add(tree, _WORLD, _POSED, _stamp(message.header), pose.position, pose.orientation)


def _take_transforms(tree: TransformTree, message: Any, static: bool) -> None:
    for stamped in message.transforms:
        _add(tree, stamped.header.frame_id.lstrip("/"), stamped.child_frame_id.lstrip("/"), _stamp(stamped.header),
             stamped.transform.translation, stamped.transform.rotation, static)


def _add(tree: TransformTree, parent: str, child: str, stamp_ns: int, position: Any, quaternion: Any,
         static: bool = False) -> None:
    p, q = position, quaternion
    try:
        pose = pose_from_quaternion(np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w]))
    except ValueError:          # no rotation: as if it had not been recorded
        return
    if np.isfinite(pose).all():
        tree.add(parent, child, stamp_ns, pose, static)


def _camera(info: Any, rectified: bool) -> Camera | None:
    try:
        return camera_from_info(info, rectified)
    except UserError:
        return None


def _named(reader: AnyReader, topic: str, types: tuple[str, ...]) -> str:
    found = {c.topic: c.msgtype for c in reader.connections}
    if topic not in found:
        raise UserError(f"The bag has no topic {topic}: it has {', '.join(sorted(found)) or 'none'}.")
    if found[topic] not in types:
        raise UserError(f"The topic {topic} is of type {found[topic]}, not {' or '.join(types)}.")
    return topic


def _only(candidates: set[str], what: str, option: str, all_topics: set[str]) -> str:
    if len(candidates) == 1:
        return candidates.pop()
    found = ", ".join(sorted(all_topics)) or "none"
    raise UserError(f"{'No' if not candidates else 'More than one'} topic of {what} in the bag: name it with {option}."
                    f" Topics of that kind: {found}.")


def _stamp(header: Any) -> int:
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec
