# SPDX-License-Identifier: Apache-2.0
"""Finds covisible mapping images: pairs with many matches that agree with the epipolar geometry of their poses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aceg_ros.mapping.matching import MAX_ERROR_CELLS, ExtractedFeatures, epipolar_lines, homogeneous_pixels

MAX_AXIS_ANGLE_RAD = np.radians(50)    # between the optical axes of two covisible images
PATCHES_PER_IMAGE = 128                # most reliable patches that images are compared by
MIN_SHARED_RATIO = 0.5                 # shared patches of a covisible image, as a share of those of the best image,
MIN_SHARED = 3.0                       # and their smallest number
CHANCE_BAND = 6                        # width of the band for estimating the number of chance matches, in tolerances


@dataclass(frozen=True, kw_only=True)
class CovisibilityFeatures:
    """The K = PATCHES_PER_IMAGE most reliable patches of each of V images, and their cameras.

    features (V, K, C), pixels (V, K, 2), axes (V, 3), centres (V, 3), camera_from_map (V, 3, 4), intrinsics (V, 4).
    Images with fewer patches are padded with features that match nothing.
    """

    features: Tensor
    pixels: Tensor
    axes: Tensor
    centres: Tensor
    camera_from_map: Tensor
    intrinsics: Tensor

    @classmethod
    def stack(cls, images: Sequence[ExtractedFeatures]) -> CovisibilityFeatures:
        """Collect them from the extracted features of V images."""
        features = images[0].features.new_zeros(len(images), PATCHES_PER_IMAGE, images[0].features.shape[1])
        pixels = features.new_full((len(images), PATCHES_PER_IMAGE, 2), 1e6)
        for index, image in enumerate(images):
            count = min(PATCHES_PER_IMAGE, len(image.features))
            features[index, :count], pixels[index, :count] = image.features[:count], image.pixels[:count]
        return cls(features=features, pixels=pixels, axes=torch.stack([image.axis for image in images]),
                   centres=torch.stack([image.centre for image in images]),
                   camera_from_map=torch.stack([image.camera_from_map for image in images]),
                   intrinsics=torch.stack([image.intrinsics for image in images]))


def select_covisible_images(anchor: ExtractedFeatures, others: CovisibilityFeatures, count: int,
                            stride: int) -> list[int]:
    """Select up to `count` images that are covisible with the anchor, with short and long baselines.

    Of the images that share at least half as many patches with it as the best one, those selected have evenly spread
    baselines: more parallax gives better depths. stride: of the encoder, in pixels. Returns their indices.
    """
    baseline = (others.centres - anchor.centre).norm(dim=1)
    alike = (others.axes @ anchor.axis > float(np.cos(MAX_AXIS_ANGLE_RAD))) & (baseline > 1e-9)
    candidates = alike.nonzero()[:, 0]
    if len(candidates) <= count:
        return candidates.tolist()
    shared = _shared_patches(anchor, others, candidates, MAX_ERROR_CELLS * stride)
    good = candidates[shared >= max(MIN_SHARED_RATIO * float(shared.max()), MIN_SHARED)]
    if len(good) <= count:
        return candidates[shared.argsort(descending=True)[:count]].tolist()
    order = good[baseline[good].argsort()]
    return order[torch.linspace(0, len(order) - 1, count).long()].tolist()


def _shared_patches(anchor: ExtractedFeatures, others: CovisibilityFeatures, candidates: Tensor,
                    limit_px: float) -> Tensor:
    """Estimate how many of the anchor's patches each of the candidates (V,) shows as well.

    Counts mutual nearest neighbours within limit_px of the epipolar line, less the expected number of chance matches.
    """
    own = anchor.features[:PATCHES_PER_IMAGE]
    similarity = torch.einsum("nc,vkc->vnk", own, others.features[candidates])
    forward, backward = similarity.argmax(2), similarity.argmax(1)
    mutual = backward.gather(1, forward) == torch.arange(len(own), device=own.device)
    pixels = others.pixels[candidates].gather(1, forward[..., None].expand(-1, -1, 2))
    intrinsics = others.intrinsics[candidates]
    lines = epipolar_lines(anchor.rays[:PATCHES_PER_IMAGE], anchor.centre, others.camera_from_map[candidates],
                           intrinsics)
    error = (homogeneous_pixels(pixels, intrinsics) * lines).sum(-1).abs()
    within, around = ((error < bound) & mutual for bound in (limit_px, CHANCE_BAND * limit_px))
    return within.sum(1) - around.sum(1) / CHANCE_BAND
