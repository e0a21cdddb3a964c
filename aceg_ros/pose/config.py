# SPDX-License-Identifier: Apache-2.0
"""Settings of pose estimation and of the gates. docs/benchmarks/2026-11-21-pose-solver.md says how the defaults were
chosen."""

from __future__ import annotations

from dataclasses import dataclass

BACKENDS = ("poselib", "opencv")


@dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """Settings of RANSAC and of the refinement after it.

    Attributes:
        backend: RANSAC implementation, one of `BACKENDS`.
        min_correspondences: number of usable correspondences below which RANSAC is not tried.
        max_correspondences: size of the subset that RANSAC draws from.
        ransac_threshold_px: inlier threshold of RANSAC. It is wide because the errors of a network vary smoothly over
            the image: with a narrow threshold, the pose fits one part of the image well and the rest badly.
        min_iterations, max_iterations: bounds of the number of RANSAC iterations.
        coarse_scales_px: decreasing scales of the robust loss for the refinement on the subset.
        fine_scales_px: decreasing scales of the robust loss for the refinement on all correspondences.
        refine_steps: number of Gauss-Newton steps at each scale.
        inlier_threshold_px: reprojection error below which a correspondence is an inlier of the refined pose.
    """

    backend: str = "poselib"
    min_correspondences: int = 12
    max_correspondences: int = 400
    ransac_threshold_px: float = 30.0
    min_iterations: int = 100
    max_iterations: int = 1000
    coarse_scales_px: tuple[float, ...] = (30.0, 15.0)
    fine_scales_px: tuple[float, ...] = (8.0, 4.0)
    refine_steps: int = 3
    inlier_threshold_px: float = 10.0

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"unknown pose solver backend '{self.backend}': use one of {', '.join(BACKENDS)}")


@dataclass(frozen=True, kw_only=True)
class GuidedConfig:
    """Settings for poses whose correspondences are searched for around the projections of landmarks.

    Attributes:
        ransac_thresholds_px: inlier thresholds of RANSAC, each of which gives a hypothesis; the more significant one is
            kept.
        clear_log10_nfa: significance of a hypothesis from which no further threshold is tried.
        search_radius_px: radius of the windows around projections in which matches are searched for.
        min_similarities: smallest similarities of matches at which a pose may be significant. Things that have moved
            leave windows without a right match, and dissimilar matches only hide the right ones.
        sufficient_log10_nfa: significance with all matches from which no smallest similarity is tried.
        coarse_scales_px: decreasing scales of the robust loss for the refinement before the threshold is known.
        refine_steps: number of Gauss-Newton steps at each scale.
    """

    ransac_thresholds_px: tuple[float, ...] = (4.0, 10.0)
    clear_log10_nfa: float = -60.0
    search_radius_px: float = 12.0
    min_similarities: tuple[float, ...] = (0.6, 0.7, 0.8)
    sufficient_log10_nfa: float = -10.0
    coarse_scales_px: tuple[float, ...] = (6.0, 3.0)
    refine_steps: int = 2


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Thresholds of the gates that a pose has to pass to be accepted; see `gates`.

    Attributes:
        min_inliers: smallest number of inliers.
        min_inlier_ratio: smallest share of inliers among the unmasked correspondences. A margin for chance agreement is
            added to it (`gates.check_inlier_count`).
        min_spread_blocks: smallest effective number of image blocks, of 48, that the inliers cover.
        min_extent_ratio: smallest extent of the inliers; see `gates.check_extent`.
        confident_inlier_ratio: inlier ratio below which the gates against chance agreement apply (`gates.check_peak`,
            `gates.check_chance`).
        min_mirror_gain: smallest ratio of the inliers to those of the mirrored image (`gates.check_chance`).
        min_peak: smallest share of residuals near zero (`gates.check_peak`).
        unique_inlier_ratio: inlier ratio below which a second pose is searched for among the outliers.
        max_second_pose_share: largest number of inliers of a second pose, as a share of those of the first.
        max_position_std_per_depth: largest standard deviation of the position, divided by the median depth of the
            inliers.
        max_position_std_m: largest standard deviation of the position, whatever the depth.
        max_rotation_std_rad: largest standard deviation of the rotation.
        max_log10_nfa: largest significance of poses from correspondences that were searched for around projections: the
            logarithm of the number of such poses that chance gives (`pose.significance`).
        max_overall_log10_nfa: the same with all correspondences, also of dissimilar descriptors.
        min_blind_inliers, min_blind_blocks: of the matches from before any pose was known, this many agreeing with the
            pose, in this effective number of image blocks, confirm it: then the next limit applies instead.
        max_confirmed_log10_nfa: largest significance with all correspondences of a confirmed pose: one by chance.
        min_supporting_inliers: smallest number of matches from before any pose was known that must agree in any case.
        min_distinctive_inliers, min_distinctive_share: smallest number, and share, of these that must be much more
            similar than landmarks elsewhere.
        max_competitor_significance: largest significance of a pose at another place, as a share of that of the pose.
        min_guided_blocks: as min_spread_blocks, for such poses.
        max_leverage: largest share of one correspondence in the covariance of such poses, of their 6 degrees of
            freedom.
        residual_correlation: mean correlation between the residuals of two correspondences, for the covariance. None
            estimates it from the residuals; 0 assumes that they are independent.
    """

    min_inliers: int = 12
    min_inlier_ratio: float = 0.1
    min_spread_blocks: float = 10.0
    min_extent_ratio: float = 0.02
    confident_inlier_ratio: float = 0.3
    min_mirror_gain: float = 1.5
    min_peak: float = 0.33
    unique_inlier_ratio: float = 0.2
    max_second_pose_share: float = 0.28
    max_position_std_per_depth: float = 0.1
    max_position_std_m: float = 5.0
    max_rotation_std_rad: float = 0.1
    max_log10_nfa: float = -6.0
    max_overall_log10_nfa: float = -10.0
    min_blind_inliers: int = 60
    min_blind_blocks: float = 6.0
    max_confirmed_log10_nfa: float = 0.0
    min_supporting_inliers: int = 12
    min_distinctive_inliers: int = 12
    min_distinctive_share: float = 0.15
    max_competitor_significance: float = 0.2
    min_guided_blocks: float = 4.0
    max_leverage: float = 0.1
    residual_correlation: float | None = None
