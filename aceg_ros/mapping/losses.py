# SPDX-License-Identifier: Apache-2.0
"""Losses: ACE's reprojection loss (CVPR 2023, section 3.3), a soft-clamped pixel error whose clamp tightens during
training; losses for patches of known depth; and the likelihoods of ACE-G."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from aceg_ros.networks.contraction import Contraction
from aceg_ros.networks.pose_transformer import RegressedPose

MIN_DEPTH_M, MAX_DEPTH_M, MAX_ERROR_PX = 0.1, 1000.0, 1000.0
FALLBACK_DEPTH_M = 10.0
SIGMA_FALLBACK_DEPTH_M, MIN_SIGMA_PX = 0.1, 1e-4
FINAL_DEPTH_WEIGHT = 0.3                    # of triangulated depths at the end of training
DEPTH_SOFTNESS_PX = 50.0                    # distance beyond which the depth loss is logarithmic


@dataclass(frozen=True, kw_only=True)
class View:
    """The cameras of B patches, and their pixels.

    camera_from_map (B, 3, 4); intrinsics (B, 4) fx fy cx cy; pixels (B, 2).
    """

    camera_from_map: Tensor
    intrinsics: Tensor
    pixels: Tensor


@dataclass(frozen=True, kw_only=True)
class Reprojection:
    """Reprojection of B points: in_camera (B, 3) metres; error_px (B,), L1 distance to the patch centre; valid (B,)."""

    in_camera: Tensor
    error_px: Tensor
    valid: Tensor


def softness(progress: float) -> float:
    """Return ACE's clamp in pixels at progress t: tau(t) = 50 sqrt(1 - t^2) + 1."""
    return 50.0 * max(0.0, 1.0 - progress * progress) ** 0.5 + 1.0


def reproject(coordinates: Tensor, view: View) -> Reprojection:
    """Project map coordinates (B, 3) into the images that their patches come from."""
    in_camera = (view.camera_from_map[:, :, :3] @ coordinates[:, :, None])[:, :, 0] + view.camera_from_map[:, :, 3]
    depth = in_camera[:, 2]
    projected = in_camera[:, :2] / depth.clamp(min=MIN_DEPTH_M)[:, None] * view.intrinsics[:, :2]
    error = (projected + view.intrinsics[:, 2:] - view.pixels).abs().sum(1)
    valid = (depth >= MIN_DEPTH_M) & (depth <= MAX_DEPTH_M) & (error <= MAX_ERROR_PX)
    return Reprojection(in_camera=in_camera, error_px=error, valid=valid)


def points_at_depth(view: View, depth_m: Tensor | float) -> Tensor:
    """Return camera-frame points (B, 3) on the patches' rays at a z-depth."""
    rays = (view.pixels - view.intrinsics[:, 2:]) / view.intrinsics[:, :2]
    return torch.cat([rays, torch.ones_like(rays[:, :1])], 1) * depth_m


def points_in_map(view: View, depth_m: Tensor) -> Tensor:
    """Return map points (B, 3) on the patches' rays at z-depths (B,)."""
    rotation, translation = view.camera_from_map[:, :, :3], view.camera_from_map[:, :, 3]
    in_camera = points_at_depth(view, depth_m[:, None])
    return (rotation.transpose(1, 2) @ (in_camera - translation)[:, :, None])[:, :, 0]


