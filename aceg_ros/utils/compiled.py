# SPDX-License-Identifier: Apache-2.0
"""Loops over small arrays as machine code, by numba.

For what a frame does hundreds of times with a few hundred numbers, numpy's calls take ten times as long as the
arithmetic in them. Compiled functions also leave the interpreter to other threads while they run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])

# Sums may be reordered, so that they use the processor's vectors; infinities and NaN keep their meaning. Division by
# zero gives these, as in numpy: a check for it would keep loops from using vectors.
OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"contract", "nsz", "reassoc"}, "error_model": "numpy"}


def compiled(function: Function) -> Function:
    """Compile a function of arrays and numbers, which may call numpy's and other compiled ones.

    It is compiled for the types of its arguments when it is first called with them, which takes a second or so, and
    kept for later processes: beside its source or, where that cannot be written, in the user's cache.
    """
    try:
        return cast(Function, njit(function, cache=True, **OPTIONS))
    except RuntimeError:            # neither can be written
        return cast(Function, njit(function, **OPTIONS))
