# SPDX-License-Identifier: Apache-2.0
"""The direction of gravity that the accelerometer of a bag tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aceg_ros.datasets.bag.messages import frame_name, stamp_ns
from aceg_ros.datasets.bag.poses import add_transforms
from aceg_ros.datasets.bag.reader import list_entries
from aceg_ros.datasets.bag.recording import Recording
from aceg_ros.datasets.bag.topics import TRANSFORMS
from aceg_ros.datasets.bag.transform_tree import TransformTree
from aceg_ros.errors import UserError
from aceg_ros.reconstruction.bag_depth import nearest
from aceg_ros.reconstruction.sources import ImageSource
from aceg_ros.reconstruction.structure import Structure
from aceg_ros.utils.stamps import NS_PER_S, s_to_ns

IMU = "sensor_msgs/msg/Imu"
WINDOW_S = 0.15                     # around the stamp of an image, over which accelerations are averaged
MIN_IMAGES = 3
MAX_SPREAD_DEG = 15.0               # beyond which the accelerations are those of motion
GRAVITY = (7.0, 12.5)               # m/s^2, between which the length of a measured gravity lies
BY_IMAGES = "z is up as the images are held on average"


@dataclass(frozen=True, kw_only=True)
class Up:
    """The direction (3,) in the frame of a structure, None for that of the images; a sentence that says where it is
    from; and one that warns, or an empty one."""

    direction: np.ndarray | None = None
    sentence: str = BY_IMAGES
    warning: str = ""


@dataclass(frozen=True, kw_only=True)
class _Accelerations:
    """What one topic tells. frame: of the sensor. stamps_ns: (N,), sorted. values: (N, 3), m/s^2."""

    topic: str
    frame: str = ""
    stamps_ns: list[int] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)


def find_up(structure: Structure, bag: ImageSource | None, stamps: Mapping[str, float], topic: str = "") -> Up:
    """Find which way is up in a structure: at rest, an accelerometer measures the acceleration that holds it up.

    The mean around the stamp of each image is turned into the structure's frame by TF and the pose of the image; the
    direction is the median of these, so that short motions count little.

    Args:
        structure: the posed images.
        bag: the bag that they are from, None if they are from none.
        stamps: stamp of each image by name, seconds.
        topic: of sensor_msgs/Imu; empty: that with the most accelerations.

    Raises:
        UserError: a topic was named, and the bag has no accelerations there.
    """
    if bag is None:
        if topic:
            raise UserError("An IMU tells up in bags only.")
        return Up()
    measured, tree = _read(bag.path, topic, "" if bag.bag_options is None else bag.bag_options.tf_topic)
    if measured is None:
        return Up()
    try:
        ups = _ups(structure, measured, tree, bag=bag, stamps=stamps)
    except UserError as error:
        return Up(warning=f"The accelerations on {measured.topic} do not tell up: {error}")
    if len(ups) < MIN_IMAGES:
        return Up(warning=f"The accelerations on {measured.topic} do not tell up: {len(ups)} images have some at their"
                          " stamps.")
    length = float(np.median(np.linalg.norm(ups, axis=1)))
    directions = ups / np.linalg.norm(ups, axis=1, keepdims=True)
    middle = np.median(directions, axis=0)
    middle = middle / np.linalg.norm(middle)
    spread = float(np.degrees(np.median(np.arccos(np.clip(directions @ middle, -1.0, 1.0)))))
    if not GRAVITY[0] <= length <= GRAVITY[1]:
        return Up(warning=f"The accelerations on {measured.topic} do not tell up: they are {length:.1f} m/s^2 long, as"
                          " if gravity had been taken out.")
    if spread > MAX_SPREAD_DEG:
        return Up(warning=f"The accelerations on {measured.topic} do not tell up: their directions differ by"
                          f" {spread:.0f} deg between images, more than motion explains. Is the IMU in TF as it is"
                          " mounted?")
    return Up(direction=middle, sentence=f"z is up by {measured.topic}, within {spread:.1f} deg")


def _read(path: Path, topic: str, tf_topic: str) -> tuple[_Accelerations | None, TransformTree]:
    """Read the accelerations of the named topic, or of that with the most, and the transforms."""
    tree, found = TransformTree(), dict[str, _Accelerations]()
    with Recording(path) as recording:
        chosen = [each for each in recording.connections if (each.msgtype == IMU and topic in ("", each.topic)) or (
            each.msgtype in TRANSFORMS and tf_topic.removesuffix("_static") in (
                "", each.topic.removesuffix("_static")))]
        for connection, _, data in recording.messages(chosen):
            try:
                message = recording.deserialize(connection, data)
            except ValueError:
                continue
            if connection.msgtype != IMU:
                add_transforms(tree, message, static=connection.topic.endswith("_static"))
                continue
            value = message.linear_acceleration
            vector = np.array([value.x, value.y, value.z], float)
            # -1 says that there is no accelerometer; drivers of gyroscopes alone leave zeros.
            if message.linear_acceleration_covariance[0] != -1 and np.isfinite(vector).all() and vector.any():
                each = found.setdefault(connection.topic, _Accelerations(
                    topic=connection.topic, frame=frame_name(message.header.frame_id)))
                each.stamps_ns.append(stamp_ns(message))
                each.values.append(vector)
    if topic and not found:
        raise UserError(f"The bag has no accelerations on {topic}, the topic of an IMU.")
    most = max(found.values(), key=lambda each: len(each.values), default=None)
    if most is None:
        return None, tree
    order = np.argsort(most.stamps_ns, kind="stable")
    return _Accelerations(topic=most.topic, frame=most.frame, stamps_ns=[most.stamps_ns[index] for index in order],
                          values=[most.values[index] for index in order]), tree


def _ups(structure: Structure, measured: _Accelerations, tree: TransformTree, *, bag: ImageSource,
         stamps: Mapping[str, float]) -> np.ndarray:
    """Return the mean acceleration (N, 3) around each image that has some, in the frame of the structure. Raises
    UserError if TF does not lead from the IMU to the camera."""
    entries = sorted(list_entries(bag.path, bag.bag_options), key=lambda entry: entry.header.stamp_ns)
    entry_ns = [entry.header.stamp_ns for entry in entries]
    times_ns, values = np.array(measured.stamps_ns), np.array(measured.values)
    ups = []
    for name, pose in structure.poses.items():
        stamp = s_to_ns(stamps[name])
        around = np.abs(times_ns - stamp) <= WINDOW_S * NS_PER_S
        if around.any():
            camera = entries[nearest(entry_ns, stamp)].header.frame_id
            camera_from_imu = np.eye(4) if camera == measured.frame else tree.lookup(camera, measured.frame, stamp)
            ups.append(pose[:3, :3] @ camera_from_imu[:3, :3] @ values[around].mean(0))
    return np.array(ups).reshape(-1, 3)
