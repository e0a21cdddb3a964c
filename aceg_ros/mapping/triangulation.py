# SPDX-License-Identifier: Apache-2.0
"""Depths of mapping patches: matched between covisible images and triangulated with the known poses.

ACE learns depth from reprojection alone, which takes tens of thousands of steps. If cameras look in all directions, two
cores do not have the time for it, because initial predictions are behind most cameras. Here, patches are matched by
their features; those with consistent matches in three or more images get a depth, from which training starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aceg_ros.encoders.base import Encoder
from aceg_ros.mapping.augmentation import PreparedFrame
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.covisibility import CovisibilityFeatures, select_covisible_images
from aceg_ros.mapping.matching import (
    MAX_ERROR_CELLS,
    ExtractedFeatures,
    extract_features,
    match_features,
    measured_depths,
)

MIN_PARALLAX_RAD = np.radians(1.0)
MIN_VIEWS = 3                          # images that must agree on a point, including the patch's own
EXTRACTION_SHARE, EXTRACTION_PROGRESS = 0.5, 0.4        # largest share of the time, share of the progress


@dataclass(frozen=True, kw_only=True)
class TriangulationOptions:
    """images: largest number of images used. covisible_images: number of images that each is matched with. patches:
    largest number of patches per image."""

    images: int = 400
    covisible_images: int = 8
    patches: int = 1800
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PatchDepths:
    """Z-depths of the extracted patches of the image at `index`: depth_m (N,), NaN if unknown."""

    index: int
    extracted: ExtractedFeatures
    depth_m: Tensor


def triangulate(frames: Sequence[PreparedFrame], encoder: Encoder, options: TriangulationOptions,
                budget: MappingBudget, *, use_measured: bool = False) -> dict[int, np.ndarray]:
    """Triangulate depth maps (h, w), one depth per cell, NaN if unknown, of as many images as the budget allows.

    use_measured: triangulated patches get their measured depth instead, if they have one. Returns them by image index.
    """
    depths: dict[int, np.ndarray] = {}
    for image in triangulated_patches(frames, encoder, options, budget):
        depth = image.depth_m
        if use_measured:
            measured = measured_depths(frames[image.index], image.extracted)
            depth = torch.where(torch.isfinite(depth) & torch.isfinite(measured), measured, depth)
        depth_map = torch.full(image.extracted.map_size, float("nan"), device=depth.device)
        depth_map.view(-1)[image.extracted.cells] = depth
        depths[image.index] = depth_map.cpu().numpy()
    return depths


def triangulated_patches(frames: Sequence[PreparedFrame], encoder: Encoder, options: TriangulationOptions,
                         budget: MappingBudget) -> Iterator[PatchDepths]:
    """Triangulate image by image, in random order, until the budget is over.

    At most half of the time is used to extract features, the rest to match the images that have them.
    """
    rng = np.random.default_rng(options.seed)
    order = rng.permutation(len(frames))[:options.images]
    extracted = _extract(frames, encoder, order, options.patches, budget=budget)
    if not extracted:
        return
    indices = sorted(extracted)
    images = [extracted[index] for index in indices]
    features = CovisibilityFeatures.stack(images)
    for done, number in enumerate(rng.permutation(len(images))):
        if budget.is_over():
            break
        covisible = select_covisible_images(images[number], features, options.covisible_images, encoder.stride)
        depth = _triangulate_image(images[number], [images[other] for other in covisible], encoder.stride)
        yield PatchDepths(index=indices[number], extracted=images[number], depth_m=depth)
        budget.report(EXTRACTION_PROGRESS + (1.0 - EXTRACTION_PROGRESS) * done / len(images))


def _extract(frames: Sequence[PreparedFrame], encoder: Encoder, order: np.ndarray, patches: int, *,
             budget: MappingBudget) -> dict[int, ExtractedFeatures]:
    """Extract features of images in this order until time is up, by index; images without patches are left out."""
    budget = budget.phase(budget.stage, share=EXTRACTION_SHARE)
    extracted = {}
    for done, index in enumerate(order):
        if budget.is_over():
            break
        features = extract_features(frames[index], encoder, patches)
        if len(features.cells):
            extracted[int(index)] = features
        budget.report(EXTRACTION_PROGRESS * done / len(order))
    return extracted


@dataclass(frozen=True, kw_only=True)
class _RayObservations:
    """N rays of one image in the cameras of P covisible images, where the point at depth z is z * rotated + origin.

    rotated (P, N, 3), origin (P, 1, 3); pixels (P, N, 2) of the match in each image; matched (P, N) bool;
    intrinsics (P, 1, 4).
    """

    rotated: Tensor
    origin: Tensor
    pixels: Tensor
    matched: Tensor
    intrinsics: Tensor

    def candidates(self) -> Tensor:
        """Return depths (P, N) from each match alone; NaN without a match, or if the point is behind a camera.

        Linear least squares: for the point p = z * rotated + origin, u p_z = p_x and v p_z = p_y are linear in z.
        """
        seen = (self.pixels - self.intrinsics[..., 2:]) / self.intrinsics[..., :2]
        slope = self.rotated[..., :2] - seen * self.rotated[..., 2:]
        offset = seen * self.origin[..., 2:] - self.origin[..., :2]
        depth = (slope * offset).sum(-1) / (slope * slope).sum(-1).clamp(min=1e-12)
        in_front = (depth > 0) & (self.rotated[..., 2] * depth + self.origin[..., 2] > 0)
        return torch.where(in_front & self.matched, depth, float("nan"))

    def project(self, depth: Tensor) -> Tensor:
        """Project the points at `depth` (N,): pixels (P, N, 2), 1e6 for points behind a camera."""
        local = self.rotated * depth[:, None] + self.origin
        z = local[..., 2:]
        pixels = local[..., :2] / z.clamp(min=1e-6) * self.intrinsics[..., :2] + self.intrinsics[..., 2:]
        return torch.where(z > 1e-6, pixels, 1e6)

    def errors(self, depth: Tensor) -> Tensor:
        """Return the distances (P, N) in pixels between the matches and the projected points at `depth` (N,)."""
        return torch.nan_to_num((self.project(depth) - self.pixels).norm(dim=-1), nan=1e6)

    def refine(self, depth: Tensor, used: Tensor) -> Tensor:
        """Refine depths (N,) by three Gauss-Newton steps on the errors of the `used` matches (P, N)."""
        for _ in range(3):
            step = 1e-3 * depth
            projected = self.project(depth)
            slope = (self.project(depth + step) - projected) / step[:, None]
            gradient = torch.where(used, (slope * (projected - self.pixels)).sum(-1), 0.0).sum(0)
            curvature = torch.where(used, (slope * slope).sum(-1), 0.0).sum(0)
            moved = depth - gradient / curvature.clamp(min=1e-12)
            depth = torch.where(moved > 0.5 * depth, moved, depth)
        return depth


@torch.inference_mode()
def _triangulate_image(anchor: ExtractedFeatures, others: list[ExtractedFeatures], stride: int) -> Tensor:
    """Triangulate the anchor's patches: z-depths (N,), NaN if fewer than MIN_VIEWS images agree."""
    if len(others) < MIN_VIEWS - 1:
        return anchor.pixels.new_full((len(anchor.pixels),), float("nan"))
    limit = MAX_ERROR_CELLS * stride
    observations = _observe(anchor, others, stride)
    candidates = observations.candidates()
    agree = torch.stack([observations.errors(depth) < limit for depth in candidates])             # (P, P, N)
    agree &= observations.matched
    best = agree.sum(1).argmax(0)
    used = agree.gather(0, best[None, None].expand(1, len(others), -1))[0]
    depth = observations.refine(candidates.gather(0, best[None])[0], used)
    used &= observations.errors(depth) < limit
    points = anchor.rays * depth[:, None] + anchor.centre
    to_others = torch.stack([other.centre for other in others])[:, None] - points
    cosine = torch.nn.functional.cosine_similarity(to_others, (anchor.centre - points)[None], dim=-1)
    parallax = torch.where(used, torch.arccos(cosine.clamp(-1.0, 1.0)), 0.0).amax(0)
    good = (used.sum(0) >= MIN_VIEWS - 1) & (parallax > MIN_PARALLAX_RAD)
    return torch.where(good, depth, float("nan"))


def _observe(anchor: ExtractedFeatures, others: list[ExtractedFeatures], stride: int) -> _RayObservations:
    matches = [match_features(anchor, other, stride) for other in others]
    origins = [other.camera_from_map[:, :3] @ anchor.centre + other.camera_from_map[:, 3] for other in others]
    pixels = [other.pixels[match.clamp(min=0)] for match, other in zip(matches, others, strict=True)]
    return _RayObservations(
        rotated=torch.stack([anchor.rays @ other.camera_from_map[:, :3].T for other in others]),
        origin=torch.stack(origins)[:, None], pixels=torch.stack(pixels), matched=torch.stack(matches) >= 0,
        intrinsics=torch.stack([other.intrinsics for other in others])[:, None])
