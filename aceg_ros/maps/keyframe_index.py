# SPDX-License-Identifier: Apache-2.0
"""What a large keyframe database is opened by: small tensors, from which the few keyframes of an image are found.

The observations of a large map stay in its file and are read by keyframe. Each keyframe has a checksum, which is
compared when it is first used, so that opening a map need not read all of it. Keyframes are found in two steps: a short
vector of each, a random projection of its histogram of visual words (Johnson and Lindenstrauss, 1984), selects some,
and the histograms of these are compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from aceg_ros.errors import UserError
from aceg_ros.maps.sections import BLOCK_CHECKSUMS, BLOCK_TENSORS
from aceg_ros.maps.word_histograms import count_words, rarity_of

PREFIX = "index_"
VECTOR_DIM, VECTOR_SCALE = 512, 127     # of the short vectors, int8
SELECTED = 500                          # keyframes that are compared by their histograms


class Observations(Protocol):
    """The tensors of a `KeyframeDatabase` that have checksums by keyframe."""

    @property
    def first(self) -> Tensor: ...

    @property
    def landmarks(self) -> Tensor: ...

    @property
    def pixels(self) -> Tensor: ...

    @property
    def descriptors(self) -> Tensor: ...

    @property
    def words(self) -> Tensor: ...

    @property
    def points(self) -> Tensor: ...


class IndexedDatabase(Observations, Protocol):
    """What an index is made of."""

    @property
    def vocabulary(self) -> Tensor: ...

    @property
    def depths_m(self) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class KeyframeIndex:
    """An index of F keyframes.

    offsets: (F + 1,) int64; the distinct words of keyframe f are offsets[f] to offsets[f + 1]. words: (M,) int16.
    counts: (M,) uint8, how often each occurs, at most 255. rarity: (W,) weights of the words. lengths: (F,) of the
    weighted histograms. vectors: (F, VECTOR_DIM) int8. depths: (F,) median depth of the landmarks, metres. checksums:
    (F,) int64 of the observations of each keyframe and their points.
    """

    offsets: Tensor
    words: Tensor
    counts: Tensor
    rarity: Tensor
    lengths: Tensor
    vectors: Tensor
    depths: Tensor
    checksums: Tensor

    @classmethod
    def build(cls, database: IndexedDatabase) -> KeyframeIndex:
        """Build the index of a database in memory."""
        histograms = count_words(database.words.numpy(), database.first.numpy(), len(database.vocabulary))
        words, counts, offsets = histograms.indices, histograms.data.clip(max=255), histograms.indptr
        rarity, projection = rarity_of(histograms), projection_of(len(database.vocabulary))
        weights, keyframes = np.sqrt(counts) * rarity[words], len(offsets) - 1
        vectors, lengths = np.zeros((keyframes, VECTOR_DIM), np.float32), np.zeros(keyframes, np.float32)
        for keyframe, (start, end) in enumerate(pairwise(offsets)):
            lengths[keyframe] = max(float(np.linalg.norm(weights[start:end])), 1e-9)
            vectors[keyframe] = weights[start:end] @ projection[words[start:end]]
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        scale = VECTOR_SCALE / max(float(np.abs(vectors).max()), 1e-9)
        sums = [block_checksum(database, keyframe) for keyframe in range(keyframes)]
        return cls(offsets=torch.from_numpy(offsets.astype(np.int64)), words=torch.from_numpy(words.astype(np.int16)),
                   counts=torch.from_numpy(counts.astype(np.uint8)),
                   rarity=torch.from_numpy(rarity), lengths=torch.from_numpy(lengths),
                   vectors=torch.from_numpy(np.round(vectors * scale).astype(np.int8)),
                   depths=torch.from_numpy(database.depths_m.astype(np.float32)),
                   checksums=torch.tensor(sums, dtype=torch.int64))

    def to_section(self) -> dict[str, Tensor]:
        """Return the tensors that are stored beside those of the database."""
        return {PREFIX + entry.name: getattr(self, entry.name) for entry in fields(self)}

    @classmethod
    def from_section(cls, section: Mapping[str, Tensor], keyframes: int) -> KeyframeIndex | None:
        """Read the index of a map section, None if it has none. Raises UserError if it does not fit together."""
        if BLOCK_CHECKSUMS not in section:
            return None
        try:
            # Copied: these tensors stay in use, and must not change with the file.
            index = cls(**{entry.name: section[PREFIX + entry.name].clone() for entry in fields(cls)})
        except KeyError as error:
            raise UserError(f"The map's index has no {error}: map the scene again.") from None
        fits = (index.offsets.shape == (keyframes + 1,) and int(index.offsets[-1]) == len(index.words)
                and index.counts.shape == index.words.shape and index.lengths.shape == (keyframes,)
                and index.vectors.shape == (keyframes, VECTOR_DIM) and index.depths.shape == (keyframes,)
                and index.checksums.shape == (keyframes,))
        if not fits:
            raise UserError("The map's index does not fit together: map the scene again.")
        return index

    def verify(self, database: Observations, keyframes: Iterable[int]) -> None:
        """Compare keyframes with their checksums, each once. Raises UserError if one is damaged."""
        for keyframe in keyframes:
            if not self._verified[keyframe]:
                if block_checksum(database, int(keyframe)) != int(self.checksums[keyframe]):
                    raise UserError(f"Keyframe {int(keyframe)} of the map is damaged (its checksum does not match): map"
                                    " the scene again or restore the file from a backup.")
                self._verified[keyframe] = True

    def similarity(self, histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the keyframes (S,) that are compared with a weighted histogram (W,) of words, and their similarity."""
        if len(self.lengths) > SELECTED:
            coarse = self._float_vectors @ (histogram @ projection_of(len(histogram)))
            chosen = np.sort(np.argpartition(-coarse, SELECTED)[:SELECTED])
        else:
            chosen = np.arange(len(self.lengths))
        offsets = self.offsets.numpy()
        starts, sizes = offsets[chosen], offsets[chosen + 1] - offsets[chosen]
        ends = np.cumsum(sizes)
        rows = np.arange(int(ends[-1])) + np.repeat(starts - (ends - sizes), sizes)
        weighted = (histogram * self.rarity.numpy()).astype(np.float32)
        products = weighted[self.words.numpy()[rows]] * _ROOTS[self.counts.numpy()[rows]]
        sums = np.bincount(np.repeat(np.arange(len(chosen)), sizes), products, len(chosen))
        return chosen, (sums / self.lengths.numpy()[chosen]).astype(np.float32)

    @cached_property
    def _float_vectors(self) -> np.ndarray:
        vectors = self.vectors.numpy().astype(np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

    @cached_property
    def _verified(self) -> np.ndarray:
        return np.zeros(len(self.checksums), bool)


_ROOTS = np.sqrt(np.arange(256)).astype(np.float32)
_PROJECTIONS: dict[int, np.ndarray] = {}


def projection_of(words: int) -> np.ndarray:
    """Return the random signs (W, VECTOR_DIM) that histograms of W words are projected by, the same for every map."""
    if words not in _PROJECTIONS:
        signs = np.random.default_rng(0).integers(0, 2, (words, VECTOR_DIM)) * 2.0 - 1.0
        _PROJECTIONS[words] = (signs / np.sqrt(VECTOR_DIM)).astype(np.float32)
    return _PROJECTIONS[words]


def block_checksum(database: Observations, keyframe: int) -> int:
    """Return a checksum of the observations of a keyframe and of their points; 0 if they refer to none."""
    start, end = int(database.first[keyframe]), int(database.first[keyframe + 1])
    digest, landmarks = hashlib.blake2b(digest_size=8), database.landmarks[start:end].numpy()
    if len(landmarks) and (landmarks.min() < 0 or landmarks.max() >= len(database.points)):
        return 0
    for name in BLOCK_TENSORS:
        tensor = getattr(database, name)
        part = tensor.numpy()[landmarks] if name == "points" else tensor[start:end].numpy()
        digest.update(np.ascontiguousarray(part).tobytes())
    return int.from_bytes(digest.digest(), "little", signed=True)


def verify_all(tensors: Mapping[str, Tensor]) -> None:
    """Compare every keyframe of a section with its checksum. Raises UserError, naming the first damaged one."""
    index = KeyframeIndex.from_section(tensors, len(tensors["first"]) - 1)
    if index is not None:
        index.verify(_SectionTensors(tensors), range(len(index.checksums)))


class _SectionTensors:
    """The tensors of a section as attributes."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.first, self.landmarks, self.pixels = tensors["first"], tensors["landmarks"], tensors["pixels"]
        self.descriptors, self.words, self.points = tensors["descriptors"], tensors["words"], tensors["points"]
