# SPDX-License-Identifier: Apache-2.0
"""Groups images of several cameras by their stamps: those that were taken at one moment belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
_RESTARTED_NS = 1_000_000_000       # stamps that jump back further are those of a recording that was started again


@dataclass(frozen=True, kw_only=True)
class ImageSet(Generic[T]):
    """Images of one moment, by name of the camera. stamp_ns: of the first of them."""

    stamp_ns: int
    images: dict[str, T]


class ImageSynchronizer(Generic[T]):
    """Puts images together whose stamps differ from that of a set's first by no more than a tolerance.

    A set is complete when all cameras are in it. Others end when a camera that is in it sends its next image, or any
    camera one that is too late for it.

    Args:
        names: of the cameras.
        tolerance_ns: largest difference.
        patient: whether each set waits for all cameras, as is right for recordings. Else a camera that was missing in
            the last set is not waited for, so that one that has failed delays nothing, and images that come after their
            set has ended are dropped.
    """

    def __init__(self, names: Sequence[str], tolerance_ns: int, patient: bool = True) -> None:
        self._names, self._tolerance_ns, self._patient = tuple(names), tolerance_ns, patient
        self._open: list[tuple[int, dict[str, T]]] = []         # by stamp
        self.clear()

    def add(self, name: str, stamp_ns: int, image: T) -> list[ImageSet[T]]:
        """Add an image, and return the sets that it completes or ends, in the order of their stamps."""
        self._awaited.add(name)
        if not self._patient and self._ended_ns - _RESTARTED_NS < stamp_ns <= self._ended_ns + self._tolerance_ns:
            return []
        for stamp, images in self._open:
            if abs(stamp_ns - stamp) <= self._tolerance_ns and name not in images:
                images[name] = image
                break
        else:
            self._open.append((stamp_ns, {name: image}))
            self._open.sort(key=lambda one: one[0])
        newest, done = self._open[-1][0], []
        while self._open and (self._open[0][0] < newest - self._tolerance_ns or any(
                self._awaited <= images.keys() for _, images in self._open)):
            done += self._take(1)       # whatever is older than a complete set will not be completed any more
        return done

    def flush(self) -> list[ImageSet[T]]:
        """Return the sets that are still waited for."""
        return self._take(len(self._open))

    def clear(self) -> None:
        """Drop the images that wait, and wait for all cameras again."""
        self._open.clear()
        self._awaited, self._ended_ns = set(self._names), -_RESTARTED_NS

    def _take(self, count: int) -> list[ImageSet[T]]:
        taken, self._open = self._open[:count], self._open[count:]
        if taken:
            self._ended_ns = taken[-1][0]
            self._awaited = set(self._names) if self._patient else set(taken[-1][1])
        return [ImageSet(stamp_ns=stamp, images={name: images[name] for name in self._names if name in images})
                for stamp, images in taken]
