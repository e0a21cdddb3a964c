# SPDX-License-Identifier: Apache-2.0
"""The `aceg` command: a module for each verb, with its flags (`add_parser`) and what it does (`run`)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from aceg_ros import __version__
from aceg_ros.cli import (
    batch,
    bench,
    compare,
    coverage,
    demo,
    evaluate,
    extend,
    import_weights,
    info,
    localize,
    merge,
    play,
    pretrain,
    reconstruct,
    record,
    view,
)
from aceg_ros.cli import map as map_verb
from aceg_ros.errors import UserError

_VERBS = (map_verb, extend, merge, batch, reconstruct, localize, evaluate, coverage, compare, play, record, view, info,
          import_weights, demo, bench, pretrain)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of the process.

    Returns:
        The exit code: 0; 2 on bad usage or bad files, after one sentence on stderr; 130 on Ctrl-C.
    """
    options = make_parser().parse_args(arguments)
    _set_up_process()
    try:
        return options.run(options) or 0
    except UserError as error:
        print(f"aceg: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("aceg: interrupted.", file=sys.stderr)
        return 130


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aceg", description="Map a scene from posed images, often within a minute; then localize others in it.",
        epilog="Example: aceg map recording/ -o lab.map && aceg evaluate lab.map another_recording/")
    parser.add_argument("--version", action="version", version=f"aceg_ros {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in _VERBS:
        verb.add_parser(verbs)
    return parser


def _set_up_process() -> None:
    import cv2

    from aceg_ros.utils.malloc import configure_malloc
    configure_malloc()
    cv2.setNumThreads(1)                    # torch has the cores
