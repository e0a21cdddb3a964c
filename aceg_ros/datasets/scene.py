# SPDX-License-Identifier: Apache-2.0
"""`Scene`: the posed frames of one recording of any format, decoded one by one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aceg_ros.camera import Frame
from aceg_ros.errors import UserError

FRAME_PERIOD_S = 1.0 / 30.0     # stamps of formats that record no time: frame i was taken at i * FRAME_PERIOD_S


_FILE_OR_NUMBER = re.compile(r"[\d/\\]|\.\w")


class Entry(Protocol):
    """One listed frame. It takes little memory: only `load` decodes the image."""

    @property
    def name(self) -> str: ...

    def load(self) -> Frame:
        """Read image, pose and camera. Raises UserError with a sentence that names the bad file."""


@dataclass(frozen=True, kw_only=True)
class SkippedFrame:
    """A listed frame that cannot be used. reason: a sentence that names the file."""

    name: str
    reason: str


class Scene:
    """The frames of one recording, in the order in which they were taken.

    Iterating decodes the frames one by one, yields the usable ones and adds the others to `skipped`. It raises
    UserError if no frame is usable.
    """

    def __init__(self, name: str, format: str, entries: Sequence[Entry]) -> None:
        self.name = name
        self.format = format
        self._entries = entries
        self._skipped: dict[int, SkippedFrame] = {}

    def __len__(self) -> int:
        """Number of listed frames, usable or not."""
        return len(self._entries)

    def __iter__(self) -> Iterator[Frame]:
        for index in range(len(self)):
            try:
                yield self.frame(index)
            except UserError:
                continue
        if len(self._skipped) == len(self):
            reasons = " ".join(grouped_reasons([skipped.reason for skipped in self.skipped]))
            raise UserError(f"Scene {self.name} has no usable frame among {len(self)}: {reasons}")

    def frame(self, index: int) -> Frame:
        """Load one frame. If it cannot be used, adds it to `skipped` and raises UserError."""
        entry = self._entries[index]
        try:
            return entry.load()
        except UserError as error:
            self._skipped[index] = SkippedFrame(name=entry.name, reason=str(error))
            raise

    @property
    def skipped(self) -> list[SkippedFrame]:
        """The frames found unusable so far."""
        return [self._skipped[index] for index in sorted(self._skipped)]


class PosedFrames(Protocol):
    """A recording of any kind. len(...): number of listed frames; skipped: those found unusable so far."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Frame]: ...

    @property
    def skipped(self) -> list[SkippedFrame]: ...


class SceneGroup:
    """Several recordings with poses in one map frame, one after the other, as if they were one."""

    def __init__(self, scenes: Sequence[PosedFrames]) -> None:
        self._scenes = scenes

    def __len__(self) -> int:
        """Number of listed frames, usable or not."""
        return sum(len(scene) for scene in self._scenes)

    def __iter__(self) -> Iterator[Frame]:
        for scene in self._scenes:
            yield from scene

    @property
    def skipped(self) -> list[SkippedFrame]:
        """The frames found unusable so far, of all recordings."""
        return [skipped for scene in self._scenes for skipped in scene.skipped]


def grouped_reasons(reasons: Sequence[str], limit: int = 5) -> list[str]:
    """Sentences that say why frames were skipped: one of each kind, the commonest first, with how many more are like
    it. Of one kind are sentences that differ in names of files and numbers only; at most `limit` kinds are told."""
    kinds: dict[str, list[str]] = {}
    for reason in reasons:
        kind = " ".join("#" if _FILE_OR_NUMBER.search(word) else word for word in reason.split())
        kinds.setdefault(kind, []).append(reason)
    groups = sorted(kinds.values(), key=len, reverse=True)
    told = [f"{alike[0]} ({len(alike) - 1} more like it.)" if len(alike) > 1 else alike[0] for alike in groups[:limit]]
    rest = sum(len(alike) for alike in groups[limit:])
    return [*told, f"And {rest} more, for other reasons."] if rest else told


def natural_order(path: Path | str) -> list[tuple[int, int, str, str]]:
    """Return a sort key by which frame9 comes before frame10."""
    parts = re.split(r"(\d+)", str(path))
    digits = [part.lstrip("0") if part.isdecimal() else "" for part in parts]      # int() takes 4300 at most
    return [(1, len(number), number, part) if part.isdecimal() else (0, 0, part, "")
            for part, number in zip(parts, digits, strict=True)]
