"""Groups images of several cameras by their stamps: those that were taken at one moment belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ImageSet(Generic[T]):
    """Images of one moment, by name of the camera. stamp_ns: of the first of them."""

    stamp_ns: int
    images: dict[str, T]


class ImageSynchronizer(Generic[T]):
    """Puts images together whose stamps differ from that of a set's first by no more than a tolerance.

    A set is complete when all cameras are in it. One that lacks some is given up waiting for when a camera that is in
    it sends its next image, or any camera one that is too late for it: then it is returned without them.
    """

    def __init__(self, names: Sequence[str], tolerance_ns: int) -> None:
        self._names, self._tolerance_ns = tuple(names), tolerance_ns
        self._open: list[tuple[int, dict[str, T]]] = []         # by stamp

    def add(self, name: str, stamp_ns: int, image: T) -> list[ImageSet[T]]:
        """Add an image, and return the sets that it completes or ends, in the order of their stamps."""
        for stamp, images in self._open:
            if abs(stamp_ns - stamp) <= self._tolerance_ns and name not in images:
                images[name] = image
                break
        else:
            self._open.append((stamp_ns, {name: image}))
            self._open.sort(key=lambda one: one[0])
        complete = [index for index, (_, images) in enumerate(self._open) if len(images) == len(self._names)]
        newest = max(stamp for stamp, _ in self._open)
        late = [index for index, (stamp, _) in enumerate(self._open) if stamp < newest - self._tolerance_ns]
        # Whatever is older than a complete set will not be completed any more.
        last = max([*complete, *late], default=-1)
        return self._take(last + 1)

    def flush(self) -> list[ImageSet[T]]:
        """Return the sets that are still waited for."""
        return self._take(len(self._open))

    def clear(self) -> None:
        self._open.clear()

    def _take(self, count: int) -> list[ImageSet[T]]:
        taken, self._open = self._open[:count], self._open[count:]
        return [ImageSet(stamp_ns=stamp, images={name: images[name] for name in self._names if name in images})
                for stamp, images in taken]
