"""Chooses the topics of a bag: those named in the options, or the only ones of a suitable type."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection

from aceg_ros.datasets.bag.messages import frame_name
from aceg_ros.datasets.bag.options import BagOptions
from aceg_ros.errors import UserError

IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
CAMERA_INFOS = ("sensor_msgs/msg/CameraInfo",)
TRANSFORMS = ("tf2_msgs/msg/TFMessage", "tf/msg/tfMessage")
ODOMETRY = "nav_msgs/msg/Odometry"
STAMPED_POSES = ("geometry_msgs/msg/PoseStamped", "geometry_msgs/msg/PoseWithCovarianceStamped")
POSES = (*STAMPED_POSES, ODOMETRY)


@dataclass(frozen=True, kw_only=True)
class Topics:
    """The chosen topics. pose: empty if poses come from TF, or are neither recorded nor needed."""

    image: str
    camera_info: str
    pose: str

    def connections(self, reader: AnyReader) -> list[Connection]:
        """Return the connections of the bag to read: those of these topics, and all transforms."""
        chosen = (self.image, self.camera_info, self.pose)
        return [c for c in reader.connections if c.topic in chosen or c.msgtype in TRANSFORMS]


def choose_topics(reader: AnyReader, options: BagOptions) -> Topics:
    """Choose the topics. Raises UserError if a named one is missing or of another type, or if several would fit."""
    image = _image_topic(reader, options.image)
    camera_info = _camera_info_topic(reader, options.camera_info, image)
    pose = "" if options.tf is not None else _pose_topic(reader, options.pose_topic, options.posed)
    return Topics(image=image, camera_info=camera_info, pose=pose)


def odometry_child_frame(reader: AnyReader, pose_topic: str) -> str:
    """Return the child frame of the first odometry message; empty if the topic is not of that type."""
    connections = [c for c in reader.connections if c.topic == pose_topic and c.msgtype == ODOMETRY]
    for connection, _, data in reader.messages(connections) if connections else ():
        message: Any = reader.deserialize(data, connection.msgtype)
        return frame_name(message.child_frame_id)
    return ""


def _image_topic(reader: AnyReader, named: str) -> str:
    if named:
        return _checked(reader, named, IMAGES)
    topics = _topics_of(reader, IMAGES)
    # Prefer the raw image to its compressed copy, and leave out depth and images derived from it.
    candidates = {t for t in topics if not (t.endswith("/compressed") and t.removesuffix("/compressed") in topics)}
    candidates = {t for t in candidates if not any(word in t for word in ("depth", "debug", "overlay"))}
    return _only(candidates, "images", "--image", topics)


def _camera_info_topic(reader: AnyReader, named: str, image: str) -> str:
    if named:
        return _checked(reader, named, CAMERA_INFOS)
    topics = _topics_of(reader, CAMERA_INFOS)
    sibling = f"{image.removesuffix('/compressed').rpartition('/')[0]}/camera_info"
    return sibling if sibling in topics else _only(topics, "camera_info", "--camera-info", topics)


def _pose_topic(reader: AnyReader, named: str, needed: bool) -> str:
    if named:
        return _checked(reader, named, POSES)
    # Odometry drifts, and the output of a localizer is no ground truth: both are used only if they are named.
    localizers = {c.topic.removesuffix("/mapping_status") for c in reader.connections
                  if c.topic.endswith("/mapping_status")}
    candidates = {topic for topic in _topics_of(reader, STAMPED_POSES)
                  if topic != "/initialpose" and topic.removesuffix("/pose") not in localizers}
    if len(candidates) != 1 and not needed:
        return ""
    return _only(candidates, "poses", "--pose-topic (or --tf MAP CAMERA)", _topics_of(reader, POSES))


def _topics_of(reader: AnyReader, types: Collection[str]) -> set[str]:
    return {c.topic for c in reader.connections if c.msgtype in types}


def _checked(reader: AnyReader, topic: str, types: Sequence[str]) -> str:
    """Return a named topic. Raises UserError if the bag does not have it, or it is of another type."""
    found = {c.topic: c.msgtype for c in reader.connections}
    if topic not in found:
        raise UserError(f"The bag has no topic {topic}: it has {', '.join(sorted(found)) or 'none'}.")
    if found[topic] not in types:
        raise UserError(f"The topic {topic} is of type {found[topic]}, not {' or '.join(types)}.")
    return topic


def _only(candidates: set[str], what: str, option: str, all_topics: set[str]) -> str:
    if len(candidates) == 1:
        return next(iter(candidates))
    found = ", ".join(sorted(all_topics)) or "none"
    raise UserError(f"{'No' if not candidates else 'More than one'} topic of {what} in the bag: name it with {option}."
                    f" Topics of that kind: {found}.")
