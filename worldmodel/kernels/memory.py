"""Memory that a long run requests from the system only once: for rings of rows, and for tensors that come and go."""

import ctypes
import math
import mmap
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from worldmodel.validation import address_limits, memory

NORESERVE = 0x4000 if sys.platform == "linux" else 0  # mman.h: reserve no memory for pages before they are written
PROMISES = Path("/proc/sys/vm/overcommit_memory")  # how Linux counts memory that was requested but not written
STRICT = "2"  # the setting in which every mapping counts in full

PIECE = 31 * 2**20  # bytes: glibc takes blocks below 32 MiB from the heap after one of that size was freed
MAX_ROOM = 2**34  # bytes: more than an update needs


def addresses_are_free() -> bool:
    """Return whether a memory mapping costs nothing before its pages are written."""
    strict = PROMISES.is_file() and PROMISES.read_text().strip() == STRICT
    return sys.platform != "win32" and not address_limits() and not strict


def untouched(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return zeros in a separate memory mapping. Each page takes memory only after it is first written.

    A NumPy array on the heap may leave a hole there when it is freed, and NumPy requests pages of 2 MB.

    Raises:
        MemoryError: if the system refuses the mapping.
    """
    count = math.prod(shape)
    if sys.platform == "win32":
        return np.zeros(shape, dtype)
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
        block = mmap.mmap(-1, max(count * dtype.itemsize, 1), flags=flags)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"there is no memory for an array of shape {shape} and type {dtype}") from error
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # the system has no large pages
            block.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(block, dtype, count).reshape(shape)


@contextmanager
def room_for_tensors() -> Iterator[None]:
    """Let new tensors reuse the memory of freed tensors, instead of returning it to the system each time.

    glibc maps large blocks one by one and unmaps them when they are freed. It also shortens the heap when its end is
    free. The system must then fill every page with zeros again. In an update of DreamerV3 on vectors these are 60,000
    pages, and a tenth of the time. But glibc prefers a hole in the heap that is large enough, and it keeps holes until
    it is asked to return them. This context manager makes such a hole: it requests many pieces, and frees all but the
    last one. The pieces are never written, so they take no memory. No setting of the process changes. At the end the
    last piece is freed, and all free memory is returned.

    It does nothing without glibc, with a limited address space, and in threads other than the main thread, which owns
    the heap.
    """
    main = threading.current_thread() is threading.main_thread()
    library = _glibc() if main and addresses_are_free() else None
    lid = None if library is None else _make_hole(library, min((memory() or MAX_ROOM) // 2, MAX_ROOM))
    try:
        yield
    finally:
        if library is not None and lid is not None:
            library.free(lid)
            library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """Return the C library of this process if it is glibc."""
    if sys.platform != "linux":
        return None
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # only glibc has this function
    except (AttributeError, OSError):
        return None
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes, library.malloc_trim.argtypes = [ctypes.c_size_t], [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    return library


def _make_hole(library: ctypes.CDLL, size: int) -> int | None:
    """Allocate pieces side by side on the heap, free all but the last one, and return the last one.

    Returns:
        None if there was no memory.
    """
    library.free(library.malloc(PIECE + PIECE // 64))  # from now on, blocks below this size come from the heap
    pieces = [library.malloc(PIECE) for _ in range(size // PIECE + 1)]
    lid: int | None = pieces.pop()
    for piece in pieces:
        library.free(piece)
    return lid
