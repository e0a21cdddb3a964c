"""Which mapping images show the same part of the scene: those whose best patches match if the poses allow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aceg_ros.mapping.matching import MAX_ERROR_CELLS, ExtractedFeatures, epipolar_lines, homogeneous_pixels

MAX_AXIS_ANGLE_RAD = np.radians(50)    # between the optical axes of two covisible images
PATCHES_PER_IMAGE = 128                # by which covisible images are found
MIN_SHARED_RATIO = 0.5                 # of the shared patches of the best image: others that are as good
MIN_SHARED = 3.0
CHANCE_BAND = 6                        # times the tolerance: matches in this wider band tell how many are chance


@dataclass(frozen=True, kw_only=True)
class CovisibilityFeatures:
    """The PATCHES_PER_IMAGE (K) best patches of V images.

    features (V, K, C), pixels (V, K, 2), axes (V, 3), centres (V, 3), camera_from_map (V, 3, 4), intrinsics (V, 4).
    Images with fewer patches are filled up with features that match nothing.
    """

    features: Tensor
    pixels: Tensor
    axes: Tensor
    centres: Tensor
    camera_from_map: Tensor
    intrinsics: Tensor

    @classmethod
    def stack(cls, images: Sequence[ExtractedFeatures]) -> CovisibilityFeatures:
        """Make them of the features of V images."""
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
    """Indices of up to `count` images that show what the anchor shows, with short and with long baselines.

    Among the images that share about as many patches with it as the best one, baselines are spread evenly: more
    parallax makes better depths. stride: of the encoder, in pixels.
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
    """How many of the anchor's best patches each of the candidates (V,) shows as well.

    Counts mutual nearest neighbours within limit_px of the epipolar line, less those that are there by chance.
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
