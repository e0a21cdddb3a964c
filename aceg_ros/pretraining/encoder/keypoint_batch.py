# SPDX-License-Identifier: Apache-2.0
"""Batches of the keypoint encoder's training: samples as arrays of equal sizes, so that losses are computed at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from aceg_ros.encoders.compact import STRIDE
from aceg_ros.pretraining.encoder.keypoint_samples import MARGIN_PX, CropSize, KeypointSample, Transfer

TEACHER_DIM = 128
_UNKNOWN = Transfer(back=np.eye(3), forward=np.eye(3), size=(1, 1))       # of pixels that cannot be transferred


@dataclass(frozen=True, kw_only=True)
class KeypointBatch:
    """B samples of two crops each.

    images: (B, 2, H, W, 3) uint8. scene: (B,) number of the scene. points: (B, 2, P, 2) matched pixels, the first
    `count` (B,) of each; teacher: (B, 2, P, 128) the teacher's descriptors there; distilled: (B,) whether it has any.
    targets: (B, 2, h, w, 3), for each cell of 8x8 pixels where its keypoint should be, and a weight that is 0 if there
    is none. known: (B,) whether pixels can be transferred; back, forward: (B, 3, 3) and size (B, 2) as in `Transfer`.
    surfaces: (S,) the samples with a surface; depth_m (S, 2, H', W'), b_from_a (S, 4, 4), focal_px (S,).
    chance: (B, h w) uniform random numbers, which choose keypoints.
    """

    images: Tensor
    scene: Tensor
    points: Tensor
    count: Tensor
    teacher: Tensor
    distilled: Tensor
    targets: Tensor
    known: Tensor
    back: Tensor
    forward: Tensor
    size: Tensor
    surfaces: Tensor
    depth_m: Tensor
    b_from_a: Tensor
    focal_px: Tensor
    chance: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def pin_memory(self) -> KeypointBatch:
        """Return the batch in pinned memory, from where it is copied while a GPU computes."""
        return KeypointBatch(**{entry.name: getattr(self, entry.name).pin_memory() for entry in fields(self)})

    def to(self, device: str) -> KeypointBatch:
        return KeypointBatch(**{entry.name: getattr(self, entry.name).to(device, non_blocking=True)
                                for entry in fields(self)})


def collate(samples: Sequence[KeypointSample], rng: np.random.Generator, points: int) -> KeypointBatch:
    """Make a batch of samples. points: largest number of matched points of a sample; half of them where pixels can be
    transferred, since keypoints of the network are added there."""
    height, width = samples[0].images.shape[1:3]
    size = CropSize(width=width, height=height)
    chosen = [rng.permutation(len(one.points[0]))[:points if one.transfer is None else points // 2] for one in samples]
    matched = np.zeros((len(samples), 2, points, 2), np.float32)
    teacher = np.zeros((len(samples), 2, points, TEACHER_DIM), np.float16)
    for index, (one, those) in enumerate(zip(samples, chosen, strict=True)):
        matched[index, :, :len(those)] = one.points[:, those]
        if one.descriptors is not None:
            teacher[index, :, :len(those)] = one.descriptors[:, those]
    names = sorted({one.scene for one in samples})
    transfers = [one.transfer or _UNKNOWN for one in samples]
    surfaces = [(index, one.surface) for index, one in enumerate(transfers) if one.surface is not None]
    depth = [surface.depth_m for _, surface in surfaces] or [np.zeros((2, 1, 1), np.float16)]
    relative = [surface.b_from_a for _, surface in surfaces] or [np.eye(4)]
    return KeypointBatch(
        images=torch.from_numpy(np.stack([one.images for one in samples])),
        scene=torch.tensor([names.index(one.scene) for one in samples]),
        points=torch.from_numpy(matched), count=torch.tensor([len(those) for those in chosen]),
        teacher=torch.from_numpy(teacher), distilled=torch.tensor([one.descriptors is not None for one in samples]),
        targets=torch.from_numpy(np.stack([[cell_targets(side, size) for side in one.detections] for one in samples])),
        known=torch.tensor([one.transfer is not None for one in samples]),
        back=_floats([one.back for one in transfers]), forward=_floats([one.forward for one in transfers]),
        size=_floats([one.size for one in transfers]),
        surfaces=torch.tensor([index for index, _ in surfaces], dtype=torch.long),
        depth_m=torch.from_numpy(np.stack(depth)[:len(surfaces)]), b_from_a=_floats(relative)[:len(surfaces)],
        focal_px=torch.tensor([surface.focal_px for _, surface in surfaces], dtype=torch.float32),
        chance=torch.from_numpy(rng.random((len(samples), (height // STRIDE) * (width // STRIDE)), np.float32)))


def _floats(arrays: Sequence) -> Tensor:
    return torch.from_numpy(np.asarray(arrays, np.float32))


def cell_targets(detections: np.ndarray, size: CropSize) -> np.ndarray:
    """Choose the heaviest of the detections (K, 3), pixels and weights, in each cell: (h, w, 3) float32."""
    targets = np.zeros((size.height // STRIDE, size.width // STRIDE, 3), np.float32)
    ascending = detections[np.argsort(detections[:, 2], kind="stable")]
    columns, rows = (ascending[:, :2].round() // STRIDE).astype(int).T
    inside = (columns >= 0) & (rows >= 0) & (columns < targets.shape[1]) & (rows < targets.shape[0])
    targets[rows[inside], columns[inside]] = ascending[inside]      # of repeated cells, numpy keeps the last
    return targets


def transfer_pixels(batch: KeypointBatch, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Transfer pixels (B, N, 2) of first crops to second ones: pixels (B, N, 2), and which are visible there."""
    height, width = batch.images.shape[2:4]
    original = _warped(pixels, batch.back)
    visible = batch.known[:, None] & ((original > 1.5) & (original < (batch.size - 2.5)[:, None])).all(2)
    if len(batch.surfaces):
        moved, unoccluded = _along_surfaces(batch, original[batch.surfaces])
        original = original.index_copy(0, batch.surfaces, moved)
        visible = visible.index_copy(0, batch.surfaces, visible[batch.surfaces] & unoccluded)
    there = _warped(original, batch.forward)
    largest = torch.tensor([width, height], device=pixels.device) - 1 - MARGIN_PX
    return there, visible & ((there > MARGIN_PX) & (there < largest)).all(2)


