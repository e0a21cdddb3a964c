# SPDX-License-Identifier: Apache-2.0
"""Losses of the encoder: contrast, reliability, scene coordinates of heads solved in closed form, distillation."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.encoders.compact import STRIDE, CompactNet
from aceg_ros.encoders.preprocess import image_to_tensor, patch_centres
from aceg_ros.pretraining.encoder.augment import Sample
from aceg_ros.utils.device import training_precision

TEMPERATURE = 0.06
SAME_POINT_PX = 7.0                   # pairs of points closer than this in either image are no negatives
HEAD_KERNEL, HEAD_RIDGE = 0.25, 0.1
WEIGHTS = {"contrast": 1.0, "reliability": 0.1, "coordinates": 0.3, "teacher": 1.0}


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Losses of a batch. terms: unweighted, by the names in WEIGHTS. hit: share of points whose nearest descriptor is
    their match."""

    terms: dict[str, Tensor]
    hit: Tensor

    @property
    def total(self) -> Tensor:
        return torch.stack([WEIGHTS[name] * term for name, term in self.terms.items()]).sum()


def encoder_losses(net: CompactNet, batch: list[Sample], device: str, *, student: nn.Module | None = None,
                   without: Collection[str] = ()) -> Losses:
    """Compute all losses of a batch.

    Args:
        net: the encoder's network.
        batch: samples, each a pair of crops with its correspondences.
        device: of the network.
        student: maps our descriptors to the teacher's; None leaves distillation out.
        without: names of losses (in WEIGHTS) to leave out.
    """
    images = torch.cat([image_to_tensor(image, device) for sample in batch for image in sample.images])
    height, width = images.shape[2:]
    with training_precision(device):
        features, logits = net.raw(images.contiguous(memory_format=torch.channels_last))
    features = features.float()
    grids = torch.cat([features, logits[:, None].float()], 1).unbind()
    points = [[torch.from_numpy(sample.points[side]).float().to(device) for sample in batch] for side in (0, 1)]
    sampled = [[sample_at(grids[2 * index + side], points[side][index], width, height) for index in range(len(batch))]
               for side in (0, 1)]
    sides = [torch.cat(parts) for parts in sampled]
    a, b = (functional.normalize(side[:, :-1], dim=1) for side in sides)
    starts = np.cumsum([0] + [len(part) for part in points[0]])
    spans = [slice(start, end) for start, end in pairwise(starts)]
    target = torch.arange(len(a), device=device)
    logits_of_sides = _match_logits((a, b), features, points, ignored=_not_negative(batch, points, spans))
    terms = {"contrast": torch.stack([functional.cross_entropy(rows, target) for rows in logits_of_sides]).mean()}
    hits = [(rows.detach().argmax(1) == target).float() for rows in logits_of_sides]
    terms["reliability"] = torch.stack([functional.binary_cross_entropy_with_logits(side[:, -1], hit)
                                        for side, hit in zip(sides, hits, strict=True)]).mean()
    with_points = [(sample.map_points, span) for sample, span in zip(batch, spans, strict=True)
                   if sample.map_points is not None]
    if with_points:
        terms["coordinates"] = torch.stack([coordinate_loss(a[span], b[span], torch.from_numpy(xyz).float().to(device))
                                            for xyz, span in with_points]).mean()
    distilled = [(sample.teacher_descriptors, span) for sample, span in zip(batch, spans, strict=True)
                 if sample.teacher_descriptors is not None]
    if distilled and student is not None:
        teacher = torch.cat([torch.from_numpy(descriptors).float().to(device) for descriptors, _ in distilled])
        ours = [torch.cat([side[span] for _, span in distilled]) for side in (a, b)]
        terms["teacher"] = torch.stack([1.0 - functional.cosine_similarity(student(side), teacher).mean()
                                        for side in ours]).mean()
    return Losses(terms={name: term for name, term in terms.items() if name not in without}, hit=hits[0].mean())


def sample_at(grid: Tensor, points: Tensor, width: int, height: int) -> Tensor:
    """Sample a grid (C, h, w) bilinearly at pixels (N, 2) of the image that it was computed from: (N, C)."""
    size = torch.tensor([width, height], device=points.device)
    position = (points + 0.5) / size * 2 - 1
    values = functional.grid_sample(grid[None], position[None, None], align_corners=False, padding_mode="border")
    return values[0, :, 0].T


def coordinate_loss(a: Tensor, b: Tensor, points: Tensor) -> Tensor:
    """Compute the loss of scene coordinate regression: a head is fitted to half of the points in one view and tested on
    the other half in the other view.

    The head is kernel ridge regression on unit features, solved in closed form. So each room of a batch has its own
    head, and the gradient reaches the encoder through the solution (Bertinetto et al., ICLR 2019). Huber loss, in units
    of the points' mean distance from their centre.
    """
    points = points - points.mean(0)
    points = points / points.norm(dim=1).mean().clamp(min=1e-3)
    fit, test = slice(0, None, 2), slice(1, None, 2)
    gram = torch.exp((a[fit] @ a[fit].T - 1.0) / HEAD_KERNEL)
    solved = torch.linalg.solve(gram + HEAD_RIDGE * torch.eye(len(gram), device=a.device), points[fit])
    predicted = torch.exp((b[test] @ a[fit].T - 1.0) / HEAD_KERNEL) @ solved
    return functional.huber_loss((predicted - points[test]).norm(dim=1), torch.zeros_like(points[test, 0]),
                                 delta=0.3)


def _match_logits(sides: tuple[Tensor, Tensor], grids: Tensor, points: list[list[Tensor]], *,
                  ignored: Tensor) -> list[Tensor]:
    """Return, for the points of each side, the logits (N, N + h w) of their candidate matches: the N points of the
    other side, in the same order, and all cells of the other image.

    sides: unit descriptors (N, C) of both. grids (2 pairs, C, h, w): feature maps of the images, sides alternating.
    """
    a, b = sides
    similarity = (a / TEMPERATURE @ b.T).masked_fill(ignored, -1e4)
    cells = functional.normalize(grids, dim=1).flatten(2)
    return [torch.cat([rows, _other_cells(side, cells[other::2], points[other], grids.shape[3])], 1)
            for rows, side, other in ((similarity, a, 1), (similarity.T, b, 0))]


def _other_cells(descriptors: Tensor, cells: Tensor, points: list[Tensor], columns: int) -> Tensor:
    """Return the similarities (N, h w) of points' descriptors (N, C) to the cells (pairs, C, h w) of the other image,
    except those around the match. points: pixels of the matches."""
    index = torch.arange(cells.shape[2], device=cells.device)
    centres = patch_centres(index % columns, index // columns, STRIDE)
    parts = (descriptors / TEMPERATURE).split([len(part) for part in points])
    return torch.cat([(part @ image).masked_fill(torch.cdist(matches, centres) < SAME_POINT_PX, -1e4)
                      for part, image, matches in zip(parts, cells, points, strict=True)])


def _not_negative(batch: list[Sample], points: list[list[Tensor]], spans: list[slice]) -> Tensor:
    """Return the mask (N, N) of pairs of points that may be the same in the scene without being a match."""
    device = points[0][0].device
    names = sorted({sample.scene for sample in batch})
    scene = torch.cat([torch.full((len(part),), names.index(sample.scene), device=device)
                       for sample, part in zip(batch, points[0], strict=True)])
    ignored = scene[:, None] == scene[None]
    for span, first, second in zip(spans, *points, strict=True):
        ignored[span, span] = torch.minimum(torch.cdist(first, first), torch.cdist(second, second)) < SAME_POINT_PX
    return ignored.fill_diagonal_(False)
