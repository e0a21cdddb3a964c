# SPDX-License-Identifier: Apache-2.0
"""Child processes that must not outlive their parent."""

from __future__ import annotations

import ctypes
import signal
import sys

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Ask Linux to send this process SIGTERM when its parent thread ends, however it ends. For `preexec_fn`."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGTERM)      # PR_SET_PDEATHSIG
