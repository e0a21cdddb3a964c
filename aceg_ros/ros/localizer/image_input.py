# SPDX-License-Identifier: Apache-2.0
"""Receive images and camera_infos, and pair them into requests."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from aceg_ros.datasets.camera_info import is_rectified_topic
from aceg_ros.ros.common.parameters import ParameterGroup
from aceg_ros.ros.common.topic_watch import TopicWatch
from aceg_ros.ros.localizer.parameters import ImageParameters
from aceg_ros.ros.localizer.results import LocalizationRequest

SILENCE_S = 10.0        # without an image: they have stopped
_INFOS = 16             # that are kept, to find the one of an image
_OVERRIDABLE = (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY)
_COMPRESSED = "/compressed"


class RateLimit:
    """Tells which images are due. rate(): their highest rate in Hz, 0 for no limit."""

    def __init__(self, rate: Callable[[], float]) -> None:
        self._rate, self._next_due_s = rate, 0.0

    def is_due(self) -> bool:
        rate = self._rate()
        if not rate:
            return True
        now, period_s = time.monotonic(), 1.0 / rate
        if now < self._next_due_s:
            return False
        # Relative to when this one was due, so that the mean rate is the limit; relative to now after a pause.
        self._next_due_s = max(self._next_due_s + period_s, now)
        return True


class ImageInput:
    """Between start() and stop(), calls on_image(request, is_due) for each image; is_due is False beyond max_rate.

    prefix: of the topics, such as front/ for the camera front of a rig.

    Between prepare() and release(), it keeps camera_infos: some drivers publish theirs once, when they start.

    QoS: the newest image, best effort; camera_info best effort, and latched if its publisher latches it. History,
    depth, reliability and durability can be overridden by parameters (qos_overrides....).

    Attributes:
        received: Number of images that came.
    """

    def __init__(self, node: Node, on_image: Callable[[LocalizationRequest, bool], None],
                 parameters: ParameterGroup[ImageParameters], prefix: str = "") -> None:
        self._node, self._on_image, self._parameters = node, on_image, parameters
        self._info_topic = f"{prefix}camera_info"
        self._is_compressed = self._parameters.value.image_transport == "compressed"
        self._base_topic = node.resolve_topic_name(f"{prefix}image")
        self._image_type: type = CompressedImage if self._is_compressed else Image
        self._image_topic = self._base_topic + (_COMPRESSED if self._is_compressed else "")
        self.images = TopicWatch(node, self._image_type, self._image_topic)
        self.camera_info = TopicWatch(node, CameraInfo, self._info_topic)
        self._info_subscriptions: list[Subscription] = []
        self._subscriptions: list[Subscription] = []
        self._camera_infos: deque[CameraInfo] = deque(maxlen=_INFOS)
        self._rate = RateLimit(lambda: parameters.value.max_rate)
        self.received = 0
        self._last_image_s = -float("inf")
        self._is_rectified_by_name = is_rectified_topic(self.images.topic)

    def prepare(self) -> None:
        """Listen to camera_info, before the images: of two messages that wait, the older subscription's is taken."""
        if not self._info_subscriptions:
            self._info_subscriptions.append(self._node.create_subscription(
                CameraInfo, self._info_topic, self._camera_info_received,
                QoSProfile(depth=_INFOS, reliability=ReliabilityPolicy.BEST_EFFORT),
                qos_overriding_options=QoSOverridingOptions(_OVERRIDABLE),
                event_callbacks=self.camera_info.event_callbacks()))

    def start(self) -> None:
        self.prepare()
        if self._is_rectified_by_name and not self._parameters.value.image_rectified:
            self._node.get_logger().info(
                f"{self.images.topic} looks rectified by its name, as image_proc's images are: their camera is taken"
                f" from P of {self.camera_info.topic}.")
        self._subscriptions.append(self._node.create_subscription(
            self._image_type, self._image_topic, self._image_received,
            QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT),
            qos_overriding_options=QoSOverridingOptions(_OVERRIDABLE), event_callbacks=self.images.event_callbacks()))
        self._last_image_s = -float("inf")

    def stop(self) -> None:
        self._destroy(self._subscriptions)

    def release(self) -> None:
        """Stop, and drop the camera_infos."""
        self.stop()
        self._destroy(self._info_subscriptions)
        self._camera_infos.clear()

    def look_for_latched_camera_info(self) -> None:
        """Ask for the camera_info that was published before this node was there, if its publisher keeps it."""
        if self._camera_infos or len(self._info_subscriptions) != 1:
            return
        # Only then: a volatile publisher would be told that its QoS does not go with this subscription's.
        publishers = self._node.get_publishers_info_by_topic(self.camera_info.topic)
        if any(publisher.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for publisher in publishers):
            self._info_subscriptions.append(self._node.create_subscription(
                CameraInfo, self._info_topic, self._camera_info_received,
                QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)))

    # --- what is missing ---

    def missing_camera_info(self) -> str:
        """Return the sentence that says so if no camera_info has come yet, else an empty string."""
        if self._camera_infos:
            return ""
        return f"No camera_info has been received on {self.camera_info.topic}: {self.camera_info.explain_silence()}"

    def missing_images(self) -> str:
        """Return the sentence that says so if no image has come for a while, else an empty string."""
        silence_s = time.monotonic() - self._last_image_s
        if silence_s < SILENCE_S:
            return ""
        never = silence_s == float("inf")
        return (f"No image has been received on {self.images.topic} {'yet' if never else f'for {silence_s:.0f} s'}:"
                f" {self.explain_silence()}")

    def explain_silence(self) -> str:
        """Return the sentence that says why no images come."""
        base = self._base_topic
        plain = base.removesuffix(_COMPRESSED)
        if self._is_compressed and plain != base:
            return (f"image_transport compressed adds {_COMPRESSED} to the topic by itself: remap image to {plain}.")
        if self._is_compressed and self.images.has_publisher(base, "sensor_msgs/msg/Image") and not \
                self.images.has_publisher(self.images.topic, self.images.type_name):
            return f"only {base} is published: set image_transport to raw."
        compressed_type = "sensor_msgs/msg/CompressedImage"
        if not self._is_compressed and self.images.has_publisher(base, compressed_type):
            return f"its images are compressed: set image_transport to compressed, and remap image to {plain}."
        if not self._is_compressed and not self.images.has_publisher(base, self.images.type_name) and \
                self.images.has_publisher(base + _COMPRESSED, compressed_type):
            return f"only {base}{_COMPRESSED} is published: set image_transport to compressed."
        return self.images.explain_silence()

    # --- messages ---

    def _destroy(self, subscriptions: list[Subscription]) -> None:
        for subscription in subscriptions:
            self._node.destroy_subscription(subscription)
        subscriptions.clear()

    def _camera_info_received(self, camera_info: CameraInfo) -> None:
        self._camera_infos.append(camera_info)

    def _image_received(self, image: Image | CompressedImage) -> None:
        self.received += 1
        self._last_image_s = time.monotonic()
        self.look_for_latched_camera_info()
        # None: by zero distortion and another P than K.
        is_rectified = self._parameters.value.image_rectified or self._is_rectified_by_name or None
        self._on_image(LocalizationRequest(number=self.received, image=image, rectified=is_rectified,
                                           camera_info=self._camera_info_of(image)), self._rate.is_due())

    def _camera_info_of(self, image: Image | CompressedImage) -> CameraInfo | None:
        """Return the camera_info with the image's stamp (zoom and focus change it), else the latest one."""
        infos = list(self._camera_infos)
        matching = (info for info in infos if info.header.stamp == image.header.stamp)
        return next(matching, infos[-1] if infos else None)
