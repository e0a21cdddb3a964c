# SPDX-License-Identifier: Apache-2.0
"""ROS bags: rosbag2 (mcap, sqlite3) and ROS 1, read without ROS.

Topics of images, cameras and poses are found by their types, or named in `BagOptions`. Poses are interpolated to the
stamps of the images; images without a pose are skipped. Poses and stamps are read at once, images one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets.bag.cameras import Cameras
from aceg_ros.datasets.bag.images import ImageStream
from aceg_ros.datasets.bag.messages import frame_name, stamp_ns
from aceg_ros.datasets.bag.options import BagOptions
from aceg_ros.datasets.bag.poses import Poses, TfPoses, TopicPoses, add_pose, add_transforms
from aceg_ros.datasets.bag.recording import DAMAGE, Recording
from aceg_ros.datasets.bag.topics import Topics, choose_topics, odometry_child_frame
from aceg_ros.datasets.bag.transform_tree import TransformTree
from aceg_ros.errors import UserError
from aceg_ros.utils.stamps import NS_PER_S, ns_to_s

_LOG = logging.getLogger("aceg_ros")
_LONGEST_S = 1e9        # stands for an infinite end


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """The header of an image. index: its number in the topic. problem: why its message is unusable, else empty."""

    index: int
    stamp_ns: int
    frame_id: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class BagEntry:
    """One image of a bag. camera: the camera, or a sentence that says why there is none."""

    header: ImageHeader
    images: ImageStream
    camera: Camera | str
    poses: Poses
    posed: bool

    @property
    def name(self) -> str:
        return f"{ns_to_s(self.header.stamp_ns):.6f}"

    def load(self) -> Frame:
        try:
            if self.header.problem:
                raise UserError(self.header.problem)
            if isinstance(self.camera, str):
                raise UserError(self.camera)
            pose = self._pose()
            image = self.images.image(self.header.index)
        except UserError as error:
            raise UserError(f"Image {self.name} of {self.images.path}: {error}") from None
        if image.shape[:2] != (self.camera.height, self.camera.width):
            raise UserError(f"Image {self.name} of {self.images.path} has {image.shape[1]}x{image.shape[0]} pixels,"
                            f" camera_info says {self.camera.width}x{self.camera.height}.")
        return Frame(image=image, camera=self.camera, stamp_s=ns_to_s(self.header.stamp_ns), map_from_camera=pose,
                     name=self.name)

    def _pose(self) -> np.ndarray | None:
        try:
            return self.poses.at(self.header.stamp_ns, self.header.frame_id)
        except UserError:
            if self.posed:
                raise
            return None


@dataclass(frozen=True, kw_only=True)
class NoStamps:
    """Stands for the poses of images that were recorded without stamps: none is known."""

    def at(self, stamp_ns: int, camera: str) -> np.ndarray:
        raise UserError("the stamps of all images are zero, so that no pose can be found for them: set header.stamp in"
                        " the camera's driver and record again.")


def read_messages(path: Path, topics: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield (topic, message) of these topics in the order of recording."""
    with Recording(path) as recording:
        connections = [connection for connection in recording.connections if connection.topic in topics]
        for connection, _, data in recording.messages(connections):
            yield connection.topic, recording.deserialize(connection, data)


def list_entries(path: Path, options: BagOptions | None = None) -> list[BagEntry]:
    """List the images in the order of recording. Raises UserError if the bag cannot be read."""
    options = options or BagOptions()
    try:
        with Recording(path) as recording:
            if not recording.connections and not recording.foreign:
                raise ValueError("it has no topics")
            topics = choose_topics(recording, options)
            tree, cameras = TransformTree(), Cameras(topics.camera_info, topics.rectified)
            headers = _read(recording, topics, options, (tree, cameras))
            poses = _poses(recording, topics, options, tree)
            cut_off = recording.cut_off
    except DAMAGE as error:
        raise UserError(f"The bag {path} cannot be read ({error}): if its recording was cut off or damaged, repair it"
                        " with `mcap recover` or `ros2 bag reindex`.") from None
    if len(headers) > 1 and not any(header.stamp_ns for header in headers):
        poses = NoStamps()
    if cut_off:
        _LOG.warning("The recording %s was not closed (%s): its recorder was killed, or the file was not copied to its"
                     " end. It is read as far as it goes: %d images.", path, ", ".join(cut_off), len(headers))
    images = ImageStream(path, topics.image)
    return [BagEntry(header=header, images=images, camera=cameras.at(header.stamp_ns), poses=poses, posed=options.posed)
            for header in headers]


def _read(recording: Recording, topics: Topics, options: BagOptions,
          into: tuple[TransformTree, Cameras]) -> list[ImageHeader]:
    """Read the headers of the images, and add what the other topics hold to the tree and the cameras."""
    tree, cameras = into
    headers: list[ImageHeader] = []
    first_ns, last_ns = _time_range(recording, options)
    count = 0
    for connection, recorded_ns, data in recording.messages(topics.connections(recording)):
        topic, message, problem = connection.topic, None, ""
        try:
            message = recording.deserialize(connection, data)
        except ValueError as error:
            problem = f"{error}."
        if topic == topics.image:
            if first_ns <= recorded_ns <= last_ns:
                headers.append(_header(count, recorded_ns, message, problem))
            count += 1
        elif topic == topics.camera_info:
            if message is None:
                cameras.add_damaged(recorded_ns, problem)
            else:
                cameras.add(stamp_ns(message), message)
        elif message is None:
            continue                    # a lost pose is a gap, which is told of the images in it
        elif topic == topics.pose:
            add_pose(tree, message)
        else:
            add_transforms(tree, message, static=topic.endswith("_static"))
    return headers


def _header(index: int, recorded_ns: int, message: Any, problem: str) -> ImageHeader:
    """Return the header of an image; for a damaged message, with the time of recording as the stamp."""
    if message is None:
        return ImageHeader(index=index, stamp_ns=recorded_ns, problem=problem)
    return ImageHeader(index=index, stamp_ns=stamp_ns(message), frame_id=frame_name(message.header.frame_id))


def _time_range(recording: Recording, options: BagOptions) -> tuple[int, int]:
    """Return the first and last recording time to read, in nanoseconds (as integers: a double is not exact)."""
    return (recording.start_ns + round(NS_PER_S * options.start_s),
            recording.start_ns + round(NS_PER_S * min(options.end_s, _LONGEST_S)))


def _poses(recording: Recording, topics: Topics, options: BagOptions, tree: TransformTree) -> Poses:
    if options.tf is not None:
        map_frame, camera_frame = (frame_name(name) for name in options.tf)
        others = ", ".join(topics.other_transforms)
        hint = (f" Read were the transforms of {' and '.join(topics.transforms) or 'no topic'}, not those of {others}:"
                " the option tf_topic names another.") if others else ""
        return TfPoses(tree=tree, map_frame=map_frame, camera_frame=camera_frame, hint=hint)
    child = frame_name(options.pose_of) or odometry_child_frame(recording, topics.pose)
    return TopicPoses(tree=tree, child=child)
