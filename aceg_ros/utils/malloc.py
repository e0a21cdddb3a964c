# SPDX-License-Identifier: Apache-2.0
"""Settings of glibc's malloc: keep freed memory in the process, because every image allocates large tensors again.

By default glibc returns blocks above 32 MB to the kernel at once and gets new ones page by page. On virtual machines
these page faults take several times as long as the arithmetic (51 ms instead of 11 ms for three passes over 48 MB).
"""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4          # glibc <malloc.h>


def configure_malloc() -> None:
    """Keep freed memory in the process from now on. Call once at program start.

    Does nothing if the C library has no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def release_free_memory() -> None:
    """Return free memory to the kernel. Call after rare work that needs much memory, such as loading a map.

    Otherwise fragmentation makes a process grow that repeats such work.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
