# SPDX-License-Identifier: Apache-2.0
"""Writes frames into ROS bags of every kind that the reader knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from aceg_ros.camera import Frame
from aceg_ros.geometry import invert, rotation_to_quaternion

BASE_FROM_CAMERA = np.array([[0.0, 0, 1, 0.1], [-1, 0, 0, 0], [0, -1, 0, 0.3], [0, 0, 0, 1]])


@dataclass(frozen=True)
class BagStyle:
    """poses: pose, pose_with_covariance, odometry or tf, sampled `pose_offset_s` beside the images."""

    storage: str = "mcap"               # mcap, sqlite3, ros1
    store: Stores = Stores.ROS2_HUMBLE
    compressed: bool = False
    encoding: str = "rgb8"
    poses: str = "pose"
    pose_offset_s: float = 0.0
    first_s: float = 1_700_000_000.0
    image_first: bool = False         # before the transforms and its own pose
    compression: str = ""               # FILE or MESSAGE
    chunk_each: bool = False            # of mcap: a chunk for each message
    camera: str = "/camera"             # namespace of images and camera_info
    tf: str = "/tf"
    stamped: bool = True                # false: stamps of images are zero
    camera_info: Callable[[Any], Any] = lambda message: message         # changes made to it
    extra: Callable[[Any], Iterable[tuple[str, int, Any]]] = lambda messages: ()     # topic, stamp and message


def write_bag(path: Path, frames: Iterable[Frame], style: BagStyle | None = None) -> Path:
    style = style or BagStyle()
    typestore = get_typestore(Stores.ROS1_NOETIC if style.storage == "ros1" else style.store)
    if style.storage == "ros1":         # rosbags' Noetic lacks it; bags bring their own definitions
        typestore.register(get_types_from_msg("geometry_msgs/TransformStamped[] transforms", "tf2_msgs/msg/TFMessage"))
    messages = Messages(typestore, style)
    if style.storage == "ros1":
        writer = Writer1(path)
    else:
        storage = StoragePlugin.MCAP if style.storage == "mcap" else StoragePlugin.SQLITE3
        writer = Writer(path, version=8, storage_plugin=storage)
        if style.compression:
            writer.set_compression(CompressionMode[style.compression], CompressionFormat.ZSTD)
    connections = {}
    with writer:
        for topic, stamp_ns, message in [*messages.all(frames), *style.extra(messages)]:
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=typestore)
            data = typestore.serialize_ros1(message, kind) if style.storage == "ros1" else \
                typestore.serialize_cdr(message, kind)
            writer.write(connections[topic], stamp_ns, bytes(data))
            if style.chunk_each:
                writer.storage.close_chunk()
    return path


class Messages:
    def __init__(self, typestore, style: BagStyle) -> None:
        self.typestore, self._types, self._style = typestore, typestore.types, style
        self._sequence = {"seq": 0} if style.storage == "ros1" else {}

    def header(self, stamp_ns: int, frame: str):
        stamp = self._types["builtin_interfaces/msg/Time"](stamp_ns // 10**9, stamp_ns % 10**9)
        return self._types["std_msgs/msg/Header"](**self._sequence, stamp=stamp, frame_id=frame)

    def pose(self, matrix):
        x, y, z = matrix[:3, 3]
        return self._types["geometry_msgs/msg/Pose"](
            self._types["geometry_msgs/msg/Point"](x, y, z),
            self._types["geometry_msgs/msg/Quaternion"](*rotation_to_quaternion(matrix[:3, :3])))

    def transform(self, stamp_ns, parent, child, matrix):
        x, y, z = matrix[:3, 3]
        return self._types["tf2_msgs/msg/TFMessage"]([self._types["geometry_msgs/msg/TransformStamped"](
            self.header(stamp_ns, parent), child, self._types["geometry_msgs/msg/Transform"](
                self._types["geometry_msgs/msg/Vector3"](x, y, z),
                self._types["geometry_msgs/msg/Quaternion"](*rotation_to_quaternion(matrix[:3, :3]))))])

    def all(self, frames):
        style = self._style
        first_ns = int(style.first_s) * 10**9
        if style.image_first:
            frames = list(frames)
            first_image = first_ns + round(frames[0].stamp_s * 1e9)
            yield self.image(frames[0].image, first_image)
            yield self.pose_topic(first_image, frames[0].map_from_camera)
            yield self.camera_info(frames[0].camera, first_image)
            frames = frames[1:]
        static_ns = first_ns + 10**9 * style.image_first
        yield f"{style.tf}_static", static_ns, self.transform(first_ns, "base_link", "cam", BASE_FROM_CAMERA)
        for frame in frames:
            stamp_ns = first_ns + round(frame.stamp_s * 1e9)
            if frame.map_from_camera is not None:
                pose_ns = stamp_ns + round(style.pose_offset_s * 1e9)
                yield self.pose_topic(pose_ns, frame.map_from_camera)
            yield self.camera_info(frame.camera, stamp_ns)
            yield self.image(frame.image, stamp_ns)

    def pose_topic(self, stamp_ns, map_from_camera):
        header, base = self.header(stamp_ns, "map"), map_from_camera @ invert(BASE_FROM_CAMERA)
        kind = self._style.poses
        covariance = np.zeros(36)
        if kind == "tf":
            parent = "/map" if self._sequence else "map"
            return self._style.tf, stamp_ns, self.transform(stamp_ns, parent, "base_link", base)
        if kind == "pose":
            message = self._types["geometry_msgs/msg/PoseStamped"](header, self.pose(map_from_camera))
        elif kind == "pose_with_covariance":
            message = self._types["geometry_msgs/msg/PoseWithCovarianceStamped"](
                header, self._types["geometry_msgs/msg/PoseWithCovariance"](self.pose(map_from_camera), covariance))
        else:
            zero = self._types["geometry_msgs/msg/Vector3"](0.0, 0.0, 0.0)
            message = self._types["nav_msgs/msg/Odometry"](
                header, "base_link", self._types["geometry_msgs/msg/PoseWithCovariance"](self.pose(base), covariance),
                self._types["geometry_msgs/msg/TwistWithCovariance"](
                    self._types["geometry_msgs/msg/Twist"](zero, zero), covariance))
        return "/truth", stamp_ns, message

    def camera_info(self, camera, stamp_ns):
        return f"{self._style.camera}/camera_info", stamp_ns, self._style.camera_info(self.info(camera, stamp_ns))

    def info(self, camera, stamp_ns):
        fields = {"k": camera.K.ravel(), "d": np.array(camera.distortion if camera.model != "pinhole" else [0.0] * 5),
                  "r": np.eye(3).ravel(), "p": np.hstack([camera.K, np.zeros((3, 1))]).ravel()}
        if self._sequence:
            fields = {name.upper(): value for name, value in fields.items()}
        roi = self._types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
        return self._types["sensor_msgs/msg/CameraInfo"](
            header=self.header(stamp_ns, "cam"), height=camera.height, width=camera.width,
            distortion_model="plumb_bob" if camera.model == "pinhole" else camera.model, binning_x=0, binning_y=0,
            roi=roi, **fields)

    def depth(self, depth_m, stamp_ns: int, frame: str = "cam"):
        """A depth image in millimetres."""
        pixels = np.round(depth_m * 1000).astype(np.uint16)
        return self._types["sensor_msgs/msg/Image"](
            self.header(stamp_ns, frame), depth_m.shape[0], depth_m.shape[1], "16UC1", 0, pixels[0].nbytes,
            np.ascontiguousarray(pixels).view(np.uint8).ravel())

    def acceleration(self, value, stamp_ns: int, frame: str, unknown: float = 0.0):
        """An IMU's message without rotation. unknown: -1 says that there is no accelerometer."""
        vector, nothing = self._types["geometry_msgs/msg/Vector3"], np.zeros(9)
        covariance = np.full(9, unknown)
        return self._types["sensor_msgs/msg/Imu"](
            self.header(stamp_ns, frame), self._types["geometry_msgs/msg/Quaternion"](0.0, 0.0, 0.0, 1.0), nothing,
            vector(0.0, 0.0, 0.0), nothing, vector(*map(float, value)), covariance)

    def compressed(self, data: bytes, form: str, stamp_ns: int):
        return self._types["sensor_msgs/msg/CompressedImage"](self.header(stamp_ns, "cam"), form,
                                                              np.frombuffer(data, np.uint8))

    def image(self, rgb, stamp_ns):
        header = self.header(stamp_ns if self._style.stamped else 0, "cam")
        camera = self._style.camera
        if self._style.compressed:
            _, data = cv2.imencode(".png", rgb[..., ::-1])
            return f"{camera}/image/compressed", stamp_ns, self.compressed(data.tobytes(), "png", stamp_ns)
        pixels = {"rgb8": rgb, "bgr8": rgb[..., ::-1], "mono8": rgb[..., 1]}[self._style.encoding]
        return f"{camera}/image", stamp_ns, self._types["sensor_msgs/msg/Image"](
            header, rgb.shape[0], rgb.shape[1], self._style.encoding, 0, pixels[0].nbytes,
            np.ascontiguousarray(pixels).ravel())
