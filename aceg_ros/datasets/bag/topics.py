# SPDX-License-Identifier: Apache-2.0
"""Chooses the topics of a bag: those named in the options, or the only ones of a suitable type."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from aceg_ros.datasets.bag.messages import frame_name
from aceg_ros.datasets.bag.options import BagOptions
from aceg_ros.datasets.bag.recording import Recording
from aceg_ros.datasets.bag.storage import Connection
from aceg_ros.datasets.camera_info import is_rectified_topic
from aceg_ros.datasets.image_decoder import REPUBLISH
from aceg_ros.errors import UserError

IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
CAMERA_INFOS = ("sensor_msgs/msg/CameraInfo",)
TRANSFORMS = ("tf2_msgs/msg/TFMessage", "tf/msg/tfMessage")
ODOMETRY = "nav_msgs/msg/Odometry"
STAMPED_POSES = ("geometry_msgs/msg/PoseStamped", "geometry_msgs/msg/PoseWithCovarianceStamped")
POSES = (*STAMPED_POSES, ODOMETRY)

_VIDEO_WORDS = ("ffmpeg", "theora", "video", "h264", "h265", "hevc")
# Names of the copies that image_transport publishes; of these, only compressed is read.
_TRANSPORTS = ("compressed", "compressedDepth", "zstd", "theora", "ffmpeg", "draco")


@dataclass(frozen=True, kw_only=True)
class Topics:
    """The chosen topics.

    pose: empty if poses come from TF, or are neither recorded nor needed. transforms: empty if none are needed.
    other_transforms: topics of transforms that are not read. rectified: see `CameraInfoFields.camera`.
    """

    image: str
    camera_info: str
    pose: str
    transforms: tuple[str, ...]
    other_transforms: tuple[str, ...]
    rectified: bool | None

    def connections(self, recording: Recording) -> list[Connection]:
        """Return the connections of the bag to read: those of these topics."""
        chosen = (self.image, self.camera_info, self.pose, *self.transforms)
        return [connection for connection in recording.connections if connection.topic in chosen]


def choose_topics(recording: Recording, options: BagOptions) -> Topics:
    """Choose the topics. Raises UserError if a named one is missing or of another type, or if several would fit."""
    image = _image_topic(recording, options.image)
    camera_info = _camera_info_topic(recording, options.camera_info, image)
    pose = "" if options.tf is not None else _pose_topic(recording, options.pose_topic, options.posed)
    is_odometry = any(c.topic == pose and c.msgtype == ODOMETRY for c in recording.connections)
    all_transforms = _topics_of(recording, TRANSFORMS)
    transforms: tuple[str, ...] = ()
    if options.tf_topic:
        transforms = _named_transforms(_checked(recording, options.tf_topic, TRANSFORMS), all_transforms)
    elif options.tf is not None or options.pose_of or is_odometry:
        transforms = _nearest_transforms(image, all_transforms)
    rectified = options.rectified
    if rectified is None and is_rectified_topic(image):
        rectified = True
    return Topics(image=image, camera_info=camera_info, pose=pose, transforms=transforms, rectified=rectified,
                  other_transforms=tuple(sorted(all_transforms - set(transforms))))


def odometry_child_frame(recording: Recording, pose_topic: str) -> str:
    """Return the child frame of the first odometry message; empty if the topic is not of that type."""
    connections = [c for c in recording.connections if c.topic == pose_topic and c.msgtype == ODOMETRY]
    for connection, _, data in recording.messages(connections) if connections else ():
        return frame_name(recording.deserialize(connection, data).child_frame_id)
    return ""


def _image_topic(recording: Recording, named: str) -> str:
    if named:
        return _checked(recording, named, IMAGES)
    topics = _topics_of(recording, IMAGES)
    # Prefer the raw image to its copies by image_transport, and leave out depth and images derived from it.
    candidates = {t for t in topics if not any(t.endswith(f"/{transport}") and t.removesuffix(f"/{transport}") in topics
                                               for transport in _TRANSPORTS)}
    candidates = {t for t in candidates if not any(word in t.lower() for word in ("depth", "debug", "overlay"))}
    videos = sorted(c.topic for c in recording.connections if is_video(c.msgtype))
    if not candidates and videos:
        raise UserError(_video_sentence(recording, videos[0]))
    if not topics and recording.foreign:
        foreign = ", ".join(f"{topic} ({kind})" for topic, kind in sorted(recording.foreign.items())[:5])
        raise UserError(f"No topic of images in the bag. Not of ROS messages, and not read: {foreign}.")
    return _only(candidates, "images", "image", topics)


def _camera_info_topic(recording: Recording, named: str, image: str) -> str:
    if named:
        return _checked(recording, named, CAMERA_INFOS)
    topics = _topics_of(recording, CAMERA_INFOS)
    sibling = f"{image.removesuffix('/compressed').rpartition('/')[0]}/camera_info"
    return sibling if sibling in topics else _only(topics, "camera_info", "camera_info", topics)


def _pose_topic(recording: Recording, named: str, needed: bool) -> str:
    if named:
        return _checked(recording, named, POSES)
    # Odometry drifts, and the output of a localizer is no ground truth: both are used only if they are named.
    localizers = {c.topic.removesuffix("/mapping_status") for c in recording.connections
                  if c.topic.endswith("/mapping_status")}
    candidates = {topic for topic in _topics_of(recording, STAMPED_POSES)
                  if topic != "/initialpose" and topic.removesuffix("/pose") not in localizers}
    if len(candidates) != 1 and not needed:
        return ""
    return _only(candidates, "poses", "pose_topic (or frames by the option tf)", _topics_of(recording, POSES))


def _named_transforms(topic: str, all_transforms: set[str]) -> tuple[str, ...]:
    """Return a topic of transforms and the topic of the static transforms that belong to it."""
    if topic.endswith("_static"):
        return (topic,)
    beside = f"{topic}_static"
    static = beside if beside in all_transforms else _nearest(topic, "tf_static", all_transforms)
    return (topic, static) if static else (topic,)


def _nearest_transforms(image: str, all_transforms: set[str]) -> tuple[str, ...]:
    """Return the topics of transforms in the namespace of the images, or in the nearest enclosing one.

    Several robots in one bag have a tree each. Raises UserError if none of several topics is in such a namespace.
    """
    moving = {topic for topic in all_transforms if not topic.endswith("_static")}
    chosen = _nearest(image, "tf", moving)
    if not chosen and len(moving) > 1:
        raise UserError(f"The bag has more than one topic of transforms, none of them in the namespace of {image}: name"
                        f" one by the option tf_topic. Topics of that kind: {', '.join(sorted(moving))}.")
    chosen = chosen or next(iter(moving), "")
    if chosen:
        return _named_transforms(chosen, all_transforms)
    static = _nearest(image, "tf_static", all_transforms)
    return (static,) if static else tuple(sorted(all_transforms)[:1]) if len(all_transforms) == 1 else ()


def _nearest(topic: str, name: str, topics: Collection[str]) -> str:
    """Return the topic of this name in a topic's namespace or the nearest enclosing one; empty if there is none."""
    return next((f"{namespace}/{name}" for namespace in _namespaces(topic) if f"{namespace}/{name}" in topics), "")


