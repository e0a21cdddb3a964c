# SPDX-License-Identifier: Apache-2.0
"""Finds the keyframes that show what an image shows, by a bag of visual words.

Descriptors are quantised to the words of the map's vocabulary; images are compared by the cosine of their histograms
of words, of which rare ones count more (Sivic and Zisserman, Video Google, ICCV 2003) and repeated ones less (roots).
The cost grows with the keyframes that share words with the image, not with their descriptors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aceg_ros.maps.keyframe_database import KeyframeDatabase, quantised
from aceg_ros.maps.keyframe_index import KeyframeIndex
from aceg_ros.maps.word_histograms import count_words, rarity_of
from aceg_ros.utils.device import multiplies_int8, product_type
from aceg_ros.utils.int8_products import Int8Vectors, two_greatest
from aceg_ros.utils.maxima import row_maxima, row_values

_AT_ONCE = 100          # descriptors that are compared with all landmarks: larger products do not stay in the cache
_WORDS_AT_ONCE = 1024   # descriptors that are compared with all words


class KeyframeWords(Protocol):
    """Keyframes whose descriptors have visual words: a `KeyframeDatabase` or `PosedKeyframes`. words (N,), ordered by
    keyframe; those of keyframe f are starts[f] to starts[f + 1]; vocabulary (W, C)."""

    def __len__(self) -> int: ...

    @property
    def words(self) -> Tensor: ...

    @property
    def vocabulary(self) -> Tensor: ...

    @property
    def starts(self) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class Shortlist:
    """Keyframes (K,), the most similar first, and their similarity (K,) as a share of that of the first."""

    keyframes: np.ndarray
    similarity: np.ndarray

    @classmethod
    def best(cls, keyframes: np.ndarray, scores: np.ndarray, count: int) -> Shortlist:
        """Return the `count` keyframes with the greatest scores (K,)."""
        order = np.argsort(-scores, kind="stable")[:count]
        return cls(keyframes=keyframes[order], similarity=scores[order] / max(scores[order[0]], 1e-9))


class WordRetrieval:
    """The histograms of all keyframes, or the index that a large database has of them."""

    def __init__(self, database: KeyframeWords, device: str = "cpu", index: KeyframeIndex | None = None):
        self._vocabulary = _as_multiplied(database.vocabulary, torch.device(device))
        self._index = index
        if index is None:
            self._make_histograms(database)
        else:
            self._rarity = index.rarity.numpy()

    def _make_histograms(self, database: KeyframeWords) -> None:
        counts = count_words(database.words.numpy(), database.starts, len(database.vocabulary))
        self._rarity, histograms = rarity_of(counts), counts.astype(np.float32)
        histograms.data = np.sqrt(histograms.data) * self._rarity[histograms.indices]
        length = np.sqrt(np.asarray(histograms.multiply(histograms).sum(1)).ravel())
        histograms.data /= np.repeat(np.maximum(length, 1e-9), np.diff(histograms.indptr))
        self._histograms = histograms

    def find(self, descriptors: Tensor, count: int) -> Shortlist:
        """Return the `count` keyframes most similar to an image with these descriptors (n, C)."""
        return Shortlist.best(*self._similarity(self._histogram_of(descriptors)), count)

    def greatest_similarity(self, descriptors: Tensor) -> float:
        """Return the cosine in [0, 1] of an image with these descriptors (n, C) and the keyframe most similar to it."""
        histogram = self._histogram_of(descriptors)
        return float(self._similarity(histogram)[1].max() / max(float(np.linalg.norm(histogram)), 1e-9))

    def _histogram_of(self, descriptors: Tensor) -> np.ndarray:
        words = assign_words(descriptors, self._vocabulary).cpu().numpy()
        return np.sqrt(np.bincount(words, minlength=len(self._rarity)).astype(np.float32)) * self._rarity

    def _similarity(self, histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the keyframes that are compared with a histogram, all or those that the index selects, and how similar
        they are."""
        if self._index is not None:
            return self._index.similarity(histogram)
        return np.arange(self._histograms.shape[0]), self._histograms @ histogram


class KeyframeRetrieval(WordRetrieval):
    """Retrieval in a database, whose landmarks tell more than words."""

    def __init__(self, database: KeyframeDatabase, device: str = "cpu"):
        super().__init__(database, device, database.index)
        self._database = database

    def rank_by_landmarks(self, descriptors: Tensor, keyframes: np.ndarray, count: int) -> Shortlist:
        """Return the `count` of some keyframes that see the landmarks most similar to an image's descriptors (n, C).

        Each descriptor votes for its most similar landmark, with the similarity times its lead over the second one;
        each keyframe has the votes of the landmarks that it observed, divided by the root of their number.
        """
        database = self._database
        rows = database.observations_of(keyframes)
        landmarks, seen = database.distinct_landmarks(rows)
        if len(landmarks) < 2 or len(descriptors) == 0:
            return Shortlist(keyframes=keyframes[:count], similarity=np.ones(min(count, len(keyframes))))
        stored = database.descriptors_of_landmarks(landmarks, rows, descriptors.device)
        votes = np.zeros(len(landmarks), np.float32)
        best, which, second = _two_greatest(descriptors, stored)
        np.maximum.at(votes, which, (best * (best - second)).clip(min=0.0))
        sizes = database.starts[keyframes + 1] - database.starts[keyframes]
        sums = np.bincount(np.repeat(np.arange(len(keyframes)), sizes), votes[seen], len(keyframes))
        return Shortlist.best(keyframes, sums / np.sqrt(np.maximum(sizes, 1)), count)


def _two_greatest(descriptors: Tensor, stored: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for descriptors (n, C) of unit length the greatest similarity (n,) to stored ones (L, C), which of them it
    is to (n,), and the second greatest similarity (n,)."""
    if stored.dtype == torch.int8:
        greatest = two_greatest(Int8Vectors.of(descriptors), stored)
        return greatest.similarity, greatest.row, greatest.second
    found = []
    for part in descriptors.to(stored.dtype).split(_AT_ONCE):
        similarity = part @ stored.T
        best, which = row_maxima(similarity)
        similarity[torch.arange(len(which), device=which.device), which] = -1.0
        found.append((best.float().cpu(), which.cpu(), row_values(similarity).float().cpu()))
    best, which, second = (torch.cat(parts) for parts in zip(*found, strict=True))
    return best.numpy(), which.numpy(), second.numpy()


def assign_words(descriptors: Tensor, vocabulary: Tensor) -> Tensor:
    """Return the most similar word (N,) of the vocabulary (W, C) for descriptors (N, C), both of unit length, in the
    type in which the device multiplies the fastest: words may be given in it, as `_as_multiplied` returns them."""
    words = _as_multiplied(vocabulary, descriptors.device)
    if words.dtype == torch.int8:
        parts = [torch.from_numpy(two_greatest(Int8Vectors.of(part), words).row).long()
                 for part in descriptors.split(_WORDS_AT_ONCE)]
    else:
        parts = [row_maxima(part.to(words.dtype) @ words.T)[1] for part in descriptors.split(8192)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)


def _as_multiplied(words: Tensor, device: torch.device) -> Tensor:
    """Return words (W, C), of unit length or int8, in the type in which a device multiplies the fastest."""
    kind = torch.int8 if multiplies_int8(device) else product_type(device)
    if words.dtype == kind:
        return words
    return quantised(words) if kind == torch.int8 else functional.normalize(words.to(device).float(), dim=1).to(kind)
