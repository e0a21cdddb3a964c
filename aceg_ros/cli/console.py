# SPDX-License-Identifier: Apache-2.0
"""Progress bars and messages of the verbs on stderr, and Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from aceg_ros.utils.progress import JsonProgress, MappingProgressBar

if TYPE_CHECKING:
    from aceg_ros.datasets import SkippedFrame


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


class FrameBar(tqdm):
    """A progress bar over frames. Like a `Scene`, it knows which were skipped."""

    @property
    def skipped(self) -> Sequence[SkippedFrame]:
        return getattr(self.iterable, "skipped", ())


def frame_bar(frames: Sequence[Any] | Iterable[Any], text: str) -> FrameBar:
    """Wrap an iterable of frames in a progress bar, which is shown on a terminal only."""
    return FrameBar(frames, text, unit="frame", leave=False, disable=None)


@contextmanager
def localizing_bar(total: int):
    """Show a progress bar while the block localizes `total` frames; yields the function to call after each frame."""
    with tqdm(total=total, desc="localizing", unit="frame", leave=False, disable=None) as bar:
        progress: Callable[[int, int], None] = lambda done, total: bar.update()  # noqa: E731
        yield progress


def mapping_progress(options: argparse.Namespace) -> JsonProgress | MappingProgressBar:
    """Return what shows the progress of mapping, as --json-progress says."""
    return JsonProgress() if options.json_progress else MappingProgressBar()


def print_skipped(reasons: Sequence[str], total: int) -> None:
    """Print how many frames of a scene were skipped, and why, the commonest reasons first."""
    from aceg_ros.datasets.scene import grouped_reasons

    if reasons:
        print(f"aceg: {len(reasons)} of {total} frames skipped:", file=sys.stderr)
        for sentence in grouped_reasons(reasons):
            print(f"  {sentence}", file=sys.stderr)
