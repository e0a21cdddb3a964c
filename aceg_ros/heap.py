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
