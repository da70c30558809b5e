"""One setting of the C library that a loop over large tensors needs."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
MOST = 2**31 - 1


def keep_memory() -> None:
    """Let freed tensors be used again, instead of being handed back and asked for anew every time.

    glibc maps large blocks one by one and unmaps them when they are freed: the system then fills each page with zeros,
    60,000 of them in an update of DreamerV3 on vectors, a tenth of its time (`mallopt(3)`). From now on they come from
    the heap, which is not shortened while less than 2 GiB of it is free. Does nothing where the C library is another.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, MOST)
