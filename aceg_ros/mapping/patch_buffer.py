# SPDX-License-Identifier: Apache-2.0
"""The patch buffer of ACE (section 3.2): features of random patches of augmented mapping images, with their cameras."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.feature_map import FeatureMap
from aceg_ros.encoders.preprocess import image_to_tensor, patch_centres, valid_cells
from aceg_ros.mapping.augmentation import PreparedFrame, augment
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.losses import View

MIN_KNOWN_SHARE, MIN_KNOWN_PATCHES = 0.005, 300       # of a buffer's patches: with fewer, depths do not supervise
MIN_SAMPLING_WEIGHT = 0.02


@dataclass(frozen=True, kw_only=True)
class Patches:
    """A batch of patches: features (B, C) float32, their view, colours (B, 3) uint8, z-depths depth_m (B,) or None."""

    features: Tensor
    view: View
    colours: Tensor
    depth_m: Tensor | None


class PatchBuffer:
    """Up to `capacity` patches; features are stored in fp16, the camera once per image.

    Memory: 2 dim + 11 bytes per patch (15 with depth): 0.27 GB per million patches with 128-D features.

    Attributes:
        size: number of patches in the buffer.
        frame_index: index (capacity,) of the added frame that each patch is from.
        depth_m: z-depths (capacity,), NaN if unknown; None for a buffer without depths.
    """

    def __init__(self, capacity: int, *, dim: int, stride: int, device: str, with_depth: bool):
        self.stride, self.device, self.size = stride, device, 0
        self.frame_index = torch.empty(capacity, dtype=torch.int32, device=device)
        self.depth_m = torch.empty(capacity, device=device) if with_depth else None
        self._features = torch.empty(capacity, dim, dtype=torch.float16, device=device)
        self._cells = torch.empty(capacity, 2, dtype=torch.int16, device=device)
        self._colours = torch.empty(capacity, 3, dtype=torch.uint8, device=device)
        self._poses: list[np.ndarray] = []
        self._intrinsics: list[tuple[float, float, float, float]] = []
        self._tables: tuple[Tensor, Tensor] | None = None

    @property
    def capacity(self) -> int:
        return len(self._features)

    def add(self, extracted: FeatureMap, frame: PreparedFrame, rng: np.random.Generator, *, count: int,
            known_depth_only: bool = False) -> int:
        """Add up to `count` randomly drawn valid cells of one encoded image. Returns how many were added.

        Cells are drawn with weights that follow their reliability. known_depth_only: draw only cells of known depth.
        """
        features = extracted.features[0]
        height, width = features.shape[1:]
        columns = np.arange(width) * self.stride + self.stride // 2
        rows = np.arange(height) * self.stride + self.stride // 2
        valid = valid_cells(frame.mask, height, width, self.stride)
        depths = None if frame.depth_m is None else frame.depth_m[np.ix_(rows, columns)].astype(np.float32)
        if known_depth_only:
            valid = valid & (depths > 0) & np.isfinite(depths) if depths is not None else np.zeros_like(valid)
        reliability = None if extracted.reliability is None else extracted.reliability[0].flatten().cpu().numpy()
        chosen = _weighted_sample(np.flatnonzero(valid), reliability, rng)[:min(count, self.capacity - self.size)]
        row, column = np.divmod(chosen, width)
        span = slice(self.size, self.size + len(chosen))
        index = torch.from_numpy(chosen).to(self.device)
        self._features[span] = features.flatten(1).T[index].half()
        self._cells[span] = torch.from_numpy(np.stack([column, row], 1).astype(np.int16)).to(self.device)
        self._colours[span] = torch.from_numpy(frame.image[rows[row], columns[column]]).to(self.device)
        self.frame_index[span] = len(self._poses)
        if self.depth_m is not None:
            depth = np.full(len(chosen), np.nan, np.float32)
            if depths is not None:
                depth = depths[row, column]
                depth[~(depth > 0)] = np.nan
            self.depth_m[span] = torch.from_numpy(depth).to(self.device)
        self._poses.append(np.linalg.inv(frame.map_from_camera)[:3])
        self._intrinsics.append((frame.camera.fx, frame.camera.fy, frame.camera.cx, frame.camera.cy))
        self._tables = None
        self.size += len(chosen)
        return len(chosen)

    def known_depths(self) -> Tensor:
        """Return the indices (on the CPU) of the patches whose depth is known."""
        if self.depth_m is None:
            return torch.empty(0, dtype=torch.long)
        return torch.isfinite(self.depth_m[:self.size]).nonzero()[:, 0].cpu()

    def has_enough_known_depths(self, known: Tensor) -> bool:
        """Return whether there are enough patches of known depth (`known_depths`) to supervise the training."""
        return len(known) > max(MIN_KNOWN_SHARE * self.size, MIN_KNOWN_PATCHES)

    def patches(self, index: Tensor) -> Patches:
        """Return the patches at the indices (B,)."""
        if self._tables is None:
            self._tables = (torch.tensor(np.stack(self._poses), dtype=torch.float32, device=self.device),
                            torch.tensor(self._intrinsics, dtype=torch.float32, device=self.device))
        poses, intrinsics = self._tables
        frame = self.frame_index[index]
        cells = self._cells[index]
        view = View(camera_from_map=poses[frame], intrinsics=intrinsics[frame],
                    pixels=patch_centres(cells[:, 0], cells[:, 1], self.stride))
        depth = None if self.depth_m is None else self.depth_m[index]
        return Patches(features=self._features[index].float(), view=view, colours=self._colours[index], depth_m=depth)


def _weighted_sample(cells: np.ndarray, reliability: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Return the cells in a random order in which more reliable ones tend to come first.

    Weighted sampling without replacement (Efraimidis & Spirakis, 2006): sorted by u^(1/w) for random u in [0, 1].
    """
    weight = 1.0 if reliability is None else reliability[cells].clip(MIN_SAMPLING_WEIGHT)
    return cells[np.argsort(-rng.random(len(cells)) ** (1.0 / weight))]


@dataclass(frozen=True, kw_only=True)
class FillOptions:
    """How the buffer is filled.

    patches_per_image: most patches that one image adds in each pass. known_depth_only: see `PatchBuffer.add`; images
    without any depths add patches all the same.
    """

    patches_per_image: int = 1024
    known_depth_only: bool = False


def fill_buffer(buffer: PatchBuffer, encoder: Encoder, frames: Sequence[PreparedFrame], *, options: FillOptions,
                budget: MappingBudget, first_pass: MappingBudget, rng: np.random.Generator) -> int:
    """Encode augmented images in random order, pass after pass, until the buffer is full or the budget is over.

    The first pass has its own, usually larger budget, because a part of the scene that was never encoded cannot be
    mapped. Returns the number of encoded images; an image counts once in each pass.
    """
    started, encoded = time.monotonic(), 0
    while buffer.size < buffer.capacity:
        for index in rng.permutation(len(frames)):
            elapsed_s = time.monotonic() - started
            if (first_pass if encoded < len(frames) else budget).is_over() or buffer.size >= buffer.capacity:
                return encoded
            frame = augment(frames[int(index)], rng, encoder.short_side_px, encoder.stride)
            image = image_to_tensor(frame.image, buffer.device)
            buffer.add(encoder.extract(image), frame, rng, count=options.patches_per_image,
                       known_depth_only=options.known_depth_only and frame.depth_m is not None)
            encoded += 1
            time_share = elapsed_s / max(budget.deadline - started, 1e-3) if math.isfinite(budget.deadline) else 0.0
            budget.report(max(buffer.size / buffer.capacity, min(time_share, encoded / len(frames), 1.0)))
    return encoded
