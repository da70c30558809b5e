"""Two settings of the C library that a loop over large tensors needs."""

import ctypes
import mmap
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
MOST = 2**31 - 1
LARGE = 2**30  # bytes that are asked for in large pages
SMALL_PAGE = 4096  # with which large ones have 2 MB; with others they may have 512


@cache
def keep_memory() -> None:
    """Let freed tensors be used again, instead of being handed back and asked for anew every time.

    glibc maps large blocks one by one and unmaps them when they are freed: the system then fills each page with zeros,
    60,000 of them in an update of DreamerV3 on vectors, a tenth of its time (`mallopt(3)`). From now on they come from
    the heap, which is not shortened while less than 2 GiB of it is free. The next GiB of it is in pages of 2 MB, where
    the system has them for who asks (`madvise(2)`): there is less to look up in each pass over a tensor.

    Does nothing where the C library is another, and nothing more when called again. From the main thread, whose heap it
    is.
    """
    try:
        library = ctypes.CDLL(None)
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, MOST)
    if mmap.PAGESIZE == SMALL_PAGE and _unlimited():
        _take_large_pages(library)


def _unlimited() -> bool:
    """Whether addresses are free: the GiB takes them, used or not."""
    import resource  # there is none on Windows

    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    return all(resource.getrlimit(limit)[0] == resource.RLIM_INFINITY for limit in limits)


def _take_large_pages(library: ctypes.CDLL) -> None:
    """The heap becomes longer by a block that nobody touches, so that it takes no memory, and stays so without it."""
    library.sbrk.restype = library.malloc.restype = ctypes.c_void_p
    library.sbrk.argtypes, library.malloc.argtypes = [ctypes.c_ssize_t], [ctypes.c_size_t]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.free.argtypes = [ctypes.c_void_p]
    begin = library.sbrk(0)
    begin += -begin % SMALL_PAGE
    block = library.malloc(LARGE)
    end = library.sbrk(0)
    if end > begin:
        library.madvise(begin, end - begin, mmap.MADV_HUGEPAGE)
    library.free(block)
