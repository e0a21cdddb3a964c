"""The patch buffer: features of random patches of augmented mapping pictures, and how each was seen (ACE, 3.2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.feature_map import FeatureMap
from aceg_ros.encoders.preprocess import image_to_tensor, patch_centres, valid_cells
from aceg_ros.mapping.augmentation import Picture, augment
from aceg_ros.mapping.losses import View


@dataclass(frozen=True)
class Patches:
    """A batch of patches: features (B, C) float32, their views, colours (B, 3) uint8, depth_m (B,) or None."""

    features: Tensor
    view: View
    colours: Tensor
    depth_m: Tensor | None


class PatchBuffer:
    """Up to `capacity` patches; features in fp16, the camera kept once per picture.

    Memory: 2 dim + 11 bytes a patch (15 with depth): 0.27 GB per million patches of 128-D features.
    """

    def __init__(self, capacity: int, dim: int, stride: int, device: str, with_depth: bool):
        self.stride, self.device, self.size = stride, device, 0
        self._features = torch.empty(capacity, dim, dtype=torch.float16, device=device)
        self._cells = torch.empty(capacity, 2, dtype=torch.int16, device=device)
        self._colours = torch.empty(capacity, 3, dtype=torch.uint8, device=device)
        self._picture = torch.empty(capacity, dtype=torch.int32, device=device)
        self._depth = torch.empty(capacity, device=device) if with_depth else None
        self._poses: list[np.ndarray] = []
        self._intrinsics: list[tuple[float, float, float, float]] = []
        self._tables: tuple[Tensor, Tensor] | None = None

    @property
    def capacity(self) -> int:
        return len(self._features)

    def add(self, grid: FeatureMap, picture: Picture, count: int, rng: np.random.Generator,
            only_known: bool = False) -> int:
        """Add up to `count` random valid cells of one encoded picture; returns how many. More reliable ones are
        likelier to be taken. only_known: those whose depth is known, and no others."""
        features = grid.features[0]
        height, width = features.shape[1:]
        columns = np.arange(width) * self.stride + self.stride // 2
        rows = np.arange(height) * self.stride + self.stride // 2
        whole = valid_cells(picture.mask, height, width, self.stride)
        depths = None if picture.depth_m is None else picture.depth_m[np.ix_(rows, columns)].astype(np.float32)
        if only_known:
            whole = whole & (depths > 0) & np.isfinite(depths) if depths is not None else np.zeros_like(whole)
        chosen = np.flatnonzero(whole)
        # Efraimidis & Spirakis (2006): the largest u^(1/w) are a random sample with weights w.
        weight = 1.0 if grid.reliability is None else grid.reliability[0].flatten().cpu().numpy()[chosen].clip(0.02)
        order = np.argsort(-rng.random(len(chosen)) ** (1.0 / weight))
        chosen = chosen[order[:min(count, self.capacity - self.size)]]
        row, column = np.divmod(chosen, width)
        span = slice(self.size, self.size + len(chosen))
        index = torch.from_numpy(chosen).to(self.device)
        self._features[span] = features.flatten(1).T[index].half()
        self._cells[span] = torch.from_numpy(np.stack([column, row], 1).astype(np.int16)).to(self.device)
        self._colours[span] = torch.from_numpy(picture.image[rows[row], columns[column]]).to(self.device)
        self._picture[span] = len(self._poses)
        if self._depth is not None:
            depth = np.full(len(chosen), np.nan, np.float32)
            if depths is not None:
                depth = depths[row, column]
                depth[~(depth > 0)] = np.nan
            self._depth[span] = torch.from_numpy(depth).to(self.device)
        camera = picture.camera
        self._poses.append(np.linalg.inv(picture.map_from_camera)[:3])
        self._intrinsics.append((camera.fx, camera.fy, camera.cx, camera.cy))
        self._tables = None
        self.size += len(chosen)
        return len(chosen)

    def known_depths(self) -> Tensor:
        """Indices, on the CPU, of the patches whose depth is known."""
        if self._depth is None:
            return torch.empty(0, dtype=torch.long)
        return torch.isfinite(self._depth[:self.size]).nonzero()[:, 0].cpu()

    def patches(self, index: Tensor) -> Patches:
        """The patches at `index` (B,)."""
        if self._tables is None:
            self._tables = (torch.tensor(np.stack(self._poses), dtype=torch.float32, device=self.device),
                            torch.tensor(self._intrinsics, dtype=torch.float32, device=self.device))
        poses, intrinsics = self._tables
        picture = self._picture[index]
        cells = self._cells[index]
        view = View(poses[picture], intrinsics[picture], patch_centres(cells[:, 0], cells[:, 1], self.stride))
        depth = None if self._depth is None else self._depth[index]
        return Patches(self._features[index].float(), view, self._colours[index], depth)


def fill_buffer(buffer: PatchBuffer, encoder: Encoder, pictures: Sequence[Picture], patches_per_picture: int,
                soft_deadline: float, hard_deadline: float, rng: np.random.Generator,
                report: Callable[[float], None], should_stop: Callable[[], bool], only_known: bool = False) -> int:
    """Encode augmented pictures in random order, pass after pass, until the buffer is full or the clock says stop.

    The first pass may run on to the hard deadline (both in time.monotonic() seconds), since a place that nobody encoded
    cannot be mapped. only_known: see `PatchBuffer.add`, of pictures that have depths; of others all. Returns the number
    of encoded pictures.
    """
    started, encoded = time.monotonic(), 0
    while buffer.size < buffer.capacity:
        for index in rng.permutation(len(pictures)):
            now = time.monotonic()
            deadline = hard_deadline if encoded < len(pictures) else soft_deadline
            if now > deadline or should_stop() or buffer.size >= buffer.capacity:
                return encoded
            picture = augment(pictures[int(index)], rng, encoder.short_side_px, encoder.stride)
            image = image_to_tensor(picture.image, buffer.device)
            buffer.add(encoder.extract(image), picture, patches_per_picture, rng,
                       only_known and picture.depth_m is not None)
            encoded += 1
            time_share = (now - started) / max(soft_deadline - started, 1e-3)
            report(max(buffer.size / buffer.capacity, min(time_share, encoded / len(pictures), 1.0)))
    return encoded