def _along_surfaces(batch: KeypointBatch, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Transfer pixels (S, N, 2) of first images to second ones by their depth; also whether these show the surface."""
    height, width = batch.depth_m.shape[2:]
    middle = torch.tensor([(width - 1) / 2, (height - 1) / 2], device=pixels.device)
    rays = (pixels - middle) / batch.focal_px[:, None, None]
    points = torch.cat([rays, torch.ones_like(rays[..., :1])], 2) * _depth_at(batch.depth_m[:, 0], pixels)[..., None]
    points = points @ batch.b_from_a[:, :3, :3].transpose(1, 2) + batch.b_from_a[:, None, :3, 3]
    depth = points[..., 2]
    there = points[..., :2] / depth.clamp(min=0.05)[..., None] * batch.focal_px[:, None, None] + middle
    inside = ((there > 1) & (there < torch.tensor([width - 2, height - 2], device=pixels.device))).all(2)
    unoccluded = (_depth_at(batch.depth_m[:, 1], there) - depth).abs() < 0.02 * depth + 0.01
    return there, inside & unoccluded & (depth > 0.1)


def _depth_at(depth_m: Tensor, pixels: Tensor) -> Tensor:
    """Return the depth (S, N) of the nearest pixels, of images (S, H, W) at (S, N, 2)."""
    height, width = depth_m.shape[1:]
    x, y = pixels[..., 0].round().long().clamp(0, width - 1), pixels[..., 1].round().long().clamp(0, height - 1)
    return depth_m.flatten(1).gather(1, y * width + x).float()


def _warped(pixels: Tensor, warps: Tensor) -> Tensor:
    """Move pixels (B, N, 2) by homographies (B, 3, 3)."""
    moved = torch.cat([pixels, torch.ones_like(pixels[..., :1])], 2) @ warps.transpose(1, 2)
    return moved[..., :2] / moved[..., 2:].clamp(min=1e-6)
