"""Progress bars and messages of the verbs on stderr, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


class StopOnInterrupt:
    """Handles Ctrl-C: the first one requests a stop (`is_requested`), a second one interrupts at once."""

    def __enter__(self) -> StopOnInterrupt:
        self._requested = False
        try:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        except ValueError:                       # not in the main thread, which alone receives signals
            self._previous = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, *_: object) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True
        tqdm.write("stopping: the map so far will be saved (Ctrl-C again to discard it)", file=sys.stderr)

    def is_requested(self) -> bool:
        """Return whether Ctrl-C was pressed."""
        return self._requested


def frame_bar(frames: Sequence[Any] | Iterable[Any], text: str) -> tqdm:
    """Wrap an iterable of frames in a progress bar, which is shown on a terminal only."""
    return tqdm(frames, text, unit="frame", leave=False, disable=None)


@contextmanager
def localizing_bar(total: int):
    """Show a progress bar while the block localizes `total` frames; yields the function to call after each frame."""
    with tqdm(total=total, desc="localizing", unit="frame", leave=False, disable=None) as bar:
        progress: Callable[[int, int], None] = lambda done, total: bar.update()  # noqa: E731
        yield progress


def print_skipped(reasons: Sequence[str], total: int) -> None:
    """Print how many frames of a scene were skipped, and the reasons for the first ones."""
    if reasons:
        print(f"aceg: {len(reasons)} of {total} frames skipped:", file=sys.stderr)
        for reason in reasons[:5]:
            print(f"  {reason}", file=sys.stderr)
        if len(reasons) > 5:
            print(f"  and {len(reasons) - 5} more", file=sys.stderr)
