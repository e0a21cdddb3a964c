# SPDX-License-Identifier: Apache-2.0
"""Draws batches of scene coordinates with poses: predictions of maps, and simulated ones, both augmented."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aceg_ros.camera import Camera
from aceg_ros.geometry import look_at
from aceg_ros.mapping.pose_tuning import PoseBatch, label_right, random_rolls, random_rotations
from aceg_ros.pretraining.marepo.coordinates import CoordinateImage
from aceg_ros.synthetic.camera_poses import random_viewpoint
from aceg_ros.synthetic.render import cast_depth
from aceg_ros.synthetic.room import random_room

GEOMETRY_ROOM, VIEWS_PER_ROOM = 6_000_000, 20            # first seed of the rooms whose depths are simulated
COLUMNS, ROWS = 40, 30
MIN_DEPTH = 0.05


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How samples are drawn. Ranges are those of a uniform distribution, or of the logarithm of one (log_).

    batch, tokens: sizes. real_share: share of samples from maps; the others are simulated.

    Of all samples: roll_rad, standard range of the roll; dropped_regions: probability that a region of the image is
    left out; unknown_confidence: that no token has a confidence. Of samples from maps: spoilt_share, in which
    added_outliers, largest share, of the tokens become outliers.

    Simulated: outliers, largest share of them; log_noise_px, of the direction, in pixels of a focal length of 525;
    log_depth_noise, relative; smooth_share, largest share of both that neighbouring cells have in common.
    """

    batch: int = 16
    tokens: int = 192
    real_share: float = 0.5
    roll_rad: float = math.radians(15)
    dropped_regions: float = 0.3
    unknown_confidence: float = 0.4
    spoilt_share: float = 0.7
    added_outliers: float = 0.8
    outliers: float = 0.85
    log_noise_px: tuple[float, float] = (0.5, 12.0)
    log_depth_noise: tuple[float, float] = (0.005, 0.1)
    smooth_share: float = 0.8


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Depth maps (V, ROWS, COLUMNS) of simulated views, and the focal length (V,) of each in columns."""

    depth: np.ndarray
    focal: np.ndarray


def cast_geometry(views: int, seed: int) -> Geometry:
    """Cast the depths of views in random rooms."""
    rng = np.random.default_rng(seed)
    depths, focals = [], []
    room = random_room(GEOMETRY_ROOM, 1)
    for number in range(views):
        if number % VIEWS_PER_ROOM == 0:
            room = random_room(GEOMETRY_ROOM + seed * 100_000 + number // VIEWS_PER_ROOM, 1)
        focal = COLUMNS * float(np.exp(rng.uniform(math.log(0.6), math.log(1.3))))
        camera = Camera(width=COLUMNS, height=ROWS, fx=focal, fy=focal, cx=(COLUMNS - 1) / 2, cy=(ROWS - 1) / 2)
        viewpoint = random_viewpoint(room, rng)
        target = viewpoint.target - (0, 0, rng.uniform(0, 1.2) ** 2)
        depths.append(cast_depth(room, camera, look_at(viewpoint.position, target)))
        focals.append(focal)
    return Geometry(depth=np.stack(depths).astype(np.float32), focal=np.array(focals, np.float32))


class PoseSampler:
    """Draws batches, each with its own random generator."""

    def __init__(self, images: Sequence[Sequence[CoordinateImage]], geometry: Geometry, options: SampleOptions):
        self._images, self._options = [each for each in images if each], options
        self._depth, self._focal = torch.from_numpy(geometry.depth), torch.from_numpy(geometry.focal)

    def draw(self, seed: tuple[int, ...]) -> PoseBatch:
        """Draw a batch."""
        options = self._options
        rng = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        real = int(rng.binomial(options.batch, options.real_share)) if self._images else 0
        parts = [self._real(rng) for _ in range(real)]
        if real < options.batch:
            parts += zip(*self._simulate(options.batch - real, generator), strict=True)
        points, rays, confidence, right = (torch.stack(column) for column in zip(*parts, strict=True))
        turn = random_rolls(options.batch, options.roll_rad, generator)
        moved = in_random_map(points @ turn, rays @ turn[:, :2, :2], generator)
        return moved._replace(confidence=confidence, right=right)

    def _real(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return tokens of an image of a map: points (N, 3) in the camera frame, rays (N, 2), confidence (N,), and
        which are right (N,)."""
        options = self._options
        scene = self._images[int(rng.integers(len(self._images)))]
        image = scene[int(rng.integers(len(scene)))]
        usable = np.flatnonzero(self._region(image.rays, rng))
        if len(usable) < options.tokens // 4:
            usable = np.arange(len(image.rays))
        chosen = rng.choice(usable, options.tokens, replace=len(usable) < options.tokens)
        points, rays, confidence = image.points_in_camera[chosen], image.rays[chosen], image.confidence[chosen]
        if rng.random() < options.spoilt_share:
            wrong = rng.random(options.tokens) < rng.uniform(0, options.added_outliers)
            points = np.where(wrong[:, None], points[rng.permutation(options.tokens)], points)
        if rng.random() < options.unknown_confidence:
            confidence = np.full_like(confidence, np.nan)
        if rng.random() < 0.5:                                     # a mirrored world is one, too
            points, rays = points * (-1, 1, 1), rays * (-1, 1)
        found = [torch.from_numpy(each).float() for each in (points, rays, confidence)]
        return found[0], found[1], found[2], label_right(found[0], found[1])

    def _region(self, rays: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return which cells are kept: all, or those outside of a rectangle, or those inside of one."""
        kind = rng.random() / self._options.dropped_regions
        if kind > 1:
            return np.ones(len(rays), bool)
        low, high = rays.min(0), rays.max(0)
        size = rng.uniform(0.3, 0.6, 2) if kind < 0.5 else rng.uniform(0.6, 0.9, 2)
        corner = low + rng.random(2) * (1 - size) * (high - low)
        inside = ((rays >= corner) & (rays <= corner + size * (high - low))).all(1)
        return ~inside if kind < 0.5 else inside

    def _simulate(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return tokens of simulated images: points (count, N, 3) in the camera frame with errors, their rays
        (count, N, 2), confidence (count, N) and whether they are right (count, N)."""
        options = self._options
        pick = torch.randint(len(self._depth), (count,), generator=generator)
        depth = warp_depth(self._depth[pick], generator).flatten(1)
        u, v = (torch.arange(n) - (n - 1) / 2 for n in (COLUMNS, ROWS))
        grid = torch.stack(torch.meshgrid(u, v, indexing="xy"), -1).reshape(1, -1, 2)
        rays = grid / (self._focal[pick] * _uniform((count,), 0.8, 1.25, generator))[:, None, None]
        cells = _cells_in_region(count, options, generator)
        rays, depth = rays.gather(1, cells[..., None].expand(-1, -1, 2)), depth.gather(1, cells)
        smooth = _smooth_fields(count, 4, generator).flatten(2).gather(2, cells[:, None].expand(-1, 4, -1))
        white = torch.randn((count, 3, options.tokens), generator=generator)
        share = _uniform((count, 1, 1), 0.0, options.smooth_share, generator)
        noise = share.sqrt() * smooth[:, :3] + (1 - share).sqrt() * white
        precision = (0.5 * torch.randn((count, options.tokens, 1), generator=generator)).exp()
        direction_noise = precision * _log_uniform((count, 1, 1), *options.log_noise_px, generator=generator) / 525
        depth_noise = _log_uniform((count, 1), *options.log_depth_noise, generator=generator)
        moved = depth * (depth_noise * noise[:, 2]).clamp(-0.7, 2.0).add(1)
        seen = rays + direction_noise * noise[:, :2].transpose(1, 2)
        points = torch.cat([seen, torch.ones_like(seen[..., :1])], -1) * moved[..., None]
        spoilt, wrong = self._with_outliers(points, smooth[:, 3], generator)
        return spoilt, rays, self._confidence(wrong, generator), (~wrong).float()

    def _with_outliers(self, points: Tensor, field: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Replace a share of the points (B, N, 3), partly in whole regions by the smooth field (B, N): by those of
        other cells with large errors, or by ones that are all moved in the same way. Returns which (B, N), too."""
        count, tokens, _ = points.shape
        share = _uniform((count, 1), 0.0, self._options.outliers, generator)
        regional = _uniform((count, 1), 0.0, 1.0, generator)
        score = regional * field + (1 - regional) * torch.randn((count, tokens), generator=generator)
        wrong = score.argsort(1).argsort(1) < share * tokens
        other = torch.rand((count, tokens), generator=generator).argsort(1)
        elsewhere = points.gather(1, other[..., None].expand(-1, -1, 3))
        size = points.flatten(1).std(1)[:, None, None]
        elsewhere = elsewhere + 0.3 * size * torch.randn(points.shape, generator=generator)
        together = (torch.rand((count, 1, 1), generator=generator) < 0.25) & (share < 0.45)[..., None]
        shifted = points @ random_rotations(count, 0.6, generator)
        shifted = shifted + size * torch.randn((count, 1, 3), generator=generator)
        return torch.where(wrong[..., None], torch.where(together, shifted, elsewhere), points), wrong

    def _confidence(self, wrong: Tensor, generator: torch.Generator) -> Tensor:
        """Draw confidences (B, N) that tell more or less which points are wrong, in some images none."""
        telling = _uniform((len(wrong), 1), 0.0, 3.0, generator)
        confidence = telling * (~wrong).float() + torch.randn(wrong.shape, generator=generator)
        known = torch.rand((len(wrong), 1), generator=generator) >= self._options.unknown_confidence
        return torch.where(known, confidence, torch.nan)


def warp_depth(depth: Tensor, generator: torch.Generator) -> Tensor:
    """Change depth maps (B, H, W) to those of other scenes, by their contrast and by smooth bumps: any are possible."""
    count = len(depth)
    scale = depth.flatten(1).median(1).values[:, None, None]
    contrast = _uniform((count, 1, 1), 0.5, 1.5, generator)
    bumps = _uniform((count, 1, 1), 0.0, 0.3, generator) * _smooth_fields(count, 1, generator)[:, 0]
    return ((depth / scale).clamp(min=0.02) ** contrast * bumps.exp()).clamp(min=MIN_DEPTH)


def in_random_map(points: Tensor, rays: Tensor, generator: torch.Generator) -> PoseBatch:
    """Move points in the camera frame (B, N, 3) to maps of random pose and scale."""
    count = len(points)
    rotation = random_rotations(count, math.pi, generator)
    scale = _log_uniform((count, 1), 0.67, 1.5, generator=generator)
    translation = torch.randn((count, 3), generator=generator)
    unknown = torch.full_like(points[..., 0], torch.nan)
    moved = scale[..., None] * points @ rotation.transpose(1, 2) + translation[:, None]
    return PoseBatch(points=moved, rays=rays, rotation=rotation, translation=translation, confidence=unknown,
                     right=unknown)


def _cells_in_region(count: int, options: SampleOptions, generator: torch.Generator) -> Tensor:
    """Draw cells (count, tokens) of the grid: of the whole, or of a window of it."""
    whole = torch.rand((count, 1), generator=generator) > options.dropped_regions
    found = []
    for size in (COLUMNS, ROWS):
        extent = torch.where(whole, float(size), size * _uniform((count, 1), 0.5, 0.9, generator))
        start = torch.rand((count, 1), generator=generator) * (size - extent)
        found.append((start + extent * torch.rand((count, options.tokens), generator=generator)).long()
                     .clamp(max=size - 1))
    return found[1] * COLUMNS + found[0]


def _smooth_fields(count: int, channels: int, generator: torch.Generator) -> Tensor:
    """Return smooth random fields (count, channels, ROWS, COLUMNS) of unit variance."""
    coarse = torch.randn((count, channels, 5, 6), generator=generator)
    fields = functional.interpolate(coarse, (ROWS, COLUMNS), mode="bicubic", align_corners=True)
    return fields / fields.std((2, 3), keepdim=True).clamp(min=1e-6)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _log_uniform(shape: tuple[int, ...], low: float, high: float, *, generator: torch.Generator) -> Tensor:
    return _uniform(shape, math.log(low), math.log(high), generator).exp()
