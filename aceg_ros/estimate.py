"""The result of localization: a pose with covariance, or a rejection with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from aceg_ros.camera import Camera


class Status(Enum):
    """ACCEPTED, or the reason of a rejection (the value is the key in reports and status messages)."""

    ACCEPTED = "accepted"
    BAD_IMAGE = "bad_image"                      # wrong shape, type or size, or of one colour
    BAD_CAMERA = "bad_camera"                    # missing or impossible intrinsics
    TOO_FEW_CORRESPONDENCES = "too_few_correspondences"
    NO_CONSENSUS = "no_consensus"                # RANSAC found no model
    TOO_FEW_INLIERS = "too_few_inliers"
    LOW_INLIER_RATIO = "low_inlier_ratio"
    CHANCE_CONSENSUS = "chance_consensus"        # hardly more inliers than unrelated points would have
    AMBIGUOUS_POSE = "ambiguous_pose"            # a second pose, elsewhere, explains many outliers
    POOR_SPREAD = "poor_spread"                  # inliers lie in one part of the image
    DEGENERATE_POINTS = "degenerate_points"      # inlier points on a line, in one spot, or on an ambiguous plane
    UNCERTAIN_POSE = "uncertain_pose"            # covariance too large, singular or not finite


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Correspondences of a pose: pixels (N, 2) of the rectified, resampled `camera`, and map points (N, 3)."""

    pixels: np.ndarray
    points: np.ndarray
    camera: Camera


@dataclass(frozen=True, kw_only=True)
class PoseEstimate:
    """Result of `Localizer.localize`. A rejection carries no pose and no covariance.

    Attributes:
        status: ACCEPTED, or the reason of the rejection.
        message: the reason in a sentence, with numbers.
        map_from_camera: pose (4, 4) of the camera in the map, or None.
        covariance: (6, 6) or None, ROS order (x, y, z, rotation about the fixed x, y, z axes of the map frame; m^2,
            rad^2).
        inliers: number of correspondences that agree with the pose.
        inlier_ratio: inliers over all correspondences.
        reprojection_rms_px: of the inliers.
        inlier_indices: of the correspondences given to the solver; they index `matches` if the localizer keeps these.
        stage_ms: milliseconds of each stage.
        matches: the correspondences, for display; None if the method has none.
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
    matches: Matches | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.map_from_camera is not None) != self.accepted or (self.covariance is not None) != self.accepted:
            raise ValueError("An accepted estimate needs a pose and a covariance; a rejection has neither.")

    @property
    def accepted(self) -> bool:
        return self.status is Status.ACCEPTED
