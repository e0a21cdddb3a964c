# SPDX-License-Identifier: Apache-2.0
"""The history of a keyframe database that grew: which visit each keyframe is of, and what was missed since.

Maps that were made of one recording have no such section: all their keyframes are of visit 0, and nothing was missed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from aceg_ros.errors import UserError
from aceg_ros.maps.keyframe_database import KeyframeDatabase

SECTION = "history"


@dataclass(frozen=True, kw_only=True)
class KeyframeHistory:
    """visits (F,) int16: the recording that each keyframe is of, in the order in which they came. missed (L,) uint8:
    number of recordings that should have seen each landmark since it was seen last, and did not."""

    visits: Tensor
    missed: Tensor

    def to_section(self) -> dict[str, Tensor]:
        """Return the tensors of the map section."""
        return {"visits": self.visits, "missed": self.missed}

    @classmethod
    def of(cls, sections: Mapping[str, Mapping[str, Tensor]], database: KeyframeDatabase) -> KeyframeHistory:
        """Read the history of a map's database. Raises UserError if it does not fit."""
        if SECTION not in sections:
            return cls(visits=torch.zeros(len(database), dtype=torch.int16),
                       missed=torch.zeros(len(database.points), dtype=torch.uint8))
        section = sections[SECTION]
        visits, missed = section.get("visits"), section.get("missed")
        if visits is None or missed is None or visits.shape != (len(database),) \
                or missed.shape != (len(database.points),):
            raise UserError("The map's history does not fit its database: map the scene again.")
        return cls(visits=visits, missed=missed)
