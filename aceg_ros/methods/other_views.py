# SPDX-License-Identifier: Apache-2.0
"""Tries an image that was rejected in other views: smaller, or turned.

Encoders know images as they were taken for mapping. Of a tele lens' image, one that is out of focus, or one of a camera
that lies on its side, another view has the keypoints that the map has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from aceg_ros.camera import Frame
from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.image_views import ImageView
from aceg_ros.encoders.keypoints import Keypoints
from aceg_ros.encoders.preprocess import prepare
from aceg_ros.estimate import PoseEstimate

HALF_SIZE = ImageView(scale=0.5)
ROLLS_DEG = (45.0, -45.0, 90.0, -90.0, 180.0)


def localize_other_views(frame: Frame, encoder: Encoder, localize: Callable[[Keypoints, ImageView], PoseEstimate], *,
                         similarity: Callable[[Keypoints], float], max_count: int) -> PoseEstimate | None:
    """Localize an image by other views of it: at half of its size, then turned by the angle at which it is most similar
    to the map, if it is more so than upright.

    Args:
        frame: must have passed `reject_image`.
        encoder: of the map.
        localize: estimates the pose of the camera of a view from its keypoints.
        similarity: of keypoints to the map.
        max_count: largest number of keypoints.

    Returns:
        What was accepted, or None.
    """
    def try_view(view: ImageView, query: Keypoints) -> PoseEstimate | None:
        estimate = localize(query, view)
        if not estimate.accepted:
            return None
        in_image = view.to_image(estimate, frame.camera.rectified())
        return replace(in_image, message=f"{estimate.message}, in the image {view}")

    prepared = prepare(frame, encoder.short_side_px, encoder.stride)
    smaller = HALF_SIZE.extract(prepared, encoder, max_count)
    found = try_view(HALF_SIZE, smaller)
    if found is not None:
        return found
    # All at half of the size: that is a quarter of the work, and their similarities can be compared.
    of_rolls = {roll: similarity(replace(HALF_SIZE, roll_deg=roll).extract(prepared, encoder, max_count))
                for roll in ROLLS_DEG}
    roll = max(of_rolls, key=lambda angle: of_rolls[angle])
    if of_rolls[roll] <= similarity(smaller):
        return None
    turned = ImageView(roll_deg=roll)
    return try_view(turned, turned.extract(prepared, encoder, max_count))
