"""What the encoder is trained by: contrast, reliability, scene coordinates of heads solved in place, a teacher."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.encoders.compact import STRIDE, CompactNet
from aceg_ros.encoders.preprocess import patch_centres
from aceg_ros.pretraining.encoder.augment import Sample
from aceg_ros.utils.device import training_precision

TEMPERATURE = 0.06
SAME_SPOT_PX = 7.0                    # points nearer than this in either picture are neither match nor contrast
HEAD_KERNEL, HEAD_RIDGE = 0.25, 0.1
WEIGHTS = {"contrast": 1.0, "reliability": 0.1, "coordinates": 0.3, "teacher": 1.0}


@dataclass(frozen=True)
class Losses:
    """terms: each unweighted, by the names in WEIGHTS; hit: share of points whose nearest feature is the right one."""

    terms: dict[str, Tensor]
    hit: float

    @property
    def total(self) -> Tensor:
        return torch.stack([WEIGHTS[name] * term for name, term in self.terms.items()]).sum()


def encoder_losses(net: CompactNet, batch: list[Sample], device: str, pupil: nn.Module | None = None,
                   without: Collection[str] = ()) -> Losses:
    """All losses of a batch. pupil: maps our features to the teacher's; None leaves the teacher out. without: names in
    WEIGHTS that are left out as well."""
    images = torch.from_numpy(np.stack([sample.images for sample in batch])).to(device)
    height, width = images.shape[2:4]
    flat = images.flatten(0, 1).permute(0, 3, 1, 2).float().div(255)
    with training_precision(device):
        features, logits = net.raw(flat.contiguous(memory_format=torch.channels_last))
    features = features.float()
    grids = torch.cat([features, logits[:, None].float()], 1).unbind()
    points = [[torch.from_numpy(sample.points[side]).float().to(device) for sample in batch] for side in (0, 1)]
    found = [[sample_at(grids[2 * index + side], points[side][index], width, height) for index in range(len(batch))]
             for side in (0, 1)]
    sides = [torch.cat(parts) for parts in found]
    a, b = (functional.normalize(side[:, :-1], dim=1) for side in sides)
    starts = np.cumsum([0] + [len(part) for part in points[0]])
    spans = [slice(start, end) for start, end in pairwise(starts)]
    target = torch.arange(len(a), device=device)
    answers = _answers(a, b, features, points, _no_contrast(batch, points, spans))
    terms = {"contrast": torch.stack([functional.cross_entropy(rows, target) for rows in answers]).mean()}
    hits = [(rows.detach().argmax(1) == target).float() for rows in answers]
    terms["reliability"] = torch.stack([functional.binary_cross_entropy_with_logits(side[:, -1], hit)
                                        for side, hit in zip(sides, hits, strict=True)]).mean()
    located = [(sample.map_points, span) for sample, span in zip(batch, spans, strict=True)
               if sample.map_points is not None]
    if located:
        terms["coordinates"] = torch.stack([coordinate_loss(a[span], b[span], torch.from_numpy(xyz).float().to(device))
                                            for xyz, span in located]).mean()
    taught = [(sample.taught, span) for sample, span in zip(batch, spans, strict=True) if sample.taught is not None]
    if taught and pupil is not None:
        said = torch.cat([torch.from_numpy(descriptors).float().to(device) for descriptors, _ in taught])
        ours = [torch.cat([side[span] for _, span in taught]) for side in (a, b)]
        terms["teacher"] = torch.stack([1.0 - functional.cosine_similarity(pupil(side), said).mean()
                                        for side in ours]).mean()
    return Losses({name: term for name, term in terms.items() if name not in without}, hits[0].mean().item())


def sample_at(grid: Tensor, points: Tensor, width: int, height: int) -> Tensor:
    """Values (N, C) of one grid (C, h, w) at pixels (N, 2) of the picture it came from (bilinear)."""
    size = torch.tensor([width, height], device=points.device)
    where = (points + 0.5) / size * 2 - 1
    found = functional.grid_sample(grid[None], where[None, None], align_corners=False, padding_mode="border")
    return found[0, :, 0].T


def coordinate_loss(a: Tensor, b: Tensor, points: Tensor) -> Tensor:
    """Scene coordinate regression: a head fitted to half of one view's points, judged on the other half in the other.

    The head is kernel ridge regression on unit features, solved in closed form, so each room of a batch has its own
    and the gradient reaches the encoder through its solution (Bertinetto et al., ICLR 2019). In units of the points'
    spread; Huber.
    """
    points = points - points.mean(0)
    points = points / points.norm(dim=1).mean().clamp(min=1e-3)
    fit, judge = slice(0, None, 2), slice(1, None, 2)
    gram = torch.exp((a[fit] @ a[fit].T - 1.0) / HEAD_KERNEL)
    solved = torch.linalg.solve(gram + HEAD_RIDGE * torch.eye(len(gram), device=a.device), points[fit])
    predicted = torch.exp((b[judge] @ a[fit].T - 1.0) / HEAD_KERNEL) @ solved
    return functional.huber_loss((predicted - points[judge]).norm(dim=1), torch.zeros_like(points[judge, 0]),
                                 delta=0.3)


def _answers(a: Tensor, b: Tensor, grids: Tensor, points: list[list[Tensor]], ignored: Tensor) -> list[Tensor]:
    """What each point of one side, and of the other, may take for its match: logits (N, N + h w), the first N of which
    are the points of the other side, in the same order.

    a, b: unit features (N, C) of both sides; grids (2 pairs, C, h, w): of their pictures, by turns.
    """
    similarity = (a / TEMPERATURE @ b.T).masked_fill(ignored, -1e4)
    cells = functional.normalize(grids, dim=1).flatten(2)
    return [torch.cat([rows, _other_cells(side, cells[other::2], points[other], grids.shape[3])], 1)
            for rows, side, other in ((similarity, a, 1), (similarity.T, b, 0))]


def _other_cells(looked_for: Tensor, cells: Tensor, points: list[Tensor], columns: int) -> Tensor:
    """Similarities (N, h w) of points' features (N, C) to the cells (pairs, C, h w) of the picture that each is looked
    for in, but for those around the right spot: what localization has to choose from. points: where they are there."""
    index = torch.arange(cells.shape[2], device=cells.device)
    centres = patch_centres(index % columns, index // columns, STRIDE)
    parts = (looked_for / TEMPERATURE).split([len(part) for part in points])
    return torch.cat([(part @ picture).masked_fill(torch.cdist(spots, centres) < SAME_SPOT_PX, -1e4)
                      for part, picture, spots in zip(parts, cells, points, strict=True)])


def _no_contrast(batch: list[Sample], points: list[list[Tensor]], spans: list[slice]) -> Tensor:
    """(N, N) bool: pairs of points that may be the same spot without being each other's match."""
    device = points[0][0].device
    names = sorted({sample.place for sample in batch})
    place = torch.cat([torch.full((len(part),), names.index(sample.place), device=device)
                       for sample, part in zip(batch, points[0], strict=True)])
    ignored = place[:, None] == place[None]
    for span, first, second in zip(spans, *points, strict=True):
        ignored[span, span] = torch.minimum(torch.cdist(first, first), torch.cdist(second, second)) < SAME_SPOT_PX
    return ignored.fill_diagonal_(False)
