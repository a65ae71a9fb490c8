"""Keep freed memory in the process, so that the next batch does not fetch it from the kernel page by page.

glibc hands large freed blocks back at once, and every batch then pays for fresh, zeroed pages: up to half
of an epoch on the CPU. Called once where a process begins to compute; nothing else has to know.
"""

from __future__ import annotations

import ctypes

# From glibc's malloc.h: free memory at the top of the heap that is kept, memory fetched beyond what is asked
# for, and from which size on a block is mapped by itself and unmapped when freed (glibc caps the last).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_MEBIBYTE = 1024**2


def keep_freed_memory() -> bool:
    """Have glibc keep up to 512 MiB of freed memory; tells whether this is glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # macOS, musl
        return False
    mallopt(_MMAP_THRESHOLD, 512 * _MEBIBYTE)
    mallopt(_TRIM_THRESHOLD, 512 * _MEBIBYTE)
    mallopt(_TOP_PAD, 16 * _MEBIBYTE)
    return True
