"""What the verbs say on stderr while and after they work."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


class StopOnInterrupt:
    """The first Ctrl-C asks for an orderly end; a second one interrupts at once."""

    def __enter__(self) -> StopOnInterrupt:
        self._asked = False
        try:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        except ValueError:                       # not in the main thread: nothing to catch there
            self._previous = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, *_: object) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        tqdm.write("stopping: the map so far will be saved (Ctrl-C again to drop it)", file=sys.stderr)

    def asked(self) -> bool:
        return self._asked


def frame_bar(frames: Sequence[Any] | Iterable[Any], text: str) -> tqdm:
    """Return the frames with a progress bar, on a terminal."""
    return tqdm(frames, text, unit="frame", leave=False, disable=None)


@contextmanager
def localizing_bar(total: int):
    """A progress bar for as many frames; the body gets the function that tells of one more: (done, total)."""
    with tqdm(total=total, desc="localizing", unit="frame", leave=False, disable=None) as bar:
        progress: Callable[[int, int], None] = lambda done, total: bar.update()  # noqa: E731
        yield progress


def print_skipped(reasons: Sequence[str], total: int) -> None:
    """Say how many of the frames of a scene were skipped, and why the first ones."""
    if reasons:
        print(f"aceg: {len(reasons)} of {total} frames skipped:", file=sys.stderr)
        for reason in reasons[:5]:
            print(f"  {reason}", file=sys.stderr)
        if len(reasons) > 5:
            print(f"  and {len(reasons) - 5} more", file=sys.stderr)
