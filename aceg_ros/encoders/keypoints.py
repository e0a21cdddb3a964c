# SPDX-License-Identifier: Apache-2.0
"""The keypoints of one image: the most reliable cells of its feature map."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aceg_ros.camera import Camera, Frame
from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.feature_map import FeatureMap
from aceg_ros.encoders.preprocess import image_to_tensor, patch_centres, prepare, valid_cells


@dataclass(frozen=True, kw_only=True)
class Keypoints:
    """N keypoints of an image, the most reliable first.

    pixels (N, 2) float32, sub-pixel, in the image that the encoder took; descriptors (N, C) of unit length; cells (N,),
    flat indices into the feature map of height and width map_size; stride: size of a cell in pixels; camera: of the
    rectified image in the encoder's size.
    """

    pixels: np.ndarray
    descriptors: Tensor
    cells: np.ndarray
    map_size: tuple[int, int]
    stride: int
    camera: Camera

    def __len__(self) -> int:
        return len(self.pixels)

    def best(self, count: int) -> Keypoints:
        """Return the `count` most reliable keypoints."""
        return Keypoints(pixels=self.pixels[:count], descriptors=self.descriptors[:count], cells=self.cells[:count],
                         map_size=self.map_size, stride=self.stride, camera=self.camera)

    @cached_property
    def descriptor_array(self) -> np.ndarray:
        """The descriptors (N, C) as float32, for code that does not compute on their device."""
        return self.descriptors.float().contiguous().cpu().numpy()


def extract_frame_keypoints(frame: Frame, encoder: Encoder, max_count: int, *, short_side_px: int | None = None
                            ) -> Keypoints:
    """Extract the most reliable keypoints of a frame, which must have passed `reject_image`.

    short_side_px: of the image that they are extracted of, which is quickly resampled; None: that which the encoder
    expects.
    """
    image, camera, mask = prepare(frame, short_side_px or encoder.short_side_px, encoder.stride,
                                  is_quick=short_side_px is not None)
    return extract_keypoints(image, camera, encoder, mask=mask, max_count=max_count)


@torch.inference_mode()
def extract_keypoints(image: np.ndarray, camera: Camera, encoder: Encoder, *, mask: np.ndarray | None = None,
                      max_count: int) -> Keypoints:
    """Extract the most reliable keypoints of an image (H, W, 3) uint8 RGB of the encoder's size.

    Args:
        image: the rectified image.
        camera: its pinhole camera.
        encoder: its own keypoints or corners are used; encoders for which neither makes sense give centres of cells.
        mask: (H, W) bool, pixels that the camera saw; None: all.
        max_count: largest number of keypoints.
    """
    images = image_to_tensor(image, encoder.device)
    best = encoder.detect_best(images, partial(_most_reliable, mask=mask, stride=encoder.stride, max_count=max_count))
    if best is not None:
        return Keypoints(pixels=best.pixels.cpu().numpy().astype(np.float32), descriptors=best.descriptors,
                         cells=best.cells.cpu().numpy(), map_size=best.map_size, stride=encoder.stride, camera=camera)
    found = encoder.detect(images)
    return select_keypoints(found, camera, encoder.stride, mask=mask, max_count=max_count)


@torch.inference_mode()
def select_keypoints(found: FeatureMap, camera: Camera, stride: int, *, mask: np.ndarray | None = None,
                     max_count: int) -> Keypoints:
    """Select the most reliable keypoints of the feature map of one image; the other arguments as above."""
    height, width = found.features.shape[2:]
    if found.reliability is None:
        cells = _usable_cells(found.features[0, 0], mask, stride).nonzero()[:, 0]
        cells = cells[torch.linspace(0, len(cells) - 1, min(max_count, len(cells)), device=cells.device).long()]
    else:
        cells = _most_reliable(found.reliability[0], mask=mask, stride=stride, max_count=max_count)
    if found.keypoints is None:
        pixels = patch_centres(cells % width, cells // width, stride)
    else:
        pixels = found.keypoints[0].flatten(1).T[cells]
    descriptors = functional.normalize(found.features[0].flatten(1).T[cells], dim=1)
    return Keypoints(pixels=pixels.cpu().numpy().astype(np.float32), descriptors=descriptors,
                     cells=cells.cpu().numpy(), map_size=(height, width), stride=stride, camera=camera)


def _most_reliable(reliability: Tensor, *, mask: np.ndarray | None, stride: int, max_count: int) -> Tensor:
    """Return the most reliable cells (N,) of a map (h, w) that are inside the mask."""
    score = reliability.flatten() * _usable_cells(reliability, mask, stride)
    return score.topk(min(max_count, int((score > 0).sum()))).indices


def _usable_cells(grid: Tensor, mask: np.ndarray | None, stride: int) -> Tensor:
    """Return which cells (h w,) of a map (h, w) are inside the mask."""
    height, width = grid.shape
    return torch.from_numpy(valid_cells(mask, height, width, stride).ravel()).to(grid.device)


def spread_over_image(pixels: np.ndarray, count: int, block_px: int) -> np.ndarray:
    """Choose keypoints that are spread over the image: the first of each block, then the first of the others.

    Args:
        pixels: (N, 2), the most reliable keypoints first.
        count: largest number of keypoints.
        block_px: side of the blocks, pixels.

    Returns:
        Indices (M,) of the chosen keypoints, ascending.
    """
    column, row = (pixels // block_px).astype(np.int64).T
    _, first = np.unique(row * (1 << 20) + column, return_index=True)
    rank = np.ones(len(pixels), np.int64)
    rank[first] = 0
    return np.sort(np.argsort(rank, kind="stable")[:count])
