"""Memory that a long run asks the system for once: rings of rows, and room for tensors that replace each other."""

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

NORESERVE = 0x4000 if sys.platform == "linux" else 0  # mman.h: no memory is promised for pages that nobody wrote
PROMISES = Path("/proc/sys/vm/overcommit_memory")
STRICT = "2"  # there: each mapping counts in full, written or not

PIECE = 31 * 2**20  # bytes: glibc takes blocks below 32 MiB from the heap, once one of that size was freed
MOST = 2**34  # bytes of room: more than an update needs


def addresses_are_free() -> bool:
    """Whether a mapping costs nothing before its pages are written."""
    strict = PROMISES.is_file() and PROMISES.read_text().strip() == STRICT
    return sys.platform != "win32" and not address_limits() and not strict


def untouched(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros in a mapping of their own: each page takes memory from when it is first written, and not before.

    An array on the heap may leave a hole there when it goes, and NumPy asks for pages of 2 MB.

    Raises:
        MemoryError: if the system refuses.
    """
    count = math.prod(shape)
    if sys.platform == "win32":
        return np.zeros(shape, dtype)
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
        block = mmap.mmap(-1, max(count * dtype.itemsize, 1), flags=flags)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no memory for {shape} of {dtype}") from error
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # of a system without large ones
            block.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(block, dtype, count).reshape(shape)


@contextmanager
def room_for_tensors() -> Iterator[None]:
    """In here, freed tensors leave their memory to the next ones, instead of handing it back each time.

    glibc maps large blocks one by one and unmaps them when they are freed, and shortens the heap when its end is free:
    the system then fills each page with zeros once more, 60,000 of them in an update of DreamerV3 on vectors, a tenth
    of its time. But it takes a block from a hole in the heap wherever one is large enough, and a hole is only handed
    back when asked for. So we make one: many pieces, which nobody touches and which take no memory before, freed below
    a last one that stays. Nothing is set for the process. At the end the last piece is freed, and all that is free is
    handed back.

    Does nothing where the C library is another, where addresses are limited, and in other threads than the main one,
    whose heap it is.
    """
    main = threading.current_thread() is threading.main_thread()
    library = _glibc() if main and addresses_are_free() else None
    lid = None if library is None else _make_hole(library, min((memory() or MOST) // 2, MOST))
    try:
        yield
    finally:
        if library is not None and lid is not None:
            library.free(lid)
            library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, where it is glibc."""
    if sys.platform != "linux":
        return None
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # others have none
    except (AttributeError, OSError):
        return None
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes, library.malloc_trim.argtypes = [ctypes.c_size_t], [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    return library


def _make_hole(library: ctypes.CDLL, size: int) -> int | None:
    """Free pieces of the heap side by side, under one that stays, which is returned; None where there is no memory."""
    library.free(library.malloc(PIECE + PIECE // 64))  # blocks below this size come from the heap from now on
    pieces = [library.malloc(PIECE) for _ in range(size // PIECE + 1)]
    lid: int | None = pieces.pop()
    for piece in pieces:
        library.free(piece)
    return lid