def _namespaces(topic: str) -> Iterator[str]:
    """Yield the enclosing namespaces: /a/b, /a and the empty name for /a/b/c."""
    while topic:
        topic = topic.rpartition("/")[0]
        yield topic


def _topics_of(recording: Recording, types: Collection[str]) -> set[str]:
    return {c.topic for c in recording.connections if c.msgtype in types}


def is_video(msgtype: str) -> bool:
    """Return whether messages of a type are parts of a video stream, which is not supported."""
    return msgtype not in IMAGES and any(word in msgtype.lower() for word in _VIDEO_WORDS)


def _video_sentence(recording: Recording, topic: str) -> str:
    msgtype = next(c.msgtype for c in recording.connections if c.topic == topic)
    return f"The topic {topic} is of type {msgtype}, a video stream, which is not read: {REPUBLISH} in a new recording."


def _checked(recording: Recording, topic: str, types: Sequence[str]) -> str:
    """Return a named topic. Raises UserError if the bag does not have it, or it is of another type."""
    found = {c.topic: c.msgtype for c in recording.connections}
    if topic in recording.foreign:
        raise UserError(f"The topic {topic} holds no ROS messages, but {recording.foreign[topic]}.")
    if topic not in found:
        raise UserError(f"The bag has no topic {topic}: it has {', '.join(sorted(found)) or 'none'}.")
    if types == IMAGES and is_video(found[topic]):
        raise UserError(_video_sentence(recording, topic))
    if found[topic] not in types:
        raise UserError(f"The topic {topic} is of type {found[topic]}, not {' or '.join(types)}.")
    return topic


def _only(candidates: set[str], what: str, option: str, all_topics: set[str]) -> str:
    if len(candidates) == 1:
        return next(iter(candidates))
    found = ", ".join(sorted(all_topics)) or "none"
    raise UserError(f"{'No' if not candidates else 'More than one'} topic of {what} in the bag: name it by the option"
                    f" {option}. Topics of that kind: {found}.")
