"""Processes that must not outlive the one that started them."""

from __future__ import annotations

import ctypes
import signal
import sys

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Be sent SIGTERM when the thread that started this process ends, even by SIGKILL. For `preexec_fn`."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGTERM)      # PR_SET_PDEATHSIG
