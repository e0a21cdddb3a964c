# SPDX-License-Identifier: Apache-2.0
"""Product quantisation of descriptors (Jegou et al., PAMI 2011): a byte for each part of a descriptor.

Compact maps store descriptors this way; they are decoded when the map is loaded.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

CENTRES = 256                       # values that the entries of a descriptor that share a byte can take
SAMPLE, ROUNDS, BATCH = 20_000, 10, 8192


def train_codebook(descriptors: Tensor, seed: int, part_dim: int) -> Tensor:
    """Cluster the parts of descriptors (N, C), C a multiple of part_dim: codebook (C / part_dim, CENTRES, part_dim)."""
    generator = torch.Generator().manual_seed(seed)
    sample = descriptors[torch.randperm(len(descriptors), generator=generator)[:SAMPLE]].float()
    books = []
    for part in sample.split(part_dim, 1):
        centres = part[torch.randint(len(part), (CENTRES,), generator=generator)].clone()
        for _ in range(ROUNDS):
            nearest = torch.cdist(part, centres).argmin(1)
            sums = torch.zeros_like(centres).index_add_(0, nearest, part)
            size = torch.bincount(nearest, minlength=CENTRES)[:, None]
            centres = torch.where(size > 0, sums / size.clamp(min=1), centres)
        books.append(centres)
    return torch.stack(books)


def encode(descriptors: Tensor, codebook: Tensor) -> Tensor:
    """Return the codes (N, parts) uint8 of descriptors (N, C) in a codebook (parts, CENTRES, C / parts)."""
    parts = descriptors.float().split(codebook.shape[2], 1)
    codes = [torch.cat([torch.cdist(some, book).argmin(1) for some in part.split(BATCH)])
             for part, book in zip(parts, codebook, strict=True)]
    return torch.stack(codes, 1).to(torch.uint8)


def decode(codes: Tensor, codebook: Tensor) -> Tensor:
    """Return descriptors (N, C) of unit length from their codes (N, parts)."""
    parts = [book[part.long()] for part, book in zip(codes.T, codebook.float(), strict=True)]
    return functional.normalize(torch.cat(parts, 1), dim=1)
