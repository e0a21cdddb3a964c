# SPDX-License-Identifier: Apache-2.0
"""Keeps Python's garbage collector from the objects of libraries and maps, which live as long as the process."""

from __future__ import annotations

import gc


def exempt_present_objects() -> None:
    """Collect garbage, and exempt all objects that are left from later collections.

    With torch and a map there are 200,000 of them, and a full collection stops all threads for 100 ms. Objects that
    were exempted before are collected now if nothing needs them any more.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
