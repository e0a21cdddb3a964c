# SPDX-License-Identifier: Apache-2.0
"""Losses of the keypoint encoder: detection, repetition and precision of keypoints; contrast, distillation and
reliability of descriptors. Nothing loops over images, so that a GPU computes large batches at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.encoders.compact import STRIDE
from aceg_ros.encoders.compact2 import find_keypoints
from aceg_ros.encoders.compact3 import Compact3Net
from aceg_ros.pretraining.encoder.keypoint_batch import KeypointBatch, transfer_pixels
from aceg_ros.utils.device import training_precision

TEMPERATURE = 0.06
SAME_POINT_PX = 5.0                    # candidates closer than this to the match are no negatives
HIT_PX = 3.0                           # a match is right if it is this close
SAME_KEYPOINT_PX = 2.5                 # keypoints of two images closer than this should be one
COMPARED = 8                           # samples whose descriptors are each other's negatives
WEIGHTS = {"contrast": 1.0, "teacher": 1.0, "detection": 0.5, "repetition": 0.25, "precision": 1.0,
           "reliability": 0.15}


@dataclass(frozen=True, kw_only=True)
class KeypointLosses:
    """Losses of a batch. terms: unweighted, by the names in WEIGHTS. statistics: for the curve, not trained."""

    terms: dict[str, Tensor]
    statistics: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        return torch.stack([WEIGHTS[name] * term for name, term in self.terms.items()]).sum()


@dataclass(frozen=True, kw_only=True)
class _Matches:
    """Q matches of each sample: pixels a and b (B, Q, 2) of its two crops.

    valid: (B, Q) bool, which are any. given: (B, Q) bool, those of the batch; the others are keypoints of the network,
    of cells (B, Q). valid ones alone are compared.
    """

    a: Tensor
    b: Tensor
    valid: Tensor
    given: Tensor
    cells: Tensor


@dataclass(frozen=True, kw_only=True)
class _Keypoints:
    """Keypoints of crops: pixels (B, M, 2), unit descriptors (B, M, C)."""

    pixels: Tensor
    descriptors: Tensor


def keypoint_losses(net: Compact3Net, batch: KeypointBatch, student: nn.Module) -> KeypointLosses:
    """Compute all losses of a batch.

    Args:
        net: the encoder's network.
        batch: samples, on the network's device.
        student: maps our descriptors to the teacher's.
    """
    count, cells = len(batch), batch.chance.shape[1]
    images = batch.images.flatten(0, 1).permute(0, 3, 1, 2).float().div(255)
    with training_precision(images.device.type):
        raw = net.raw_output(images.contiguous(memory_format=torch.channels_last))
    peaks = raw.peaks.float()
    keypoints, log_share = find_keypoints(peaks)
    pixels = keypoints.flatten(2).transpose(1, 2).unflatten(0, (count, 2))                        # (B, 2, M, 2)
    ratings = net.rate_keypoints(raw, log_share).flatten(1).unflatten(0, (count, 2))
    log_share = log_share.flatten(1).unflatten(0, (count, 2))
    shares = _cell_shares(peaks).unflatten(0, (count, 2))                                         # (B, 2, M, 64)
    with torch.no_grad():
        there, visible = transfer_pixels(batch, pixels[:, 0].detach())
        weights = visible * log_share[:, 0].exp()
        matches = _choose(batch, pixels[:, 0], there, weights)
    terms = {"detection": _detection(shares, batch.targets),
             "repetition": repetition_loss(shares[:, 1], there, weights, columns=batch.targets.shape[3])}
    error, same = _nearest_keypoint(pixels[:, 1], there)
    sure = weights * same
    terms["precision"] = (sure * error.clamp(max=SAME_KEYPOINT_PX)).sum() / sure.sum().clamp(min=1e-3)
    places = torch.cat([pixels.detach(), torch.stack([matches.a, matches.b], 1)], 2).flatten(0, 1)
    with training_precision(images.device.type):
        described = net.describe_pixels(raw, places)
    described = functional.normalize(described.float(), dim=2).unflatten(0, (count, 2))
    a, b = described[:, 0, cells:], described[:, 1, cells:]
    first, second = (_Keypoints(pixels=pixels[:, side].detach(), descriptors=described[:, side, :cells])
                     for side in (0, 1))
    same_points = _same_points(batch, matches, COMPARED if count % COMPARED == 0 else count)
    forth, found = _contrast(same_points, queries=a, answers=b, there=matches.b, others=second)
    back, _ = _contrast(same_points, queries=b, answers=a, there=matches.a, others=first)
    terms["contrast"] = 0.5 * (_mean(forth, matches.valid) + _mean(back, matches.valid))
    own = matches.valid & ~matches.given
    terms["reliability"] = _mean(functional.binary_cross_entropy_with_logits(
        ratings[:, 0].gather(1, matches.cells), found, reduction="none"), own)
    distilled = matches.valid & matches.given & batch.distilled[:, None]
    terms["teacher"] = torch.stack([
        _mean(1.0 - functional.cosine_similarity(student(side), batch.teacher[:, index].float(), dim=2), distilled)
        for index, side in enumerate((a, b))]).mean()
    statistics = {"hit": _mean(found, own), "hit_matched": _mean(found, matches.valid & matches.given),
                  "repeated": _mean(same, visible), "error_px": _mean(error, same * visible)}
    return KeypointLosses(terms=terms, statistics=statistics)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp(min=1e-3)


def _cell_shares(peaks: Tensor) -> Tensor:
    """Return the logarithm of each pixel's share in its cell: (B, H, W) -> (B, cells, 64)."""
    height, width = (side // STRIDE for side in peaks.shape[1:])
    cells = peaks.reshape(len(peaks), height, STRIDE, width, STRIDE).permute(0, 1, 3, 2, 4)
    return torch.log_softmax(cells.reshape(len(peaks), height * width, STRIDE * STRIDE), 2)


def _position_loss(log_share: Tensor, local: Tensor) -> Tensor:
    """Cross-entropy (...) of the pixels of a cell (..., 64) for a position in it (..., 2), bilinear over pixels."""
    step = torch.arange(STRIDE, device=local.device)
    wx, wy = ((1.0 - (local[..., axis, None] - step).abs()).clamp(min=0) for axis in (0, 1))
    share = (wy[..., :, None] * wx[..., None, :]).flatten(-2)
    return -(share * log_share).sum(-1) / share.sum(-1).clamp(min=1e-6)


def _detection(log_share: Tensor, targets: Tensor) -> Tensor:
    """Loss of the cells (B, 2, M, 64) that should have their keypoint at a given pixel, targets (B, 2, h, w, 3)."""
    cells = targets.flatten(2, 3)
    corners = torch.stack(torch.meshgrid(torch.arange(targets.shape[3], device=targets.device),
                                         torch.arange(targets.shape[2], device=targets.device), indexing="xy"), -1)
    local = cells[..., :2] - corners.flatten(0, 1) * STRIDE
    return _mean(_position_loss(log_share, local), cells[..., 2])


def repetition_loss(log_share: Tensor, pixels: Tensor, weights: Tensor, *, columns: int) -> Tensor:
    """Loss of the cells (B, M, 64) of second crops where keypoints of first ones (B, N, 2) should be found again: in
    each cell the heaviest. weights: (B, N), 0 for those that are not visible."""
    corner = (pixels.round() / STRIDE).floor()
    rows = log_share.shape[1] // columns
    index = corner[..., 1].clamp(0, rows - 1).long() * columns + corner[..., 0].clamp(0, columns - 1).long()
    heaviest = torch.zeros_like(log_share[..., 0]).scatter_reduce(1, index, weights, "amax")
    chosen = weights * (weights >= heaviest.gather(1, index))
    at = log_share.gather(1, index[..., None].expand(-1, -1, STRIDE * STRIDE))
    return _mean(_position_loss(at, pixels - corner * STRIDE), chosen)


def _nearest_keypoint(keypoints: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance (B, N) of pixels (B, N, 2) from the nearest keypoint (B, M, 2), and whether it is that."""
    with torch.no_grad():
        nearest = torch.cdist(pixels, keypoints).argmin(2)
    best = keypoints.gather(1, nearest[..., None].expand(-1, -1, 2))
    error = (pixels - best).abs().add(1e-6).square().sum(2).sqrt()
    return error, (error.detach() < SAME_KEYPOINT_PX).float()


def _choose(batch: KeypointBatch, keypoints: Tensor, there: Tensor, weights: Tensor) -> _Matches:
    """Choose matches: those of the batch, and keypoints (B, M, 2) of the network that are visible `there` (B, M, 2)."""
    number = batch.points.shape[2]
    # Clear keypoints come up more often: those of plain walls cannot be told from each other.
    keys = torch.where(weights > 0, batch.chance ** (1.0 / weights.clamp(min=1e-3)), -1.0)
    cells = keys.topk(min(number, keys.shape[1]), dim=1).indices
    position = torch.arange(number, device=keypoints.device)
    given = position < batch.count[:, None]
    cells = cells.gather(1, (position - batch.count[:, None]).clamp(0, cells.shape[1] - 1))
    inside = (position - batch.count[:, None]) < keys.shape[1]
    own = [side.gather(1, cells[..., None].expand(-1, -1, 2)) for side in (keypoints, there)]
    a, b = (torch.where(given[..., None], batch.points[:, index], side) for index, side in enumerate(own))
    return _Matches(a=a, b=b, valid=given | (inside & (weights.gather(1, cells) > 0)), given=given, cells=cells)


def _same_points(batch: KeypointBatch, matches: _Matches, size: int) -> Tensor:
    """Return which matches are no negatives of each other, (B / size, size Q, size Q) bool: those that are close in one
    of the crops of a sample, all of other samples of the scene, and those that are none; not a match and itself."""
    count, number = matches.valid.shape
    near = torch.minimum(torch.cdist(matches.a, matches.a), torch.cdist(matches.b, matches.b)) < SAME_POINT_PX
    scene = batch.scene.reshape(-1, size).repeat_interleave(number, dim=1)
    same = scene[:, :, None] == scene[:, None]
    for index in range(size):
        block = slice(index * number, (index + 1) * number)
        same[:, block, block] = near[index::size]
    same |= ~matches.valid.reshape(count // size, 1, size * number)
    return same & ~torch.eye(size * number, dtype=torch.bool, device=same.device)


def _contrast(same: Tensor, *, queries: Tensor, answers: Tensor, there: Tensor,
              others: _Keypoints) -> tuple[Tensor, Tensor]:
    """Compare queries (B, Q, C) with their answers (B, Q, C) at pixels `there`, among the answers that are not the
    `same`, and all keypoints of the other crop.

    Returns the cross-entropy (B, Q), and whether the most similar keypoint is the match (B, Q), 0 or 1.
    """
    groups = [side.reshape(*same.shape[:2], -1) for side in (queries, answers)]
    similarity = groups[0] @ groups[1].transpose(1, 2)
    to_keypoints = queries @ others.descriptors.transpose(1, 2)
    distance = torch.cdist(there, others.pixels)
    with torch.no_grad():
        found = (distance.gather(2, to_keypoints.argmax(2, keepdim=True))[..., 0] < HIT_PX).float()
    to_keypoints = to_keypoints.masked_fill(distance < SAME_POINT_PX, -1e4)
    candidates = [similarity.masked_fill(same, -1e4), to_keypoints.reshape(*same.shape[:2], -1)]
    right = torch.diagonal(similarity, dim1=1, dim2=2) / TEMPERATURE
    loss = torch.logsumexp(torch.cat(candidates, 2) / TEMPERATURE, 2) - right
    return loss.reshape(queries.shape[:2]), found
