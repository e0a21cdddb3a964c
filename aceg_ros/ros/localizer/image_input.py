"""Images and camera_infos from their topics, joined to requests."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from aceg_ros.ros.common.parameters import ParameterGroup, parameter
from aceg_ros.ros.localizer.worker import Request

NEWEST_IMAGE = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


@dataclass(frozen=True)
class InputParameters:
    image_transport: str = parameter("raw", "raw: sensor_msgs/Image on image; compressed: sensor_msgs/CompressedImage "
                                     "(JPEG, PNG) on image/compressed.", choices=("raw", "compressed"), read_only=True)
    image_rectified: bool = parameter(False, "The images are free of distortion already: take the camera from P of "
                                      "camera_info instead of K and D.")
    max_rate: float = parameter(0.0, "Localize at most so many images a second; 0: as many as can be.",
                                minimum=0.0, maximum=1000.0)


class ImageInput:
    """Between start() and stop(), calls on_image(request, is_due) for each image; is_due: the rate limit lets it pass.

    QoS: the newest image, best effort; every policy can be overridden by parameters (qos_overrides....).
    """

    def __init__(self, node: Node, on_image: Callable[[Request, bool], None]) -> None:
        self._node, self._on_image = node, on_image
        self._settings = ParameterGroup(node, InputParameters)
        self._subscriptions: list[Subscription] = []
        self._infos: deque[CameraInfo] = deque(maxlen=16)
        self._next_due_s = 0.0
        self.received = 0

    @property
    def has_info(self) -> bool:
        return bool(self._infos)

    def start(self) -> None:
        overrides = QoSOverridingOptions.with_default_policies()
        # camera_info first: of two messages that wait together, the executor takes the older subscription's.
        self._subscriptions.append(self._node.create_subscription(
            CameraInfo, "camera_info", self._info_received, qos_profile_sensor_data, qos_overriding_options=overrides))
        kind: type = Image
        topic = self._node.resolve_topic_name("image")
        if self._settings.value.image_transport == "compressed":
            kind, topic = CompressedImage, f"{topic}/compressed"
        self._subscriptions.append(self._node.create_subscription(
            kind, topic, self._image_received, NEWEST_IMAGE, qos_overriding_options=overrides))

    def stop(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        self._infos.clear()

    def _info_received(self, info: CameraInfo) -> None:
        self._infos.append(info)

    def _image_received(self, image: Image | CompressedImage) -> None:
        self.received += 1
        self._on_image(Request(self.received, image, self._info_of(image), self._settings.value.image_rectified),
                       self._is_due())

    def _is_due(self) -> bool:
        if not self._settings.value.max_rate:
            return True
        now, period_s = time.monotonic(), 1.0 / self._settings.value.max_rate
        if now < self._next_due_s:
            return False
        # Counted from when it was due, so that the mean rate is kept; from now after a pause.
        self._next_due_s = max(self._next_due_s + period_s, now)
        return True

    def _info_of(self, image: Image | CompressedImage) -> CameraInfo | None:
        """The camera_info with the image's stamp (zoom and autofocus change it), else the latest."""
        infos = list(self._infos)
        matching = (info for info in infos if info.header.stamp == image.header.stamp)
        return next(matching, infos[-1] if infos else None)
