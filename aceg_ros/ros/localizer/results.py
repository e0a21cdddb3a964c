# SPDX-License-Identifier: Apache-2.0
"""The input and output of the localization thread: a request and a result for each image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from aceg_ros.camera import Frame
from aceg_ros.estimate import PoseEstimate, Status
from aceg_ros.rig import RigEstimate, RigFrame

# Statuses of the node, in addition to those of `estimate.Status`.
NO_MAP = "no_map"
REPLACED = "replaced"                # a newer image came before this one's turn, or the map was changed meanwhile
INTERNAL_ERROR = "internal_error"
BAD_STAMP = "bad_stamp"              # zero, or in the future
NO_TRANSFORM = "no_transform"        # TF lacks the odometry or the extrinsics of the camera
UNCONFIRMED = "unconfirmed"          # far from the prediction of odometry: further poses have to agree with it first

NO_MAP_MESSAGE = "No map is loaded: set the parameter map_path, or make one with ~/start_mapping."


@dataclass(frozen=True, kw_only=True)
class LocalizationRequest:
    """An image to localize.

    Attributes:
        number: Number of the image among all that the node received.
        camera_info: The one that belongs to the image; None if none has been received yet.
        rectified: Whether the image is already rectified; None: as camera_info implies (see `CameraInfoFields`).
        views: Of a rig, the request of each camera by name; `image` is then the first of them. Empty for one camera.
    """

    number: int
    image: Image | CompressedImage
    camera_info: CameraInfo | None
    rectified: bool | None = None
    views: Mapping[str, LocalizationRequest] = field(default_factory=dict, repr=False)

    @property
    def is_rig(self) -> bool:
        return bool(self.views)

    @property
    def images(self) -> Mapping[str, LocalizationRequest]:
        """The request of each camera by name; that of one camera has an empty name."""
        return self.views or {"": self}

    def result(self, base_frame: str, *, status: str, message: str, map_number: int = 0) -> LocalizationResult:
        """Return a result without an estimate. Its header is that of the image; of a rig, the stamp of the first image
        and the frame of the base."""
        header = Header(stamp=self.image.header.stamp, frame_id=base_frame) if self.is_rig else self.image.header
        return LocalizationResult(number=self.number, header=header, status=status, message=message,
                                  map_number=map_number,
                                  image_headers={name: view.image.header for name, view in self.images.items()})


@dataclass(frozen=True, kw_only=True)
class LocalizationResult:
    """The result for one image.

    Attributes:
        number: Number of the request.
        header: Header of the image.
        status: A value of `estimate.Status`, or one of the statuses above.
        message: The reason, as a sentence.
        estimate: Output of the localizer; None if it was not run.
        map_number: Number of the map that it was localized in.
        had_prior: Whether the localizer was told where the camera probably is.
        frame: The decoded image; None if it was not decoded, or there are several.
        rig: The decoded images of a rig, and the estimate with the share of each; None if they were not localized.
        image_headers: The header of each image by name of its camera; that of one camera has an empty name.
    """

    number: int
    header: Header
    status: str
    message: str
    estimate: PoseEstimate | None = None
    stage_ms: dict[str, float] = field(default_factory=dict)
    map_number: int = 0
    had_prior: bool = False
    frame: Frame | None = field(default=None, repr=False)
    rig: tuple[RigFrame, RigEstimate] | None = field(default=None, repr=False)
    image_headers: Mapping[str, Header] = field(default_factory=dict, repr=False)

    @property
    def accepted(self) -> bool:
        return self.status == Status.ACCEPTED.value

    @property
    def camera_poses(self) -> dict[str, np.ndarray]:
        """The pose (4, 4) of each camera in the map, by name, if the result was accepted."""
        pose = self.estimate.map_from_camera if self.accepted and self.estimate is not None else None
        if pose is None:
            return {}
        return {"": pose} if self.rig is None else \
            {name: pose @ mount for name, mount in self.rig[0].rig.rig_from_camera.items()}

    def rejected(self, status: str, message: str) -> LocalizationResult:
        """Return the result for the same image with its pose rejected."""
        return replace(self, status=status, message=message)
