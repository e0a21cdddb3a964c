# SPDX-License-Identifier: Apache-2.0
"""Selects the keyframes of a database by what they add: landmarks, and how these look where they look different.

A second visit under the same light shows what the map has already. By night, or with things moved, it shows other
descriptors of the same landmarks, or other landmarks: these are new.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix
from torch.nn import functional

from aceg_ros.mapping.observation_table import ObservationTable

ALIKE = 0.85                        # similarity from which two observations of a landmark show the same
ENOUGH_ALIKE = 1                    # observations that are alike; more of them add nothing
MIN_NEW_SHARE, MIN_NEW = 0.15, 40   # of a keyframe's observations: with fewer that add something, it is left out
PAIRS_AT_ONCE = 65_536


@dataclass(frozen=True, kw_only=True)
class KeyframeChoice:
    """What may be chosen. count: largest number of observations. known: (F,) keyframes that stay if all of them fit."""

    count: int
    known: np.ndarray


def select_keyframes(table: ObservationTable, choice: KeyframeChoice) -> np.ndarray:
    """Select keyframes, and return which observations (N,) are theirs.

    The known keyframes stay, and those that add the most are added to them as long as they add enough. If these are
    more than fit, all are chosen anew, by what they add. Landmarks that were missed count half as much each time.
    """
    alike = _alike(table)
    weight = 0.5 ** table.missed[table.landmarks]
    sizes = np.bincount(table.keyframes, minlength=len(table.poses))
    chosen = _choose(table, alike, weight, start=choice.known, limit=len(table))
    if sizes[chosen].sum() > choice.count:
        chosen = _choose(table, alike, weight * chosen[table.keyframes], start=np.zeros_like(chosen),
                         limit=choice.count)
    return chosen[table.keyframes]


def _choose(table: ObservationTable, alike: csr_matrix, weight: np.ndarray, *, start: np.ndarray,
            limit: int) -> np.ndarray:
    """Choose keyframes one by one, beginning with some, until the best adds too little or does not fit. Returns which
    (F,) are chosen."""
    count = len(table.poses)
    sizes = np.bincount(table.keyframes, minlength=count)
    chosen = start.copy()
    seen = alike @ chosen[table.keyframes].astype(np.float32)
    while True:
        total = int(sizes[chosen].sum())
        gain = np.bincount(table.keyframes, weight * (seen < ENOUGH_ALIKE), count)
        gain[chosen | (total + sizes > limit) | (gain < np.maximum(MIN_NEW_SHARE * sizes, MIN_NEW))] = 0.0
        best = int(np.argmax(gain))
        if gain[best] <= 0.0:
            return chosen
        chosen[best] = True
        part = slice(*np.searchsorted(table.keyframes, [best, best + 1]).tolist())
        rows = alike[part]
        np.add.at(seen, rows.indices, 1.0)


def _alike(table: ObservationTable) -> csr_matrix:
    """Return which observations (N, N) of the same landmark show the same, each with itself too."""
    order = np.argsort(table.landmarks, kind="stable")
    landmark = table.landmarks[order]
    descriptors = functional.normalize(table.descriptors.float(), dim=1).half()
    left, right = [np.arange(len(table))], [np.arange(len(table))]
    for offset in range(1, int(np.bincount(landmark).max())):
        first = np.flatnonzero(landmark[offset:] == landmark[:-offset])
        for part in np.split(first, range(PAIRS_AT_ONCE, len(first), PAIRS_AT_ONCE)):
            a, b = order[part], order[part + offset]
            similarity = (descriptors[torch.from_numpy(a)].float() * descriptors[torch.from_numpy(b)].float()).sum(1)
            same = similarity.numpy() > ALIKE
            left += [a[same], b[same]]
            right += [b[same], a[same]]
    rows, columns = np.concatenate(left), np.concatenate(right)
    return coo_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(len(table), len(table))).tocsr()
