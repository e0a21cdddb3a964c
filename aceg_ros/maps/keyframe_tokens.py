# SPDX-License-Identifier: Apache-2.0
"""Tokens of the keyframes of a database, which a cross-image regressor compares with a query.

They are made once, from the database alone, and quantised: a byte for each entry, or for each part of 8 entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aceg_ros.camera import Camera, project_map_points
from aceg_ros.errors import UserError
from aceg_ros.maps.keyframe_database import KeyframeDatabase, quantised
from aceg_ros.maps.product_quantizer import decode, encode, train_codebook

SECTION = "tokens"
TOKEN_PART_DIM = 8                  # entries of a token that share a byte in compact maps


class KeyframeLandmarks(NamedTuple):
    """Observations (M,) of one keyframe, and where its landmarks are in its image: pixels (M, 2)."""

    observations: np.ndarray
    pixels: np.ndarray


def select_landmarks(database: KeyframeDatabase, keyframe: int, count: int) -> KeyframeLandmarks:
    """Select at most `count` observations of a keyframe, those of the landmarks that most keyframes observe.

    Pixels are projections of the points, since compact maps have no others.
    """
    rows = np.arange(database.starts[keyframe], database.starts[keyframe + 1])
    order = np.random.default_rng(keyframe).permutation(len(rows))
    seen = database.observation_counts[database.landmark_array[rows]]
    rows = rows[order[np.argsort(-seen[order], kind="stable")]][:count]
    fx, fy, cx, cy = database.intrinsics[keyframe].tolist()
    width, height = database.sizes[keyframe].tolist()
    pixels, _ = project_map_points(database.points_array[database.landmark_array[rows]],
                                   Camera(width=width, height=height, fx=fx, fy=fy, cx=cx, cy=cy),
                                   database.pose_array[keyframe])
    return KeyframeLandmarks(rows, np.clip(pixels, 0.0, (width - 1.0, height - 1.0)))


@dataclass(frozen=True, kw_only=True)
class StoredTokens:
    """Tokens of F keyframes.

    first (F + 1,): the tokens of keyframe f are first[f] to first[f + 1]. landmarks (M,) int32: of the database.
    vectors (M, C) int8, of unit length, `quantised`.
    """

    first: Tensor
    landmarks: Tensor
    vectors: Tensor

    @classmethod
    def stack(cls, landmarks: Sequence[np.ndarray], vectors: Sequence[Tensor]) -> StoredTokens:
        """Store the tokens of keyframes: landmarks (M,) and vectors (M, C), of unit length, of each."""
        return cls(first=torch.tensor(np.cumsum([0, *map(len, landmarks)])),
                   landmarks=torch.from_numpy(np.concatenate(landmarks).astype(np.int32)),
                   vectors=quantised(torch.cat(list(vectors))).cpu())

    def of(self, keyframe: int) -> tuple[np.ndarray, Tensor]:
        """Return the landmarks (M,) and the vectors (M, C), of unit length, of a keyframe."""
        part = slice(int(self.first[keyframe]), int(self.first[keyframe + 1]))
        return self.landmarks[part].numpy(), functional.normalize(self.vectors[part].float(), dim=1)

    def to_section(self, compact: bool = False, seed: int = 0) -> dict[str, Tensor]:
        """Return the tensors of the map section; compact: product-quantised, an eighth of the size."""
        section = {"first": self.first, "landmarks": self.landmarks, "vectors": self.vectors}
        if compact:
            codebook = train_codebook(self.vectors, seed, TOKEN_PART_DIM).half()
            section |= {"vectors": encode(self.vectors, codebook.float()), "codebook": codebook}
        return section

    @classmethod
    def from_section(cls, section: Mapping[str, Tensor], database: KeyframeDatabase) -> StoredTokens:
        """Read a map section. Raises UserError if it does not fit the database."""
        try:
            first, landmarks, vectors = (section[name] for name in ("first", "landmarks", "vectors"))
            if "codebook" in section:
                vectors = quantised(decode(vectors, section["codebook"]))
        except (KeyError, RuntimeError, ValueError, IndexError) as error:
            raise UserError(f"The map's tokens cannot be read ({error!r}): map the scene again.") from None
        fits = (first.shape == (len(database) + 1,) and bool((first[1:] >= first[:-1]).all()) and int(first[0]) == 0
                and int(first[-1]) == len(landmarks) == len(vectors) and vectors.ndim == 2)
        if not fits or (len(landmarks) and not 0 <= int(landmarks.min()) <= int(landmarks.max())
                        < len(database.points)):
            raise UserError("The map's tokens do not fit its database: map the scene again.")
        return cls(first=first, landmarks=landmarks, vectors=vectors)
