"""What to read of a bag."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BagOptions:
    """Which topics, frames and times of a bag to read. An empty topic: the only one that fits.

    Args:
        image: Topic of the images, raw or compressed.
        camera_info: Topic of their camera_info.
        pose_topic: Topic of poses in the map frame.
        pose_of: Frame whose pose pose_topic gives. Empty: the camera (odometry names its own).
        tf: Frames (map, camera): the poses are taken from TF. An empty camera: the frame_id of the images.
        start_s: Seconds from the beginning of the bag at which to start.
        end_s: Seconds from the beginning of the bag at which to end.
        rectified: Whether the images are free of distortion, so that their camera is in P.
        posed: Whether an image without a pose is unusable; otherwise it is a frame without a pose.
    """

    image: str = ""
    camera_info: str = ""
    pose_topic: str = ""
    pose_of: str = ""
    tf: tuple[str, str] | None = None
    start_s: float = 0.0
    end_s: float = float("inf")
    rectified: bool = False
    posed: bool = True
