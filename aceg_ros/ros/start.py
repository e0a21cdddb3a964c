# SPDX-License-Identifier: Apache-2.0
"""Start a node as a process: what has to be in force before anything that takes time is imported."""

from __future__ import annotations

import os
import signal
from importlib import import_module

INTERRUPTED = 130       # exit code, as shells have it for SIGINT


def start(module: str) -> int:
    """Import the module of a node and run its main(). Returns the exit code.

    Importing torch takes seconds. An interrupt in that time ends the process at once: there is nothing to clean up yet.
    """
    signal.signal(signal.SIGINT, exit_at_once)
    return import_module(module).main()


def exit_at_once(*_: object) -> None:
    """Handle SIGINT where nothing has to be cleaned up."""
    os._exit(INTERRUPTED)
