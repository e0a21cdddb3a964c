"""The posed pictures of a mapping run: what is taken, and what is refused with a sentence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.preprocess import reject_image
from aceg_ros.errors import UserError
from aceg_ros.geometry import is_pose
from aceg_ros.mapping.augmentation import Picture, prepared_picture

MIN_FRAMES = 5


class Collection:
    """Pictures as the encoder will see them. use_depth: keep their measured depths."""

    def __init__(self, encoder: Encoder, use_depth: bool):
        self.pictures: list[Picture] = []
        self._encoder, self._use_depth = encoder, use_depth
        self._cameras: dict[Camera, None] = {}             # a set in the order of their coming

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """The distinct cameras that took the pictures."""
        return tuple(self._cameras)

    @property
    def poses(self) -> np.ndarray:
        """map_from_camera (F, 4, 4)."""
        return np.stack([picture.map_from_camera for picture in self.pictures])

    def add(self, frame: Frame) -> None:
        """Take one posed frame. Raises UserError without a usable pose or picture."""
        if frame.map_from_camera is None or not is_pose(frame.map_from_camera):
            raise UserError(f"Frame {frame.name} has no usable pose (finite, rigid 4x4): mapping needs one for"
                            " each picture.")
        refusal = reject_image(frame)
        if refusal is not None:
            raise UserError(f"Frame {frame.name}: {refusal.message}")
        picture = prepared_picture(frame, self._encoder.short_side_px, self._encoder.stride)
        depth = None
        if self._use_depth and picture.depth_m is not None:
            depth = picture.depth_m.astype(np.float16)         # half the memory, and finer than any depth camera
        self.pictures.append(replace(picture, depth_m=depth))
        self._cameras[frame.camera] = None

    def check(self) -> None:
        """Raises UserError where these pictures make no map."""
        count = len(self.pictures)
        if count < MIN_FRAMES:
            raise UserError(f"A map needs at least {MIN_FRAMES} usable posed pictures, here are {count}: drive on and"
                            " record more, or check the skipped frames.")
        with_depth = any(picture.depth_m is not None for picture in self.pictures)
        if self._use_depth and not with_depth:
            raise UserError("--use-depth was asked for, but no frame of the scene has a depth picture: map without it.")
        if not with_depth and np.ptp(self.poses[:, :3, 3], axis=0).max() < 1e-6:
            raise UserError("All pictures were taken from one spot: reprojection gives no depth without parallax."
                            " Move the camera while recording, or give depth images and --use-depth.")

    def take_depths(self, depths: dict[int, np.ndarray]) -> None:
        """Give pictures, by their index, depths (h, w) that were found for their patches. All others have none then."""
        for index, picture in enumerate(self.pictures):
            depth = depths.get(index)
            self.pictures[index] = replace(picture, depth_m=None if depth is None else depth.astype(np.float16))
