"""Losses of the keypoint encoder: detection, repetition and precision of keypoints; contrast, distillation and
reliability of descriptors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.encoders.compact import STRIDE
from aceg_ros.encoders.compact2 import Compact2Net, find_keypoints
from aceg_ros.encoders.corners import sample
from aceg_ros.encoders.preprocess import image_to_tensor
from aceg_ros.pretraining.encoder.keypoint_samples import KeypointSample
from aceg_ros.pretraining.encoder.losses import sample_at
from aceg_ros.utils.device import training_precision

TEMPERATURE = 0.06
SAME_POINT_PX = 5.0                    # candidates closer than this to the match are no negatives
HIT_PX = 3.0                           # a match is right if it is this close
SAME_KEYPOINT_PX = 2.5                 # keypoints of two images closer than this should be one
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
class Pixels:
    """N pixels of the images of a batch: image (N,) its index, xy (N, 2)."""

    image: Tensor
    xy: Tensor

    @classmethod
    def of(cls, parts: Sequence[tuple[int, np.ndarray | Tensor]], device: str) -> Pixels:
        xy = [torch.as_tensor(np.asarray(part) if isinstance(part, np.ndarray) else part).float().to(device)
              for _, part in parts]
        image = [torch.full((len(part),), index, device=device) for (index, _), part in zip(parts, xy, strict=True)]
        return cls(image=torch.cat(image), xy=torch.cat(xy).reshape(-1, 2))


@dataclass(frozen=True, kw_only=True)
class _Transferred:
    """M keypoints of first images seen in the second ones: pixels a and b; cells (M,) of a; weights (M,)."""

    a: Pixels
    b: Pixels
    cells: Tensor
    weights: Tensor


@dataclass(frozen=True, kw_only=True)
class _AtKeypoints:
    """Keypoints of the images of a batch: xy (B, cells, 2), unit descriptors (B, C, cells)."""

    xy: Tensor
    descriptors: Tensor


def keypoint_losses(net: Compact2Net, batch: Sequence[KeypointSample], rng: np.random.Generator, *, device: str = "cpu",
                    student: nn.Module | None = None, points: int = 256) -> KeypointLosses:
    """Compute all losses of a batch.

    Args:
        net: the encoder's network.
        batch: samples. Images 2 i and 2 i + 1 of the network's input are those of sample i.
        rng: chooses points.
        device: of the network.
        student: maps our descriptors to the teacher's; None leaves distillation out.
        points: largest number of points per pair of which descriptors are compared.
    """
    images = torch.cat([image_to_tensor(image, device) for one in batch for image in one.images])
    with training_precision(device):
        raw = net.raw_output(images.contiguous(memory_format=torch.channels_last))
    peaks, features = raw.peaks.float(), raw.features.float()
    keypoints, log_share = find_keypoints(peaks)
    flat = keypoints.flatten(2).transpose(1, 2)                                    # (2 B, cells, 2)
    moved = _transfer(batch, flat.detach(), log_share.detach().exp().flatten(1), device)
    terms = {"repetition": position_loss(peaks, moved.b, moved.weights)}
    detected = [(2 * i + side, one.detections[side]) for i, one in enumerate(batch) for side in (0, 1)]
    detections = Pixels.of([(image, found[:, :2]) for image, found in detected], device)
    if len(detections.xy):
        scores = torch.from_numpy(np.concatenate([found[:, 2] for _, found in detected])).float().to(device)
        terms["detection"] = position_loss(peaks, detections, scores)
    error, same = _nearest_keypoint(flat, moved.b)
    weights = moved.weights * same
    terms["precision"] = (weights * error.clamp(max=SAME_KEYPOINT_PX)).sum() / weights.sum().clamp(min=1e-3)
    described = sample(features, keypoints.detach().permute(0, 2, 3, 1), STRIDE) / features.shape[1]**0.5
    at_keypoints = _AtKeypoints(xy=flat.detach(), descriptors=described.flatten(2))
    matches = _Matches.choose(batch, moved, rng, points=points, device=device)
    a, b = (functional.normalize(_sampled(features, side), dim=1) for side in (matches.a, matches.b))
    first = _candidate_logits(a, b, at_keypoints, matches, reverse=False)
    second = _candidate_logits(b, a, at_keypoints, matches, reverse=True)
    numbers = torch.arange(len(a), device=device)
    terms["contrast"] = 0.5 * (functional.cross_entropy(first, numbers) + functional.cross_entropy(second, numbers))
    hit = _hits(a, at_keypoints, matches.b)
    own = matches.keypoint >= 0
    logit = _sampled(raw.reliability.float()[:, None], matches.a)[:, 0]
    logit = logit + net.rate_peak * log_share.flatten(1)[matches.a.image, matches.keypoint.clamp(min=0)]
    if own.any():
        terms["reliability"] = functional.binary_cross_entropy_with_logits(logit[own], hit[own])
    if student is not None and matches.teacher is not None:
        known = matches.distilled
        terms["teacher"] = torch.stack([1.0 - functional.cosine_similarity(student(side[known]), target, dim=1).mean()
                                        for side, target in zip((a, b), matches.teacher, strict=True)]).mean()
    statistics = {"hit": hit[own].mean(), "hit_distilled": hit[~own].mean(), "repeated": same.mean(),
               "error_px": (error.detach() * same).sum() / same.sum().clamp(min=1)}
    return KeypointLosses(terms=terms, statistics=statistics)


def position_loss(peaks: Tensor, targets: Pixels, weights: Tensor) -> Tensor:
    """Cross-entropy of the pixels of cells: for each cell with targets, the heaviest of them, bilinear over pixels.

    peaks: logits (B, H, W). weights (N,) of the targets.
    """
    height, width = peaks.shape[1:]
    columns = width // STRIDE
    cell = (targets.xy.round() // STRIDE).long()
    inside = (cell >= 0).all(1) & (cell[:, 0] < columns) & (cell[:, 1] < height // STRIDE)
    index = (targets.image * (height // STRIDE) + cell[:, 1]) * columns + cell[:, 0]
    order = torch.argsort(-weights, stable=True)
    order = order[inside[order]]
    kept = order[_first_of_each(index[order])]
    if len(kept) == 0:
        return peaks.sum() * 0.0
    logits = peaks.reshape(len(peaks), -1, STRIDE, columns, STRIDE).permute(0, 1, 3, 2, 4).reshape(-1, STRIDE * STRIDE)
    log_share = torch.log_softmax(logits[index[kept]], 1)
    local = targets.xy[kept] - cell[kept] * STRIDE
    step = torch.arange(STRIDE, device=peaks.device)
    wx, wy = ((1.0 - (local[:, axis, None] - step).abs()).clamp(min=0) for axis in (0, 1))
    share = (wy[:, :, None] * wx[:, None]).flatten(1)
    share = share / share.sum(1, keepdim=True).clamp(min=1e-6)
    loss = -(share * log_share).sum(1)
    return (weights[kept] * loss).sum() / weights[kept].sum().clamp(min=1e-3)


def _first_of_each(values: Tensor) -> Tensor:
    """Return the positions of the first occurrence of each value."""
    ordered, order = torch.sort(values, stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]


def _transfer(batch: Sequence[KeypointSample], keypoints: Tensor, share: Tensor, device: str) -> _Transferred:
    """Transfer the keypoints (2 B, cells, 2) of first images to second ones, where the samples tell how."""
    a, b, cells, weights = [], [], [], []
    for index, one in enumerate(batch):
        if one.transfer is None:
            continue
        there, visible = one.transfer(keypoints[2 * index].cpu().numpy())
        chosen = torch.from_numpy(np.flatnonzero(visible)).to(device)
        a.append((2 * index, keypoints[2 * index][chosen]))
        b.append((2 * index + 1, there[visible]))
        cells.append(chosen)
        weights.append(share[2 * index][chosen])
    if not a:
        empty = Pixels(image=torch.zeros(0, dtype=torch.long, device=device), xy=torch.zeros(0, 2, device=device))
        return _Transferred(a=empty, b=empty, cells=empty.image, weights=empty.xy[:, 0])
    return _Transferred(a=Pixels.of(a, device), b=Pixels.of(b, device), cells=torch.cat(cells),
                        weights=torch.cat(weights))


def _nearest_keypoint(keypoints: Tensor, pixels: Pixels) -> tuple[Tensor, Tensor]:
    """Return the distance (N,) of pixels from the nearest keypoint of their image, and whether it is the same one."""
    error = torch.zeros(len(pixels.xy), device=keypoints.device)
    for image in pixels.image.unique().tolist():
        mine = pixels.image == image
        xy = pixels.xy[mine]
        best = torch.cdist(xy, keypoints[image].detach()).argmin(1)
        error[mine] = (xy - keypoints[image][best]).abs().add(1e-6).square().sum(1).sqrt()
    return error, (error.detach() < SAME_KEYPOINT_PX).float()


def _sampled(grids: Tensor, pixels: Pixels) -> Tensor:
    """Sample grids (B, C, h, w) at pixels of the images they were computed from: (N, C), in the order of pixels."""
    height, width = (side * STRIDE for side in grids.shape[2:])
    parts = [sample_at(grids[image], pixels.xy[pixels.image == image], width, height)
             for image in pixels.image.unique_consecutive().tolist()]
    return torch.cat(parts)


@dataclass(frozen=True, kw_only=True)
class _Matches:
    """N matches: pixels a in first images and b in second ones, ordered by sample.

    keypoint (N,): index of the cell if `a` is a keypoint of the network, else -1. scene (N,): number of the scene.
    distilled (N,): whether a teacher's descriptor is known; teacher: its descriptors, of a and b of these.
    """

    a: Pixels
    b: Pixels
    keypoint: Tensor
    scene: Tensor
    distilled: Tensor
    teacher: tuple[Tensor, Tensor] | None

    @classmethod
    def choose(cls, batch: Sequence[KeypointSample], moved: _Transferred, rng: np.random.Generator, *, points: int,
               device: str) -> _Matches:
        names = sorted({one.scene for one in batch})
        parts: list[list] = [[], [], [], [], []]
        teacher: tuple[list[Tensor], list[Tensor]] = ([], [])
        for index, one in enumerate(batch):
            count = len(one.points[0])
            distilled = rng.permutation(count)[:points if one.transfer is None else points // 2]
            mine = torch.nonzero(moved.a.image == 2 * index)[:, 0]
            # Clear keypoints come up more often: those of plain walls cannot be told from each other.
            keys = rng.uniform(size=len(mine)) ** (1.0 / moved.weights[mine].cpu().numpy().clip(1e-3))
            mine = mine[torch.from_numpy(np.argsort(-keys)[:points - len(distilled)]).to(device)]
            for side, pixels in enumerate((moved.a, moved.b)):
                xy = torch.from_numpy(one.points[side][distilled]).float().to(device)
                parts[side].append((2 * index + side, torch.cat([xy, pixels.xy[mine]])))
                if one.descriptors is not None:
                    teacher[side].append(torch.from_numpy(one.descriptors[side][distilled]).float().to(device))
            parts[2].append(torch.cat([torch.full((len(distilled),), -1, device=device), moved.cells[mine]]))
            parts[3].append(torch.full((len(distilled) + len(mine),), names.index(one.scene), device=device))
            parts[4].append(torch.arange(len(distilled) + len(mine), device=device) <
                            (0 if one.descriptors is None else len(distilled)))
        return cls(a=Pixels.of(parts[0], device), b=Pixels.of(parts[1], device), keypoint=torch.cat(parts[2]),
                   scene=torch.cat(parts[3]), distilled=torch.cat(parts[4]),
                   teacher=(torch.cat(teacher[0]), torch.cat(teacher[1])) if teacher[0] else None)


def _candidate_logits(queries: Tensor, answers: Tensor, at_keypoints: _AtKeypoints, matches: _Matches, *,
                      reverse: bool) -> Tensor:
    """Return the logits (N, N + cells) of candidates: the answers of all queries, where they cannot be the same point,
    and the keypoints of the other image."""
    here, there = (matches.b, matches.a) if reverse else (matches.a, matches.b)
    ignored = matches.scene[:, None] == matches.scene[None]
    same = here.image[:, None] == here.image[None]
    near = torch.minimum(torch.cdist(here.xy, here.xy), torch.cdist(there.xy, there.xy)) < SAME_POINT_PX
    ignored = torch.where(same, near, ignored).fill_diagonal_(False)
    similarity = (queries / TEMPERATURE @ answers.T).masked_fill(ignored, -1e4)
    return torch.cat([similarity, _keypoint_similarity(queries / TEMPERATURE, at_keypoints, there)], 1)


def _keypoint_similarity(queries: Tensor, at_keypoints: _AtKeypoints, there: Pixels) -> Tensor:
    """Return the similarities (N, cells) of queries to the keypoints of the other image, except those close to the
    match (pixels `there`)."""
    parts = []
    for image in there.image.unique_consecutive().tolist():
        mine = there.image == image
        near = torch.cdist(there.xy[mine], at_keypoints.xy[image]) < SAME_POINT_PX
        parts.append((queries[mine] @ at_keypoints.descriptors[image]).masked_fill(near, -1e4))
    return torch.cat(parts)


@torch.no_grad()
def _hits(queries: Tensor, at_keypoints: _AtKeypoints, there: Pixels) -> Tensor:
    """Return whether the most similar keypoint of the other image is the match (N,), 0 or 1."""
    parts = []
    for image in there.image.unique_consecutive().tolist():
        mine = there.image == image
        best = (queries[mine] @ at_keypoints.descriptors[image]).argmax(1)
        parts.append((at_keypoints.xy[image][best] - there.xy[mine]).norm(dim=1) < HIT_PX)
    return torch.cat(parts).float()
