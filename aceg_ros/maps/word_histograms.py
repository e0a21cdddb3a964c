# SPDX-License-Identifier: Apache-2.0
"""How often keyframes have each visual word, and how much a word tells."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix


def count_words(words: np.ndarray, starts: np.ndarray, size: int) -> csr_matrix:
    """Return (F, size) int64: how often each of `size` words occurs in each of F keyframes, whose words (N,) are
    starts[f] to starts[f + 1]. The words of a row are ascending."""
    # A copy, since summing changes words and starts in place.
    counts = csr_matrix((np.ones(len(words), np.int64), words, starts), shape=(len(starts) - 1, size), copy=True)
    counts.sum_duplicates()
    return counts


def rarity_of(counts: csr_matrix) -> np.ndarray:
    """Return weights (W,) float32 of words: the fewer keyframes have a word, the more it tells."""
    keyframes, size = counts.shape
    containing = np.bincount(counts.indices, minlength=size)
    return np.log((1.0 + keyframes) / (1.0 + containing)).astype(np.float32)
