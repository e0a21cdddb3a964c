"""Keeps freed memory in the process: large tensors come and go with every picture.

glibc returns blocks above 32 MB to the kernel at once and gets them back page by page; on virtual machines those page
faults cost several times the arithmetic (measured: 51 ms -> 11 ms for three passes over 48 MB).
"""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4          # glibc <malloc.h>


def keep_heap() -> None:
    """Call once at program start. Does nothing where the C library has no mallopt."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_heap() -> None:
    """Return to the kernel what is free, after rare work that needed much: what its holes are filled with differs from
    time to time, so that a process that does such work again and again would grow."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
