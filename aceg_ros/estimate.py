"""What localization answers: a pose with covariance, or a typed refusal."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from aceg_ros.camera import Camera


class Status(Enum):
    """ACCEPTED, or the reason of a refusal (the value is the key in reports and status messages)."""

    ACCEPTED = "accepted"
    BAD_IMAGE = "bad_image"                      # wrong shape, type or size, or nothing to see
    BAD_CAMERA = "bad_camera"                    # missing or impossible intrinsics
    TOO_FEW_CORRESPONDENCES = "too_few_correspondences"
    NO_CONSENSUS = "no_consensus"                # RANSAC found no model
    TOO_FEW_INLIERS = "too_few_inliers"
    LOW_INLIER_RATIO = "low_inlier_ratio"
    CHANCE_CONSENSUS = "chance_consensus"        # hardly more inliers than nonsense of the same kind would give
    AMBIGUOUS_POSE = "ambiguous_pose"          # another pose, elsewhere, explains much of the picture as well
    POOR_SPREAD = "poor_spread"                  # inliers huddle in one part of the picture
    DEGENERATE_POINTS = "degenerate_points"      # inlier points (nearly) on a line or in one spot
    UNCERTAIN_POSE = "uncertain_pose"            # covariance too large, singular or not finite


@dataclass(frozen=True, kw_only=True)
class Matches:
    """What the solver was given: pixels (N, 2) of the rectified, resampled `camera`, and map points (N, 3)."""

    pixels: np.ndarray
    points: np.ndarray
    camera: Camera


@dataclass(frozen=True, kw_only=True)
class PoseEstimate:
    """Answer of `Localizer.localize`. A refusal carries no pose and no covariance.

    map_from_camera: (4, 4) or None. covariance: (6, 6) or None, ROS order (x, y, z, rotation about the fixed x, y, z
    axes of the map frame; m^2, rad^2). inlier_indices: of the correspondences given to the solver, which are `matches`
    where the localizer keeps them for display.
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
            raise ValueError("A pose and covariance belong to an accepted estimate, and to no other.")

    @property
    def accepted(self) -> bool:
        return self.status is Status.ACCEPTED
