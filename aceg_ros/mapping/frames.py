# SPDX-License-Identifier: Apache-2.0
"""Collects the posed frames of a mapping run, and rejects unusable ones with a reason."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.preprocess import reject_image
from aceg_ros.errors import UserError
from aceg_ros.geometry import is_pose
from aceg_ros.mapping.augmentation import PreparedFrame, prepare_frame
from aceg_ros.mapping.pose_agreement import check_poses

_LOG = logging.getLogger("aceg_ros")
MIN_FRAMES = 5
MAX_FRAMES = 1600               # kept, about 1.5 GB
MIN_EXTENT_M = 1e-6             # of the camera positions along one axis; with less, they count as one position


class MappingFrames:
    """The mapping frames, prepared for the encoder. use_depth: keep their measured depths. trust_poses: do not check
    whether their poses agree with the images. max_frames: largest number that is kept, spread over the recording."""

    def __init__(self, encoder: Encoder, use_depth: bool, *, trust_poses: bool = False, max_frames: int = MAX_FRAMES):
        self._frames: list[PreparedFrame] = []
        self._max_frames, self._step, self._given = max_frames, 1, 0
        self._encoder, self._use_depth, self._trust_poses = encoder, use_depth, trust_poses
        self._measured_depths_m: list[float | None] = []
        self._cameras: dict[Camera, None] = {}             # an ordered set

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def prepared(self) -> list[PreparedFrame]:
        """The prepared frames in the order in which they were added."""
        return self._frames

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """The distinct cameras that took the images."""
        return tuple(self._cameras)

    @property
    def poses(self) -> np.ndarray:
        """map_from_camera (F, 4, 4)."""
        return np.stack([frame.map_from_camera for frame in self._frames])

    @property
    def have_depth(self) -> bool:
        """Whether any frame has depths, measured or triangulated."""
        return any(frame.depth_m is not None for frame in self._frames)

    def add(self, frame: Frame) -> None:
        """Add one posed frame. Raises UserError if its pose or image is unusable."""
        if frame.map_from_camera is None or not is_pose(frame.map_from_camera):
            raise UserError(f"Frame {frame.name} has no usable pose (finite, rigid 4x4): mapping needs one for"
                            " each image.")
        if self._use_depth and frame.depth_problem:
            raise UserError(f"Frame {frame.name}: {frame.depth_problem}")
        rejection = reject_image(frame)
        if rejection is not None:
            raise UserError(f"Frame {frame.name}: {rejection.message}")
        self._given += 1
        if (self._given - 1) % self._step:
            return
        prepared = prepare_frame(frame, self._encoder.short_side_px, self._encoder.stride)
        depth = None
        if self._use_depth and prepared.depth_m is not None:
            depth = prepared.depth_m.astype(np.float16)         # precise enough: finer than any depth camera
        self._frames.append(replace(prepared, depth_m=depth))
        self._measured_depths_m.append(_median_depth(frame.depth_m))
        self._cameras[frame.camera] = None
        if len(self._frames) > self._max_frames:
            self._step *= 2
            self._frames, self._measured_depths_m = self._frames[::2], self._measured_depths_m[::2]

    def check(self, min_frames: int = MIN_FRAMES) -> None:
        """Raise UserError if no map can be built from these frames, and warn if the poses may not be in metres."""
        if len(self) < min_frames:
            raise UserError(f"A map needs at least {min_frames} usable posed images, here are {len(self)}: drive on and"
                            " record more, or check the skipped frames.")
        if self._use_depth and not self.have_depth:
            raise UserError("Depth images were asked for (use_depth), but no frame of the scene has one: map without"
                            " them.")
        if not self.have_depth and np.ptp(self.poses[:, :3, 3], axis=0).max() < MIN_EXTENT_M:
            raise UserError("All images were taken from one spot: reprojection gives no depth without parallax."
                            " Move the camera while recording, or give depth images and set use_depth.")
        if self._step > 1:
            _LOG.info(f"of {self._given} images, one in {self._step} is used: {len(self)}")
        hint = None if self._trust_poses else check_poses(self._frames, self._measured_depths_m)
        if hint is not None:
            _LOG.warning(hint)

    def set_depths(self, depths: dict[int, np.ndarray]) -> None:
        """Replace the depths of all frames by depth maps (h, w), by frame index; other frames lose their depths."""
        for index, frame in enumerate(self._frames):
            depth = depths.get(index)
            self._frames[index] = replace(frame, depth_m=None if depth is None else depth.astype(np.float16))


def _median_depth(depth_m: np.ndarray | None) -> float | None:
    """The median of the known depths, None if there are none."""
    if depth_m is None:
        return None
    sample = depth_m[::8, ::8]
    known = sample[np.isfinite(sample) & (sample > 0)]
    return float(np.median(known)) if len(known) else None
