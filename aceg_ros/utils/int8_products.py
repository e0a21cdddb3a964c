# SPDX-License-Identifier: Apache-2.0
"""The greatest similarities of vectors of 8-bit integers.

Processors without units for bf16 multiply such integers three to five times as fast as floats. Products are made in
parts that stay in a core's cache, and compiled code takes their maxima in one pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aceg_ros.utils.compiled import compiled

STORED_SCALE = 127                  # of stored vectors of unit length, which rounding leaves nearly so
_PART_SIZE, _MOST_ROWS = 400_000, 4096      # entries of a part, and rows
# Sizes of parts are rounded up to multiples of these: code is generated for each new one.
_ROWS, _COLUMNS = 32, 64


@dataclass(frozen=True, kw_only=True)
class Int8Vectors:
    """N vectors of unit length, times `scale`: rows (N or more, C) int8, of which those after the first N are zero."""

    rows: Tensor
    count: int
    scale: float

    @classmethod
    def of(cls, vectors: Tensor) -> Int8Vectors:
        """Round vectors (N, C) of unit length, with a scale at which they use all of the 8 bits."""
        count, dim = vectors.shape
        rows = np.zeros((max(-(-count // _COLUMNS), 1) * _COLUMNS, dim), np.int8)
        values = vectors.float().contiguous().cpu().numpy()
        scale = 127.0 / max(float(values.max(initial=1e-9)), -float(values.min(initial=0.0)))
        _round(values, np.float32(scale), rows)
        return cls(rows=torch.from_numpy(rows), count=count, scale=scale)

    def products(self, stored: Tensor) -> Iterator[Part]:
        """Multiply stored vectors (M, C) int8 with these, in parts. Each overwrites the one before."""
        most = min(max(_PART_SIZE // len(self.rows), _ROWS), _MOST_ROWS)
        count = -(-len(stored) // most)
        size = -(-len(stored) // max(count * _ROWS, 1)) * _ROWS
        buffer = torch.empty((size, len(self.rows)), dtype=torch.int32)
        for start in range(0, len(stored), max(size, 1)):
            part = rows = stored[start:start + size]
            if len(part) < size:
                rows = torch.nn.functional.pad(part, (0, 0, 0, size - len(part)))
            torch._int_mm(rows, self.rows.T, out=buffer)
            yield Part(start=start, values=buffer.numpy()[:len(part)], units=units_of(part.numpy(), self.scale))


@dataclass(frozen=True, kw_only=True)
class Part:
    """Products (m, N or more) int32 of m stored vectors, the first of which is `start`, and N vectors; units (m,), what
    the products of each stored vector are multiplied by to be cosines."""

    start: int
    values: np.ndarray
    units: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Greatest:
    """For each of N vectors the cosine similarity (N,) float32 of the most similar stored vector, its row (N,) int32,
    and the similarity (N,) of the second one."""

    similarity: np.ndarray
    row: np.ndarray
    second: np.ndarray


def two_greatest(vectors: Int8Vectors, stored: Tensor) -> Greatest:
    """Find the most similar of stored vectors (M, C) int8 for each vector."""
    similarity, second = (np.full(vectors.count, -1.0, np.float32) for _ in range(2))
    row = np.zeros(vectors.count, np.int32)
    for part in vectors.products(stored):
        _take_two_greatest(part.values, part.units, part.start, similarity=similarity, row=row, second=second)
    return Greatest(similarity=similarity, row=row, second=second)


def mutual_greatest(vectors: Int8Vectors, stored: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the most similar of stored vectors (M, C) int8 for each vector. Returns the cosine similarity (N,) float32,
    the rows (N,) int32 of the stored vectors, and the greatest similarity (N,) of these with any vector."""
    similarity, row = np.full(vectors.count, -1.0, np.float32), np.zeros(vectors.count, np.int32)
    returned = np.empty(len(stored), np.float32)
    for part in vectors.products(stored):
        _take_greatest(part.values, part.units, part.start, similarity=similarity, row=row, returned=returned)
    return similarity, row, returned[row]


@compiled
def _round(vectors: np.ndarray, scale: np.float32, rows: np.ndarray) -> None:
    """Write vectors (N, C) float32, times a scale, to rows (N or more, C) int8."""
    for number in range(vectors.shape[0]):
        for entry in range(vectors.shape[1]):
            rows[number, entry] = np.int8(np.rint(vectors[number, entry] * scale))


@compiled
def units_of(stored: np.ndarray, scale: float) -> np.ndarray:
    """Return what products of stored vectors (M, C) int8 with vectors of length `scale` are multiplied by (M,) to be
    cosines."""
    units = np.empty(len(stored), np.float32)
    for number in range(len(stored)):
        squared = np.int32(0)
        for entry in range(stored.shape[1]):
            squared += np.int32(stored[number, entry]) * np.int32(stored[number, entry])
        units[number] = 1.0 / (scale * np.sqrt(max(int(squared), 1)))
    return units


@compiled
def mean_descriptors(stored: np.ndarray, rows: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Return the means (count, C) int8, of unit length times STORED_SCALE, of the groups (M,) of rows (M,) of stored
    vectors (N, C) int8."""
    dim = stored.shape[1]
    sums = np.zeros((count, dim), np.int32)
    for number in range(len(rows)):
        total, vector = sums[groups[number]], stored[rows[number]]
        for entry in range(dim):
            total[entry] += vector[entry]
    means = np.zeros((count, dim), np.int8)
    for group in range(count):
        squared = np.float32(0.0)
        for entry in range(dim):
            squared += np.float32(sums[group, entry]) * np.float32(sums[group, entry])
        scale = np.float32(STORED_SCALE) / np.sqrt(max(squared, np.float32(1.0)))
        for entry in range(dim):
            means[group, entry] = np.int8(np.rint(np.float32(sums[group, entry]) * scale))
    return means


@compiled
def _take_two_greatest(values: np.ndarray, units: np.ndarray, start: int, similarity: np.ndarray, row: np.ndarray,
                       second: np.ndarray) -> None:
    """Update the greatest similarities of columns by those of a part."""
    for number in range(len(values)):
        unit, of_part = units[number], np.int32(start + number)
        for column in range(len(similarity)):
            value = np.float32(values[number, column]) * unit
            greatest = similarity[column]
            is_greater = value > greatest
            less = greatest if is_greater else value
            second[column] = less if less > second[column] else second[column]
            similarity[column] = value if is_greater else greatest
            row[column] = of_part if is_greater else row[column]


@compiled
def _take_greatest(values: np.ndarray, units: np.ndarray, start: int, similarity: np.ndarray, row: np.ndarray,
                   returned: np.ndarray) -> None:
    """Update the greatest similarities of columns by those of a part, and write those of its rows to `returned`."""
    for number in range(len(values)):
        unit, of_part, greatest = units[number], np.int32(start + number), values[number, 0]
        for column in range(len(similarity)):
            product = values[number, column]
            greatest = max(greatest, product)
            value = np.float32(product) * unit
            is_greater = value > similarity[column]
            similarity[column] = value if is_greater else similarity[column]
            row[column] = of_part if is_greater else row[column]
        returned[start + number] = np.float32(greatest) * unit
