"""The process's heap on Linux with glibc: it keeps large blocks, and lies on huge pages, so that temporary tensors are
not made of fresh small pages each time.

torch can ask for huge pages itself (THP_MEM_ALLOC_ENABLE=1), block by block, each at a multiple of 2 MB: holes that
blocks leave then fit no block of the same size, and training takes a third more memory (docs/lab.md). So the heap's
addresses are reserved at once, for most of the memory that the machine has, and marked as a whole; nothing of it is
there before it is used. Where that cannot be, torch is asked.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MADV_HUGEPAGE = 14
_LARGEST = 1 << 30  # bytes; larger blocks are mapped, and given back when they are freed
_LARGEST_OF_OLD = 1 << 25  # what glibc before 2.35 allows
_HUGE_PAGE = 1 << 21
_OF_TORCH = "THP_MEM_ALLOC_ENABLE"
_on_huge_pages = False


def prepare_heap() -> None:
    """What the user has set for torch's huge pages stays; later calls change nothing."""
    if _on_huge_pages:
        return
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST) or libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_OF_OLD)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # nothing but `shrink_heap` gives anything back
        libc.mallopt(_M_TOP_PAD, 64 << 20)
    if _OF_TORCH not in os.environ and (libc is None or not _reserve(libc)):
        os.environ[_OF_TORCH] = "1"


def huge_pages() -> str | None:
    """By whom they were asked for: "heap", "torch", or None."""
    return "heap" if _on_huge_pages else "torch" if os.environ.get(_OF_TORCH) == "1" else None


def shrink_heap() -> None:
    """Gives back to the system what has been freed."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)
        if _on_huge_pages:
            _reserve(libc)


@cache
def _glibc() -> Any:
    """None where there is none."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    if not all(hasattr(libc, name) for name in ("mallopt", "malloc_trim", "sbrk", "madvise")):
        return None
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    libc.sbrk.argtypes = [ctypes.c_ssize_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


def _reserve(libc: Any) -> bool:
    """Makes the heap's addresses many, by a block that is freed at once, and marks what that added."""
    global _on_huge_pages
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4  # Linux refuses more than there is
    if _counts_addresses() or not libc.mallopt(_M_MMAP_THRESHOLD, -1):
        return False
    start = libc.sbrk(0)
    block = libc.malloc(size)
    end = libc.sbrk(0)
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
    if block:
        libc.free(block)
    start, end = -(-start // _HUGE_PAGE) * _HUGE_PAGE, end // _HUGE_PAGE * _HUGE_PAGE
    grown = end - start > size // 2  # not where other addresses were taken
    _on_huge_pages = grown and libc.madvise(start, end - start, _MADV_HUGEPAGE) == 0
    return _on_huge_pages


def _counts_addresses() -> bool:
    """Whether addresses are scarce, whatever lies behind them."""
    import resource

    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if any(limit != resource.RLIM_INFINITY for limit in limits):
        return True
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    except OSError:
        return True
