# SPDX-License-Identifier: Apache-2.0
"""Sources of the camera poses while mapping: TF, a pose topic, or localization itself."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped, TransformStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_msgs.msg import Header
from tf2_ros import Buffer

from aceg_ros.errors import UserError
from aceg_ros.ros.common.messages import pose_to_transform
from aceg_ros.ros.common.topic_watch import TopicWatch
from aceg_ros.ros.common.transform_lookup import TransformLookup, normalize_frame_id, wait_for_transform
from aceg_ros.utils.stamps import stamp_to_ns

LOCALIZATION = "localization"
SOURCES = ("tf", "pose", "pose_with_covariance", "odometry", LOCALIZATION)
_KEPT_RESULTS = 256
_TYPES = {"pose": PoseStamped, "pose_with_covariance": PoseWithCovarianceStamped, "odometry": Odometry}


class PoseSource(Protocol):
    def lookup(self, stamp: Time, camera_frame: str, timeout_s: float) -> np.ndarray:
        """Return map_from_camera (4, 4) at the stamp. Waits, so it must not be called from the executor.

        Raises:
            UserError: if it is not known within timeout_s.
        """

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class TfPoses:
    transforms: TransformLookup
    map_frame: str

    def lookup(self, stamp: Time, camera_frame: str, timeout_s: float) -> np.ndarray:
        return self.transforms.lookup(self.map_frame, camera_frame, stamp, timeout_s)

    def close(self) -> None: ...


class TopicPoses:
    """Interpolated poses of `child_frame` from a topic. Empty: of the camera, or the child frame of odometry."""

    def __init__(self, node: Node, transforms: TransformLookup, kind: str, *, map_frame: str,
                 child_frame: str) -> None:
        self._node, self._transforms, self._child = node, transforms, normalize_frame_id(child_frame)
        self._map_frame = normalize_frame_id(map_frame)
        self._buffer = Buffer()
        self._parent = ""
        self._topic = TopicWatch(node, _TYPES[kind], "mapping_pose")
        self._subscription = node.create_subscription(
            _TYPES[kind], "mapping_pose", self._pose_received, QoSProfile(depth=50),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            event_callbacks=self._topic.event_callbacks())

    def lookup(self, stamp: Time, camera_frame: str, timeout_s: float) -> np.ndarray:
        try:
            map_from_child = wait_for_transform(self._buffer, self._parent or "mapping_pose", "posed", stamp=stamp,
                                                timeout_s=timeout_s)
        except UserError as error:
            if self._parent:
                raise UserError(f"There is no pose on {self._topic.topic} at the image's stamp: {error}") from None
            raise UserError(f"No pose has been received on {self._topic.topic}:"
                            f" {self._topic.explain_silence()}") from None
        if self._child in ("", camera_frame):
            return map_from_child
        return map_from_child @ self._transforms.lookup(self._child, camera_frame, stamp, timeout_s)

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)

    def _pose_received(self, message: PoseStamped | PoseWithCovarianceStamped | Odometry) -> None:
        if isinstance(message, Odometry):
            self._child = normalize_frame_id(message.child_frame_id)
        pose = message.pose if isinstance(message, PoseStamped) else message.pose.pose
        parent = normalize_frame_id(message.header.frame_id) or "mapping_pose"
        if parent != self._parent:
            self._check_frame(normalize_frame_id(message.header.frame_id))
        self._parent = parent
        header = Header(stamp=message.header.stamp, frame_id=self._parent)
        transform: TransformStamped = pose_to_transform(pose, header, "posed")
        self._buffer.set_transform(transform, "mapping_pose")


    def _check_frame(self, frame: str) -> None:
        """Say so if the map will not have the axes of map_frame."""
        if frame != self._map_frame:
            said = f"in the frame '{frame}'" if frame else "without a frame_id"
            self._node.get_logger().warning(
                f"The poses on {self._topic.topic} are {said}, and map_frame is '{self._map_frame}': the map gets the"
                " axes of the poses. If they are others than those of map_frame, remap mapping_pose to a topic of poses"
                f" in '{self._map_frame}', or set map_frame to the frame of the poses.")


class LocalizedPoses:
    """Poses that this node estimated itself, of the very images that become keyframes: by stamp and frame of the
    camera, since the cameras of a rig may have the same stamp."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._poses: OrderedDict[tuple[int, str], np.ndarray | None] = OrderedDict()        # None: not localized

    def note(self, poses: Mapping[tuple[int, str], np.ndarray | None]) -> None:
        """Keep map_from_camera (4, 4) of the images of one moment, by stamp in ns and frame of the camera, or None for
        an image that has none. Moments come in their order."""
        with self._changed:
            self._poses.update(poses)
            while len(self._poses) > _KEPT_RESULTS:
                self._poses.popitem(last=False)
            self._changed.notify_all()

    def lookup(self, stamp: Time, camera_frame: str, timeout_s: float) -> np.ndarray:
        image = stamp_to_ns(stamp), camera_frame
        with self._changed:
            self._changed.wait_for(lambda: image in self._poses or any(other[0] > image[0] for other in self._poses),
                                   timeout_s)
            pose = self._poses.get(image)
        if pose is None:
            raise UserError("The image was not localized in the map in use, so its pose is not known.")
        return pose

    def close(self) -> None: ...


def make_pose_source(node: Node, transforms: TransformLookup, kind: str, *, map_frame: str,
                     child_frame: str) -> PoseSource:
    """Make the source of this kind, one of SOURCES."""
    if kind == LOCALIZATION:
        return LocalizedPoses()
    if kind == "tf":
        return TfPoses(transforms=transforms, map_frame=normalize_frame_id(map_frame))
    return TopicPoses(node, transforms, kind, map_frame=map_frame, child_frame=child_frame)
