"""Where mapping features meet: patches matched between mapping pictures and triangulated with the known poses.

ACE learns depth from reprojection alone, which takes tens of thousands of steps and, where a place was seen in all
directions, more than two cores have time for: predictions begin on the wrong side of most cameras. The encoder's own
features already tell which patches of two pictures show the same spot. What three or more pictures agree on becomes a
depth for the patch, and training starts from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aceg_ros.encoders.base import Encoder
from aceg_ros.mapping.augmentation import Picture
from aceg_ros.mapping.matching import MAX_ERROR_CELLS, Seen, Sketches, choose_partners, look, match, measured_depths

MIN_PARALLAX_RAD = np.radians(1.0)
MIN_VIEWS = 3                          # that agree on a point, the patch's own among them


@dataclass(frozen=True)
class TriangulationOptions:
    """pictures: at most so many take part; partners: pictures that each is matched with; patches: of a picture."""

    pictures: int = 400
    partners: int = 8
    patches: int = 1800


def triangulate(pictures: Sequence[Picture], encoder: Encoder, device: str, options: TriangulationOptions,
                seed: int, deadline: float, should_stop: Callable[[], bool],
                report: Callable[[float], None], use_measured: bool = False) -> dict[int, np.ndarray]:
    """Depths (h, w), one for each cell, NaN where unknown, of the pictures that there was time for, by their index.

    See `triangulated_patches`. use_measured: of a patch that is found, the measured depth where there is one.
    """
    depths: dict[int, np.ndarray] = {}
    for index, seen, depth in triangulated_patches(pictures, encoder, device, options, seed, deadline, should_stop,
                                                   report):
        if use_measured:
            measured = measured_depths(pictures[index], seen)
            depth = torch.where(torch.isfinite(depth) & torch.isfinite(measured), measured, depth)
        grid = torch.full(seen.grid, float("nan"), device=depth.device)
        grid.view(-1)[seen.cells] = depth
        depths[index] = grid.cpu().numpy()
    return depths


def triangulated_patches(pictures: Sequence[Picture], encoder: Encoder, device: str, options: TriangulationOptions,
                         seed: int, deadline: float, should_stop: Callable[[], bool],
                         report: Callable[[float], None]) -> Iterator[tuple[int, Seen, Tensor]]:
    """Picture by picture, in random order: its index, its chosen patches, their depths (N,), NaN where unknown.

    Ends at the deadline (time.monotonic() seconds) or when should_stop turns true, with what it has: half of the time
    is for looking, in random order, the rest for matching those that were looked at.
    """
    rng = np.random.default_rng(seed)
    halfway = (time.monotonic() + deadline) / 2
    order = rng.permutation(len(pictures))[:options.pictures]
    looked: dict[int, Seen] = {}
    for number, index in enumerate(order):
        if time.monotonic() > halfway or should_stop():
            break
        seen = look(pictures[index], encoder, device, options.patches)
        if len(seen.cells):
            looked[int(index)] = seen
        report(0.4 * number / len(order))
    if not looked:
        return
    chosen = sorted(looked)
    views = [looked[index] for index in chosen]
    sketches = Sketches.of(views)
    for tried, number in enumerate(rng.permutation(len(chosen))):
        if time.monotonic() > deadline or should_stop():
            break
        partners = choose_partners(views[number], sketches, options.partners, encoder.stride)
        yield chosen[number], views[number], _depths(views[number], [views[partner] for partner in partners],
                                                     encoder.stride)
        report(0.4 + 0.6 * tried / len(chosen))


@dataclass(frozen=True)
class _Sights:
    """N rays of one picture as P others see them: a point at depth z is z turned + origin in their cameras.

    turned (P, N, 3), origin (P, 1, 3); pixels (P, N, 2): where they saw the match; matched (P, N);
    intrinsics (P, 1, 4).
    """

    turned: Tensor
    origin: Tensor
    pixels: Tensor
    matched: Tensor
    intrinsics: Tensor

    def candidates(self) -> Tensor:
        """Depths (P, N) by each match alone; NaN where there is none or it is not in front of both cameras.

        u (.)_z = (.)_x and v (.)_z = (.)_y are linear in z.
        """
        where = (self.pixels - self.intrinsics[..., 2:]) / self.intrinsics[..., :2]
        slope = self.turned[..., :2] - where * self.turned[..., 2:]
        offset = where * self.origin[..., 2:] - self.origin[..., :2]
        depth = (slope * offset).sum(-1) / (slope * slope).sum(-1).clamp(min=1e-12)
        in_front = (depth > 0) & (self.turned[..., 2] * depth + self.origin[..., 2] > 0)
        return torch.where(in_front & self.matched, depth, float("nan"))

    def project(self, depth: Tensor) -> Tensor:
        """Pixels (P, N, 2) of the points at `depth` (N,), far away where they are behind a camera."""
        local = self.turned * depth[:, None] + self.origin
        z = local[..., 2:]
        pixels = local[..., :2] / z.clamp(min=1e-6) * self.intrinsics[..., :2] + self.intrinsics[..., 2:]
        return torch.where(z > 1e-6, pixels, 1e6)

    def errors(self, depth: Tensor) -> Tensor:
        """Distance (P, N) in pixels between where each saw its match and where `depth` (N,) puts it."""
        return torch.nan_to_num((self.project(depth) - self.pixels).norm(dim=-1), nan=1e6)

    def refine(self, depth: Tensor, used: Tensor) -> Tensor:
        """Depth (N,) after three Gauss-Newton steps on the errors of the `used` (P, N)."""
        for _ in range(3):
            step = 1e-3 * depth
            here = self.project(depth)
            slope = (self.project(depth + step) - here) / step[:, None]
            gradient = torch.where(used, (slope * (here - self.pixels)).sum(-1), 0.0).sum(0)
            curvature = torch.where(used, (slope * slope).sum(-1), 0.0).sum(0)
            moved = depth - gradient / curvature.clamp(min=1e-12)
            depth = torch.where(moved > 0.5 * depth, moved, depth)
        return depth


@torch.inference_mode()
def _depths(anchor: Seen, partners: list[Seen], stride: int) -> Tensor:
    """Depths (N,) of the anchor's patches along its optical axis, NaN where fewer than MIN_VIEWS agree."""
    if len(partners) < MIN_VIEWS - 1:
        return anchor.pixels.new_full((len(anchor.pixels),), float("nan"))
    limit = MAX_ERROR_CELLS * stride
    matches = [match(anchor, partner, stride) for partner in partners]
    sights = _Sights(
        torch.stack([anchor.rays @ partner.camera_from_map[:, :3].T for partner in partners]),
        torch.stack([partner.camera_from_map[:, :3] @ anchor.centre + partner.camera_from_map[:, 3]
                     for partner in partners])[:, None],
        torch.stack([partner.pixels[found.clamp(min=0)] for found, partner in zip(matches, partners, strict=True)]),
        torch.stack(matches) >= 0, torch.stack([partner.intrinsics for partner in partners])[:, None])
    candidates = sights.candidates()
    agree = torch.stack([sights.errors(depth) < limit for depth in candidates]) & sights.matched      # (P, P, N)
    best = agree.sum(1).argmax(0)
    used = agree.gather(0, best[None, None].expand(1, len(partners), -1))[0]
    depth = sights.refine(candidates.gather(0, best[None])[0], used)
    used &= sights.errors(depth) < limit
    points = anchor.rays * depth[:, None] + anchor.centre
    to_partners = torch.stack([partner.centre for partner in partners])[:, None] - points
    cosine = torch.nn.functional.cosine_similarity(to_partners, (anchor.centre - points)[None], dim=-1)
    parallax = torch.where(used, torch.arccos(cosine.clamp(-1.0, 1.0)), 0.0).amax(0)
    good = (used.sum(0) >= MIN_VIEWS - 1) & (parallax > MIN_PARALLAX_RAD)
    return torch.where(good, depth, float("nan"))
