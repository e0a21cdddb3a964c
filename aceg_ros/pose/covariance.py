# SPDX-License-Identifier: Apache-2.0
"""Covariance of a camera pose from the residuals of its 2D-3D correspondences."""

from __future__ import annotations

import numpy as np

from aceg_ros.pose.correspondences import Consensus
from aceg_ros.pose.gauss_newton import bounded_weights, robust_weights, weighted_products

PRIOR_CORRELATION, PRIOR_PAIRS = 0.25, 30.0     # a prior measured on the solver set, with the weight of 30 pairs
# Mean correlation over the whole image as a share of that within a block, measured on the solver set
# (docs/benchmarks/2026-11-21-pose-solver.md).
WHOLE_IMAGE_CORRELATION = 0.5
MIN_CURVATURE = 0.1
FLOOR_PX = 0.1      # smallest noise: no camera is calibrated better
BOUNDING_ROUNDS = 3


def pose_covariance(consensus: Consensus, scale_px: float, correlation: float | None = None,
                    max_leverage: float | None = None) -> np.ndarray:
    """Compute the covariance (6, 6) of map_from_camera in ROS order: x, y, z, rotation about the fixed map axes.

    The sandwich estimator A^-1 B A^-1 of an M-estimator (Huber, Robust Statistics, 1981): A is the Hessian of the loss
    at the refined pose, B the sum of outer products of the residuals' scores, with at least FLOOR_PX of noise. B
    assumes independent residuals, but the errors of a network are correlated. So the result is multiplied by Kish's
    design effect 1 + (n - 1) correlation (Survey Sampling, 1965), where n = (sum w)^2 / sum w^2 is the effective number
    of correspondences.

    Args:
        consensus: the pose and the residuals of all correspondences under it.
        scale_px: scale of the Geman-McClure loss that the pose was refined with.
        correlation: mean correlation of two residuals. None estimates it as WHOLE_IMAGE_CORRELATION times the
            correlation within a block: the refined pose has absorbed errors that all patches share, so the residuals
            cannot show the correlation over the whole image.
        max_leverage: largest share in the pose, of the 6 degrees of freedom, that one correspondence may have; see
            `bounded_influence`. None: any.

    Returns:
        The covariance, infinite if the Hessian is singular.
    """
    data, rotation = consensus.data, consensus.pose.rotation
    residuals, jacobian = consensus.residuals, data.linearize(consensus.pose)
    weights = robust_weights(data.observations, data.weights, residuals.squared_px, float(scale_px))
    if max_leverage is not None:
        weights = bounded_influence(weights, jacobian, max_leverage)
    hessian = weighted_products(jacobian, weights)
    # Curvature of the loss over its weight: (1 - u) / (1 + u)^3 against 1 / (1 + u)^2, u the squared residual.
    u = np.minimum(residuals.squared_px, 1e12) / scale_px**2
    curvature = float((weights * (1 - u) / (1 + u)).sum() / weights.sum())
    hessian *= max(curvature, MIN_CURVATURE)
    effective_count = float(weights.sum() ** 2 / np.square(weights).sum())
    # B, with each squared residual distributed evenly over its two directions.
    score_variance = weights**2 * (np.minimum(residuals.squared_px, 1e12) / 2.0 * effective_count
                                   / max(effective_count - 3.0, 1.0) + FLOOR_PX**2)
    scatter = weighted_products(jacobian, score_variance)
    if correlation is None:
        correlation = WHOLE_IMAGE_CORRELATION * block_correlation(consensus)
    design_effect = 1.0 + max(effective_count - 1.0, 0.0) * correlation
    try:
        inverse = np.linalg.inv(hessian)
    except np.linalg.LinAlgError:
        return np.full((6, 6), np.inf)
    # Y' = exp(w) Y + d moves the camera in the map by -R^T d and turns it by -R^T w (both to first order).
    to_map = np.kron(np.eye(2), rotation.T) @ inverse
    result = design_effect * to_map @ scatter @ to_map.T
    return (result + result.T) / 2.0


def bounded_influence(weights: np.ndarray, jacobian: np.ndarray, max_leverage: float) -> np.ndarray:
    """Reduce weights (N,) so that no correspondence determines the pose alone.

    Bounded-influence weights of Mallows (Hampel et al., Robust Statistics, 1986, section 6.3): where most landmarks are
    far away, the few near ones determine the position, and a wrong one among them fits exactly wherever it pulls the
    pose. Its leverage shows that, its residual does not.

    Args:
        weights: of the correspondences.
        jacobian: (6, 2, N) of their residuals.
        max_leverage: largest leverage; those of all correspondences sum to 6.
    """
    return bounded_weights(weights, jacobian, max_leverage, BOUNDING_ROUNDS)


def block_correlation(consensus: Consensus) -> float:
    """Estimate the correlation of the residuals of two inliers in the same image block, in [0, 1].

    From the sums over blocks: E |sum of n residuals|^2 = variance (n + n (n - 1) correlation). The estimate is shrunk
    towards PRIOR_CORRELATION if there are few pairs.
    """
    residuals, inliers = consensus.residuals, consensus.inliers
    blocks = consensus.data.blocks[inliers]
    counts = np.bincount(blocks, minlength=consensus.data.block_count)
    sums = [np.bincount(blocks, row[inliers], consensus.data.block_count) for row in residuals.pixels]
    total = float(residuals.squared_px[inliers].sum())
    pairs = float((counts * (counts - 1)).sum())
    if total == 0.0:
        return 0.0
    agreeing = (np.square(sums).sum() - total) / (total / counts.sum())
    return float(np.clip((agreeing + PRIOR_PAIRS * PRIOR_CORRELATION) / (pairs + PRIOR_PAIRS), 0.0, 1.0))
