# SPDX-License-Identifier: Apache-2.0
"""The result of localization: a pose with covariance, or a rejection with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np

from aceg_ros.camera import Camera
from aceg_ros.geometry import is_pose, pose_difference

AGREEING_SIGMAS = 4.0               # largest Mahalanobis distance, of 6 degrees of freedom


class Status(Enum):
    """ACCEPTED, or the reason for a rejection. The value is the key in reports and status messages."""

    ACCEPTED = "accepted"
    BAD_IMAGE = "bad_image"                      # wrong shape, type or size, or a uniform colour
    BAD_CAMERA = "bad_camera"                    # missing or impossible intrinsics
    TOO_FEW_CORRESPONDENCES = "too_few_correspondences"
    NO_CONSENSUS = "no_consensus"                # RANSAC found no model
    TOO_FEW_INLIERS = "too_few_inliers"
    LOW_INLIER_RATIO = "low_inlier_ratio"
    CHANCE_CONSENSUS = "chance_consensus"        # hardly more inliers than random correspondences would have
    AMBIGUOUS_POSE = "ambiguous_pose"            # many outliers agree with a second, different pose
    POOR_SPREAD = "poor_spread"                  # inliers cover too small a part of the image
    DEGENERATE_POINTS = "degenerate_points"      # inliers on a line, in one spot, or on a plane that fits two poses
    NO_SCALE = "no_scale"                        # the keyframes tell the direction of the camera, but not its distance
    UNCERTAIN_POSE = "uncertain_pose"            # covariance too large, singular or not finite

    def __str__(self) -> str:
        return self.value                        # the word that docs/troubleshooting.md explains


@dataclass(frozen=True, kw_only=True)
class ImageCorrespondences:
    """The 2D-3D correspondences of an image: pixels (N, 2) of the rectified, resampled `camera`, map points (N, 3)."""

    pixels: np.ndarray
    points: np.ndarray
    camera: Camera


@dataclass(frozen=True, kw_only=True)
class PriorPose:
    """Where the camera probably is, as odometry, tracking or a person tells it. It saves time; the image alone decides.

    map_from_camera: (4, 4). covariance: (6, 6), ROS order as in `PoseEstimate`. Raises ValueError unless these are a
    rigid transform and a finite matrix without a negative variance.
    """

    map_from_camera: np.ndarray
    covariance: np.ndarray

    def __post_init__(self) -> None:
        covariance = np.asarray(self.covariance)
        if not is_pose(self.map_from_camera):
            raise ValueError("A prior needs a finite rigid transform (4, 4).")
        if covariance.shape != (6, 6) or not np.isfinite(covariance).all() or (np.diag(covariance) < 0).any():
            raise ValueError("A prior needs a finite covariance (6, 6) without negative variances.")

    @property
    def position_std_m(self) -> float:
        """The largest standard deviation of the position, in any direction, metres."""
        return float(np.sqrt(np.linalg.eigvalsh(self.covariance[:3, :3])[-1].clip(0.0)))

    @property
    def rotation_std_rad(self) -> float:
        """The largest standard deviation of the rotation, about any axis, radians."""
        return float(np.sqrt(np.linalg.eigvalsh(self.covariance[3:, 3:])[-1].clip(0.0)))

    def agrees_with(self, estimate: PoseEstimate) -> bool:
        """Return whether an accepted estimate is where the prior says, within the covariance of the prior alone: that
        of the estimate is no excuse."""
        if estimate.map_from_camera is None:
            return False
        error = pose_difference(estimate.map_from_camera, self.map_from_camera)
        return bool(error @ np.linalg.pinv(self.covariance) @ error <= AGREEING_SIGMAS**2)


@dataclass(frozen=True, kw_only=True)
class PoseEstimate:
    """Result of `Localizer.localize`. A rejection carries no pose and no covariance.

    Attributes:
        status: ACCEPTED, or the reason for the rejection.
        message: the same as a sentence, with numbers.
        map_from_camera: pose (4, 4) of the camera in the map, or None.
        covariance: (6, 6) or None, ROS order (x, y, z, rotation about the fixed x, y, z axes of the map frame; m^2,
            rad^2).
        inliers: number of correspondences that agree with the pose.
        inlier_ratio: inliers over all correspondences.
        reprojection_rms_px: RMS reprojection error of the inliers.
        inlier_indices: indices of the inliers among the correspondences given to the solver, which are
            `correspondences` if the localizer keeps them.
        stage_ms: duration of each stage in milliseconds.
        correspondences: all correspondences, for display; None if the method has none.
        map_name: of several maps, the one that the image was localized in; else empty.
        map_frame: the frame of the pose, if several maps have one each; else empty.
    """

    status: Status
    message: str
    map_from_camera: np.ndarray | None = None
    covariance: np.ndarray | None = None
    inliers: int = 0
    inlier_ratio: float = 0.0
    reprojection_rms_px: float = float("nan")
    inlier_indices: np.ndarray | None = field(default=None, repr=False)
    stage_ms: dict[str, float] = field(default_factory=dict)
    correspondences: ImageCorrespondences | None = field(default=None, repr=False)
    map_name: str = ""
    map_frame: str = ""

    def __post_init__(self) -> None:
        if (self.map_from_camera is not None) != self.accepted or (self.covariance is not None) != self.accepted:
            raise ValueError("An accepted estimate needs a pose and a covariance; a rejection has neither.")

    @property
    def accepted(self) -> bool:
        return self.status is Status.ACCEPTED

    def with_covariance_times(self, factor: float) -> PoseEstimate:
        """Return the estimate with its covariance, if it has one, multiplied by a factor such as that of a map."""
        return self if self.covariance is None else replace(self, covariance=factor * self.covariance)