def ace_loss(coordinates: Tensor, view: View, progress: float, depth_m: Tensor | None = None, *,
             annealed: bool = False, contraction: Contraction | None = None) -> tuple[Tensor, Tensor]:
    """Compute the mean loss of a batch, and its pixel errors (B,) (detached).

    Args:
        coordinates: predicted map points (B, 3).
        view: cameras and pixels of the patches.
        progress: of the training, in [0, 1).
        depth_m: z-depths (B,), NaN if unknown, or None. A patch of known depth adds a loss of the distance to the point
            at that depth. ACE's tanh has no gradient for predictions that are far off; this loss is logarithmic, so it
            has one, and it weighs less than reprojection for predictions that are close. For invalid predictions, the
            known depth replaces ACE's target at 10 m; if it is unknown, the median depth of the batch does.
        annealed: whether the weight of the depths decreases during training; for triangulated depths, which are good
            enough at its beginning only.
        contraction: of the head, in which the distance is measured; None: in map units.
    """
    reprojection = reproject(coordinates, view)
    tau = softness(progress)
    loss = torch.where(reprojection.valid, tau * torch.tanh(reprojection.error_px / tau), 0.0)
    if depth_m is None or not bool((known := torch.isfinite(depth_m)).any()):
        fallback = (reprojection.in_camera - points_at_depth(view, FALLBACK_DEPTH_M)).norm(dim=1)
        return torch.where(reprojection.valid, loss, fallback).mean(), reprojection.error_px.detach()
    depth = torch.where(known, depth_m, depth_m.nanmedian()).clamp(min=MIN_DEPTH_M)
    distance = _distance(coordinates, view, depth, contraction)
    weight = 1.0 - (1.0 - FINAL_DEPTH_WEIGHT) * progress if annealed else 1.0
    supervised = loss + weight * _depth_penalty(distance, depth, view)
    loss = torch.where(known, supervised, torch.where(reprojection.valid, loss, distance))
    return loss.mean(), reprojection.error_px.detach()


def known_depth_loss(coordinates: Tensor, view: View, depth_m: Tensor,
                     contraction: Contraction | None = None) -> tuple[Tensor, Tensor]:
    """Compute the loss and pixel errors as `ace_loss`, from the depths (B,) alone, all of them known: for warm-up."""
    reprojection = reproject(coordinates, view)
    depth = depth_m.clamp(min=MIN_DEPTH_M)
    loss = _depth_penalty(_distance(coordinates, view, depth, contraction), depth, view)
    return loss.mean(), reprojection.error_px.detach()


def _distance(coordinates: Tensor, view: View, depth_m: Tensor, contraction: Contraction | None) -> Tensor:
    """Return the distances (B,) to the points at z-depths (B,)."""
    truth = points_in_map(view, depth_m)
    return (coordinates - truth).norm(dim=1) if contraction is None else contraction.distance(coordinates, truth)


def _depth_penalty(distance_m: Tensor, depth_m: Tensor, view: View) -> Tensor:
    """Return the loss (B,) of distances to the points of known depth: logarithmic in the distance in pixels."""
    return DEPTH_SOFTNESS_PX * torch.log1p(distance_m * view.intrinsics[:, 0] / depth_m / DEPTH_SOFTNESS_PX)


def laplace_loss(coordinates: Tensor, sigma: Tensor, truth: Tensor) -> Tensor:
    """Return the loss (B,) of ACE-G's pre-training: negative log likelihood of the distance to the truth (B, 3)."""
    return sigma.log() + math.sqrt(2.0) * (coordinates - truth).norm(dim=1) / sigma


def laplace_reprojection_loss(coordinates: Tensor, sigma: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Return the loss (B,) of ACE-G's mapping, and the pixel errors (B,) (detached).

    It is a negative log likelihood: of the L1 pixel error, with sigma projected into the image, for valid predictions,
    and of the distance to the point at 0.1 m for invalid ones.
    """
    reprojection = reproject(coordinates, view)
    depth = reprojection.in_camera[:, 2].clamp(min=MIN_DEPTH_M)
    sigma_px = (sigma * view.intrinsics[:, 0] / depth).clamp(min=MIN_SIGMA_PX)
    by_pixel = sigma_px.log() + math.sqrt(2.0) * reprojection.error_px / sigma_px
    fallback = (reprojection.in_camera - points_at_depth(view, SIGMA_FALLBACK_DEPTH_M)).norm(dim=1)
    by_distance = sigma.log() + math.sqrt(2.0) * fallback / sigma
    return torch.where(reprojection.valid, by_pixel, by_distance), reprojection.error_px.detach()


def pose_loss(pose: RegressedPose, rotation: Tensor, translation: Tensor) -> Tensor:
    """Return the loss of marepo (Chen et al., CVPR 2024) over a batch: the mean absolute errors of the entries of the
    rotations (B, 3, 3) and of the translations (B, 3)."""
    return (pose.rotation - rotation).abs().mean() + (pose.translation - translation).abs().mean()
