"""Receive images and camera_infos, and pair them into requests."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from aceg_ros.datasets.camera_info import is_rectified_topic
from aceg_ros.ros.common.parameters import ParameterGroup
from aceg_ros.ros.localizer.parameters import ImageParameters
from aceg_ros.ros.localizer.results import LocalizationRequest

NEWEST_IMAGE = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


class ImageInput:
    """Between start() and stop(), calls on_image(request, is_due) for each image; is_due is False beyond max_rate.

    QoS: depth 1 and best effort by default; every policy can be overridden by parameters (qos_overrides....).
    """

    def __init__(self, node: Node, on_image: Callable[[LocalizationRequest, bool], None]) -> None:
        self._node, self._on_image = node, on_image
        self._parameters = ParameterGroup(node, ImageParameters)
        self._subscriptions: list[Subscription] = []
        self._camera_infos: deque[CameraInfo] = deque(maxlen=16)
        self._is_rectified_topic = False
        self._next_due_s = 0.0
        self._received = 0

    @property
    def has_camera_info(self) -> bool:
        return bool(self._camera_infos)

    def start(self) -> None:
        overrides = QoSOverridingOptions.with_default_policies()
        # camera_info first: if both messages are waiting, the executor takes that of the older subscription.
        self._subscriptions.append(self._node.create_subscription(
            CameraInfo, "camera_info", self._camera_info_received, qos_profile_sensor_data,
            qos_overriding_options=overrides))
        kind: type = Image
        topic = self._node.resolve_topic_name("image")
        if self._parameters.value.image_transport == "compressed":
            kind, topic = CompressedImage, f"{topic}/compressed"
        self._subscriptions.append(self._node.create_subscription(
            kind, topic, self._image_received, NEWEST_IMAGE, qos_overriding_options=overrides))
        self._is_rectified_topic = is_rectified_topic(topic)
        if self._is_rectified_topic and not self._parameters.value.image_rectified:
            self._node.get_logger().info(f"The images on {topic} are rectified by their topic's name: the camera is"
                                         " taken from P of camera_info.")

    def stop(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        self._camera_infos.clear()

    def _camera_info_received(self, camera_info: CameraInfo) -> None:
        self._camera_infos.append(camera_info)

    def _image_received(self, image: Image | CompressedImage) -> None:
        self._received += 1
        request = LocalizationRequest(number=self._received, image=image, camera_info=self._camera_info_of(image),
                                      rectified=self._parameters.value.image_rectified or self._is_rectified_topic
                                      or None)
        self._on_image(request, self._is_due())

    def _is_due(self) -> bool:
        if not self._parameters.value.max_rate:
            return True
        now, period_s = time.monotonic(), 1.0 / self._parameters.value.max_rate
        if now < self._next_due_s:
            return False
        # Relative to when this one was due, so that the mean rate is max_rate; relative to now after a pause.
        self._next_due_s = max(self._next_due_s + period_s, now)
        return True

    def _camera_info_of(self, image: Image | CompressedImage) -> CameraInfo | None:
        """Return the camera_info with the image's stamp (zoom and focus change it), else the latest one."""
        infos = list(self._camera_infos)
        matching = (info for info in infos if info.header.stamp == image.header.stamp)
        return next(matching, infos[-1] if infos else None)
