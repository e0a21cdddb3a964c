# SPDX-License-Identifier: Apache-2.0
"""Rigs: cameras that are mounted together, their images of one moment, and the pose that these give.

The base is the frame that the cameras are mounted on, such as base_link of a robot. `rig_from_camera` maps points of a
camera's optical frame into the base, `map_from_rig` points of the base into the map.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from aceg_ros.camera import Frame
from aceg_ros.errors import UserError
from aceg_ros.estimate import ImageCorrespondences, PoseEstimate
from aceg_ros.geometry import is_pose


@dataclass(frozen=True, kw_only=True)
class Rig:
    """Cameras by name. rig_from_camera: pose (4, 4) of each in the base, metres.

    Raises UserError without a camera, or if a pose is not a rigid transform.
    """

    rig_from_camera: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        if not self.rig_from_camera:
            raise UserError("A rig needs a camera at least.")
        for name, pose in self.rig_from_camera.items():
            if not is_pose(pose):
                raise UserError(f"The pose of camera {name} in the rig is not a rigid transform (4, 4).")


@dataclass(frozen=True, kw_only=True)
class RigFrame:
    """What the cameras of a rig saw at one moment.

    rig: the cameras. frames: by name of the camera; those that are missing are left out. stamp_s: of the moment.
    map_from_rig: pose (4, 4) of the base, if known. name: for messages and reports.
    """

    rig: Rig
    frames: Mapping[str, Frame]
    stamp_s: float = 0.0
    map_from_rig: np.ndarray | None = None
    name: str = ""

    def posed_frames(self) -> Iterator[Frame]:
        """Yield the frames with the poses that the base gives them, for mapping. The pose of the base must be known."""
        assert self.map_from_rig is not None
        for name, frame in self.frames.items():
            yield replace(frame, map_from_camera=self.map_from_rig @ self.rig.rig_from_camera[name])


@dataclass(frozen=True, kw_only=True)
class ViewShare:
    """What one camera has in the pose of a rig.

    matches: number of its correspondences. inliers: number of those that agree with the pose. problem: why its image
    was not used, else empty. correspondences, inlier_indices: the matches of this camera and which of them agree, for
    display; None if its image was not used.
    """

    matches: int = 0
    inliers: int = 0
    problem: str = ""
    correspondences: ImageCorrespondences | None = field(default=None, repr=False)
    inlier_indices: np.ndarray | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class RigEstimate:
    """The result of localizing a rig.

    base: the estimate, whose pose is that of the base: `map_from_camera` is map_from_rig, and the covariance is that of
    the base. views: the share of each camera of the rig, by name.
    """

    base: PoseEstimate
    views: Mapping[str, ViewShare] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        return self.base.accepted

    @property
    def map_from_rig(self) -> np.ndarray | None:
        """The pose (4, 4) of the base in the map, None if the images were rejected."""
        return self.base.map_from_camera
