"""Keeps memory bounded where the C library's allocator would not (glibc; elsewhere nothing is done)."""

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_M_ARENA_MAX: Final = -8
_NUM_ARENAS: Final = 2
_M_MMAP_THRESHOLD: Final = -3
_LARGEST_KEPT_NUM_BYTES: Final = 16 << 20
_M_TRIM_THRESHOLD: Final = -1
_MOST_KEPT_NUM_BYTES: Final = 64 << 20

_MADV_DONTNEED: Final = 4
_MAPPINGS: Final = Path("/proc/self/smaps")


def bound_memory() -> None:
    """Lets all threads share two arenas, and keeps pieces of some MiB for the next use; called before threads start.

    By default each thread gets an arena of its own and keeps in it the pieces of 1 MiB that it has freed: with a dozen
    threads that is more than 100 MiB which nothing uses. Larger pieces on the other hand go back to the system at once,
    and getting fresh pages for each window of each update takes as long as all that is done with them.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, _NUM_ARENAS)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_NUM_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT_NUM_BYTES)


def give_back_free_pages() -> None:
    """Gives the system what is free between pieces that are in use.

    After much has been held in small pieces, no larger one fits between what is left, and memory would grow by it.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def give_back_pages_of(library: str) -> None:
    """Lets the pages of a loaded library go that are as its file has them; who calls it again reads them again.

    A compiler that was needed for a moment would otherwise stay resident with tens of MiB.
    """
    with contextlib.suppress(OSError, AttributeError):
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for begin, end in _unchanged_mappings(library):
            madvise(begin, end - begin, _MADV_DONTNEED)


def _unchanged_mappings(library: str) -> Iterator[tuple[int, int]]:
    begin, end, is_wanted = 0, 0, False
    for line in _MAPPINGS.read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            begin, end = (int(address, 16) for address in name.split("-"))
            is_wanted = library in values[-1]
        elif is_wanted and name == "Anonymous:" and values[0] == "0":
            yield begin, end
