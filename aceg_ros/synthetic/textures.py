# SPDX-License-Identifier: Apache-2.0
"""Texture tiles of rendered rooms, procedural or from a folder, with mip levels for distant surfaces."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch

from aceg_ros.datasets.files import load_image
from aceg_ros.errors import UserError

TILE_PX = 128


@dataclass(frozen=True, kw_only=True)
class TextureAtlas:
    """T tiles with mip levels: levels[k] is (T, 128 / 2^k, 128 / 2^k, 3), float in [0, 1]."""

    levels: tuple[torch.Tensor, ...]

    def __len__(self) -> int:
        return len(self.levels[0])

    def sample(self, texture: torch.Tensor, uv: torch.Tensor, texels_per_px: torch.Tensor) -> torch.Tensor:
        """Sample colours (N, 3) bilinearly at uv (N, 2) in tiles, wrapped, at the mip level for texels_per_px (N,)."""
        level = torch.log2(texels_per_px.clamp(min=1.0)).round().long().clamp(max=len(self.levels) - 1)
        colours = torch.empty(len(uv), 3, device=uv.device)
        for index, tiles in enumerate(self.levels):
            chosen = (level == index).nonzero().squeeze(1)
            if len(chosen):
                colours[chosen] = _bilinear(tiles, texture[chosen], uv[chosen])
        return colours


def _bilinear(tiles: torch.Tensor, texture: torch.Tensor, uv: torch.Tensor) -> torch.Tensor:
    size = tiles.shape[1]
    position = (uv - uv.floor()) * size - 0.5
    corner = position.floor()
    weight = (position - corner).unsqueeze(-1)
    x0, y0 = corner[:, 0].long() % size, corner[:, 1].long() % size
    x1, y1 = (x0 + 1) % size, (y0 + 1) % size
    wx, wy = weight[:, 0], weight[:, 1]
    top = tiles[texture, y0, x0] * (1 - wx) + tiles[texture, y0, x1] * wx
    bottom = tiles[texture, y1, x0] * (1 - wx) + tiles[texture, y1, x1] * wx
    return top * (1 - wy) + bottom * wy


def make_atlas(tiles: np.ndarray, device: str = "cpu") -> TextureAtlas:
    """Make an atlas of tiles (T, 128, 128, 3) uint8."""
    level = torch.from_numpy(tiles).float().div(255).permute(0, 3, 1, 2)
    levels = []
    while level.shape[-1] >= 4:
        levels.append(level.permute(0, 2, 3, 1).contiguous().to(device))
        level = torch.nn.functional.avg_pool2d(level, 2)
    return TextureAtlas(levels=tuple(levels))


def load_tiles(folder: Path) -> np.ndarray:
    """Load all images of a folder as tiles (T, 128, 128, 3) uint8 RGB, in the order of their names."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".png"})
    if not paths:
        raise UserError(f"No texture images (.jpg, .png) in {folder}.")
    return np.stack([cv2.resize(load_image(path), (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA) for path in paths])


@lru_cache(maxsize=1)
def load_atlas(folder: Path | None, device: str = "cpu") -> TextureAtlas:
    """Load the textures of training rooms: procedural tiles, and those of a folder if one is given."""
    tiles = paint_tiles(256, 1)
    return make_atlas(tiles if folder is None else np.concatenate([tiles, load_tiles(folder)]), device)


def paint_tiles(count: int, seed: int) -> np.ndarray:
    """Generate tiles (count, 128, 128, 3) uint8: noise, stripes, bricks, shapes and letters."""
    painters = (_paint_noise, _paint_stripes, _paint_bricks, _paint_shapes, _paint_letters, _paint_shapes)
    rng = np.random.default_rng(seed)
    return np.stack([painters[index % len(painters)](rng) for index in range(count)])


def _noise(rng: np.random.Generator, octaves: int = 6) -> np.ndarray:
    """Generate fractal value noise (128, 128) in about [-1, 1], which wraps at the borders."""
    total = np.zeros((TILE_PX, TILE_PX), np.float32)
    for octave in range(octaves):
        cells = 4 * 2**octave // 2
        grid = rng.normal(size=(cells, cells)).astype(np.float32)
        wrapped = np.pad(grid, 1, mode="wrap")
        scale = TILE_PX // cells
        large = cv2.resize(wrapped, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        total += large[scale:-scale, scale:-scale] * 0.62**octave
    return total / 2.0


def _tint(rng: np.random.Generator) -> np.ndarray:
    grey = rng.uniform(0.15, 0.9)
    return np.clip(grey + rng.normal(0, 0.12, 3), 0.03, 0.97).astype(np.float32)


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def _paint_noise(rng: np.random.Generator) -> np.ndarray:
    blend = 1 / (1 + np.exp(-rng.uniform(1, 4) * _noise(rng)[..., None]))
    return _to_uint8(_tint(rng) * blend + _tint(rng) * (1 - blend) + 0.03 * rng.normal(size=(TILE_PX, TILE_PX, 1)))


def _paint_stripes(rng: np.random.Generator) -> np.ndarray:
    """Wood-like grain: stripes bent by noise."""
    rows = np.arange(TILE_PX, dtype=np.float32)[:, None] / TILE_PX
    wave = np.sin(2 * np.pi * rng.integers(3, 12) * rows + rng.uniform(1, 5) * _noise(rng, 4))[..., None]
    return _to_uint8(_tint(rng) + 0.12 * wave + 0.12 * _noise(rng)[..., None])


def _paint_bricks(rng: np.random.Generator) -> np.ndarray:
    image = np.ones((TILE_PX, TILE_PX, 3), np.float32) * _tint(rng)
    rows, columns = int(rng.integers(3, 7)), int(rng.integers(2, 5))
    base = _tint(rng)
    height, width = TILE_PX // rows, TILE_PX // columns
    for row in range(rows):
        for column in range(columns):
            left, top = column * width + (row % 2) * width // 2, row * height
            colour = (base + rng.normal(0, 0.06, 3)).tolist()
            cv2.rectangle(image, (left + 2, top + 2), (left + width - 2, top + height - 2), colour, -1)
    return _to_uint8(image + 0.08 * _noise(rng)[..., None])


def _paint_shapes(rng: np.random.Generator) -> np.ndarray:
    """A poster: overlapping rectangles, discs and lines."""
    image = np.ones((TILE_PX, TILE_PX, 3), np.float32) * _tint(rng)
    for _ in range(int(rng.integers(6, 22))):
        x, y, radius = (int(v) for v in (*rng.integers(0, TILE_PX, 2), rng.integers(3, 36)))
        colour = _tint(rng).tolist()
        kind = rng.integers(3)
        if kind == 0:
            cv2.circle(image, (x, y), radius, colour, -1, cv2.LINE_AA)
        elif kind == 1:
            cv2.rectangle(image, (x, y), (x + radius, y + int(rng.integers(3, 40))), colour, -1)
        else:
            end = rng.integers(0, TILE_PX, 2)
            cv2.line(image, (x, y), (int(end[0]), int(end[1])), colour, int(rng.integers(1, 6)), cv2.LINE_AA)
    return _to_uint8(image + 0.05 * _noise(rng)[..., None])


def _paint_letters(rng: np.random.Generator) -> np.ndarray:
    """Print: lines of letters of one size, as on labels, books and notices."""
    image = _to_uint8(np.ones((TILE_PX, TILE_PX, 3), np.float32) * _tint(rng))
    alphabet = list("ABCDEFGHIJKLMNOPRSTUVXYZ0123456789acdefghkmnprstuvxyz   ")
    size = rng.uniform(0.3, 1.1)
    for y in range(int(18 * size) + 2, TILE_PX, int(30 * size) + 2):
        line = "".join(rng.choice(alphabet, 24))
        cv2.putText(image, line, (int(rng.integers(-8, 6)), y), cv2.FONT_HERSHEY_SIMPLEX, size,
                    (255 * _tint(rng)).tolist(), int(rng.integers(1, 3)), cv2.LINE_AA)
    return image
