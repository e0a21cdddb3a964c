# SPDX-License-Identifier: Apache-2.0
"""Progress reports of a mapping run, and their display."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass

from tqdm import tqdm

from aceg_ros.utils.atomic_file import without_nan


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One report of a mapping run.

    fraction: done of this stage, in [0, 1]. reprojection_px: running median error, NaN before training.
    """

    stage: str
    fraction: float
    remaining_s: float
    reprojection_px: float = float("nan")


class JsonProgress:
    """Prints each report as a line of JSON on stdout, for programs."""

    def __enter__(self) -> JsonProgress:
        return self

    def __exit__(self, *_: object) -> None: ...

    def show(self, progress: Progress) -> None:
        print(json.dumps(without_nan(asdict(progress))), flush=True)


class MappingProgressBar:
    """Shows stage, reprojection error and time left: a bar on a terminal, otherwise a line every 10 %."""

    def __enter__(self) -> MappingProgressBar:
        self._terminal = sys.stderr.isatty()
        self._printed = ("", -1)
        self._bar = tqdm(total=100, bar_format="{desc} |{bar}| {n:.0f}%{postfix}", disable=not self._terminal)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, progress: Progress) -> None:
        error = "" if math.isnan(progress.reprojection_px) else f"{progress.reprojection_px:.1f} px, "
        state = f"{error}at most {max(progress.remaining_s, 0):.0f} s left"
        if self._terminal:
            self._bar.set_description_str(f"{progress.stage:17}", refresh=False)
            self._bar.set_postfix_str(f" {state}", refresh=False)
            self._bar.n = 100 * progress.fraction
            self._bar.refresh()
        elif self._printed != (progress.stage, int(10 * progress.fraction)):
            self._printed = (progress.stage, int(10 * progress.fraction))
            print(f"{progress.stage}: {100 * progress.fraction:.0f} %, {state}", file=sys.stderr, flush=True)
