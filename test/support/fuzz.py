# SPDX-License-Identifier: Apache-2.0
"""Fuzz the package for a time: `make fuzz`. Prints how many inputs each target took, and what they found.

    python test/support/fuzz.py --seconds 600 [--seed 0] [TARGET...]
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

from fuzz_targets import TARGETS, Target
from hypothesis import HealthCheck, Phase, given, seed, settings

MAX_MEMORY_BYTES = 6 << 30        # beyond what is mapped at the start: an input that wants more is a finding
ROUND = 100                       # inputs between two looks at the clock


def fuzz(target: Target, folder: Path, seconds: float, first_seed: int) -> tuple[int, str]:
    """Returns the number of inputs, and the traceback of the first one that failed, or nothing."""
    count, deadline_s = 0, time.monotonic() + seconds
    inputs = target.inputs(folder)
    number = first_seed
    while time.monotonic() < deadline_s:

        @settings(max_examples=ROUND, deadline=None, database=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))
        @given(inputs)
        def check(value) -> None:
            nonlocal count
            count += 1
            target.run(folder, value)

        try:
            seed(number)(check)()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return count, "".join(traceback.format_exception(error, limit=-8))
        number += 1
    return count, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first inputs")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    mapped = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MAX_MEMORY_BYTES, resource.RLIM_INFINITY))
    logging.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)      # the warnings of OpenCV and of its libraries
    print(f"{options.seconds:.0f} s, seed {options.seed}", flush=True)
    failed = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            count, failure = fuzz(TARGETS[name], Path(folder), options.seconds / len(names), options.seed)
        print(f"{name:24} {count:8} inputs   {'FAILED' if failure else 'nothing found'}", flush=True)
        if failure:
            failed.append(name)
            print(failure, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
