# SPDX-License-Identifier: Apache-2.0
"""Receive the images of a rig's cameras, and put those of one moment together into a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from rclpy.node import Node

from aceg_ros.ros.common.parameters import ParameterGroup
from aceg_ros.ros.common.topic_watch import TopicWatch
from aceg_ros.ros.localizer.image_input import ImageInput, RateLimit
from aceg_ros.ros.localizer.parameters import ImageParameters
from aceg_ros.ros.localizer.results import LocalizationRequest
from aceg_ros.utils.image_sets import ImageSynchronizer
from aceg_ros.utils.stamps import s_to_ns, stamp_to_ns


class RigInput:
    """As `ImageInput`, for cameras by name: the topics of camera NAME are NAME/image and NAME/camera_info.

    on_images(request, is_due) is called for each moment; the request has those of the cameras that sent an image.
    """

    def __init__(self, node: Node, on_images: Callable[[LocalizationRequest, bool], None], names: Sequence[str],
                 parameters: ParameterGroup[ImageParameters]) -> None:
        self._on_images, self._names = on_images, tuple(names)
        self._inputs = {name: ImageInput(node, partial(self._image_received, name), parameters, f"{name}/")
                        for name in names}
        self._synchronizer: ImageSynchronizer[LocalizationRequest] = ImageSynchronizer(
            names, s_to_ns(parameters.value.camera_tolerance), patient=False)
        self._rate = RateLimit(lambda: parameters.value.max_rate)
        self.received = 0

    @property
    def _first(self) -> ImageInput:
        return self._inputs[self._names[0]]

    @property
    def camera_info(self) -> TopicWatch:
        """That of the first camera."""
        return self._first.camera_info

    @property
    def images(self) -> TopicWatch:
        """Those of the first camera."""
        return self._first.images

    def prepare(self) -> None:
        for each in self._inputs.values():
            each.prepare()

    def start(self) -> None:
        for each in self._inputs.values():
            each.start()

    def stop(self) -> None:
        for each in self._inputs.values():
            each.stop()
        self._synchronizer.clear()

    def release(self) -> None:
        self.stop()
        for each in self._inputs.values():
            each.release()

    def look_for_latched_camera_info(self) -> None:
        for each in self._inputs.values():
            each.look_for_latched_camera_info()

    def missing_camera_info(self) -> str:
        """Return the sentences that say of which cameras no camera_info has come yet."""
        return " ".join(filter(None, (each.missing_camera_info() for each in self._inputs.values())))

    def missing_images(self) -> str:
        """Return the sentences that say of which cameras no image has come for a while."""
        return " ".join(filter(None, (each.missing_images() for each in self._inputs.values())))

    def explain_silence(self) -> str:
        """Return the sentence that says why no images of the first camera come."""
        return self._first.explain_silence()

    def _image_received(self, name: str, request: LocalizationRequest, _: bool) -> None:
        for found in self._synchronizer.add(name, stamp_to_ns(request.image.header.stamp), request):
            self.received += 1
            first = next(iter(found.images.values()))
            self._on_images(LocalizationRequest(
                number=self.received, image=first.image, rectified=first.rectified, views=found.images,
                camera_info=next((view.camera_info for view in found.images.values() if view.camera_info), None)),
                self._rate.is_due())
