# SPDX-License-Identifier: Apache-2.0
"""Options for reading a bag."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BagOptions:
    """Topics, frames and times to read from a bag. An empty topic stands for the only one of a suitable type.

    Args:
        image: Topic of the images, raw or compressed.
        camera_info: Topic of their camera_info.
        pose_topic: Topic of poses in the map frame.
        pose_of: Frame whose pose is on pose_topic. Empty: the camera; odometry messages name the frame themselves.
        tf: Frames (map, camera) whose transform in TF is the pose; None: poses come from pose_topic. An empty
            camera stands for the frame_id of the images.
        tf_topic: Topic of the transforms; the static ones are on the same topic with _static appended. Empty: the topic
            in the namespace of the images, or in the nearest enclosing namespace.
        start_s: Seconds from the beginning of the bag at which to start.
        end_s: Seconds from the beginning of the bag at which to end.
        rectified: Whether the images are already rectified, so that P describes their camera. None: they are if the
            name of their topic says so (image_rect...), or if D of camera_info is zero and P differs from K.
        posed: Whether images without a pose are skipped; if false, they are frames without a pose.
    """

    image: str = ""
    camera_info: str = ""
    pose_topic: str = ""
    pose_of: str = ""
    tf: tuple[str, str] | None = None
    tf_topic: str = ""
    start_s: float = 0.0
    end_s: float = float("inf")
    rectified: bool | None = None
    posed: bool = True
