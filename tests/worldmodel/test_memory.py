"""In processes of their own: what is set holds for all of one."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ALLOWED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
TOUCHED = """
import resource, sys, torch
from worldmodel.memory import keep_memory
if "keep" in sys.argv:
    keep_memory()
    keep_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def heap():
    text = open("/proc/self/smaps").read()
    return [block for block in text.split("VmFlags") if "[heap]" in block]
def tensors():
    for _ in range(10):
        torch.ones(2**23)  # 32 MiB
tensors()
before = faults()
tensors()
large = sum(int(block.split("AnonHugePages:")[1].split()[0]) for block in heap())
resident = sum(int(block.split("Rss:")[1].split()[0]) for block in heap())
print(faults() - before, large, resident)
"""


@cache
def told(*arguments: str) -> tuple[int, ...]:
    """Pages that were filled for tensors that replace each other, and KiB of the heap: in large pages, and in all."""
    command = [sys.executable, "-c", TOUCHED, *arguments]
    return tuple(int(word) for word in subprocess.check_output(command, text=True).split())


linux = pytest.mark.skipif(sys.platform != "linux", reason="glibc and /proc")


@linux
def test_freed_memory_is_used_again() -> None:
    every = 10 * 2**25 // 4096
    assert told("keep")[0] < every // 100
    assert told()[0] >= every


@linux
def test_the_heap_is_in_large_pages_where_the_system_has_them_and_no_longer_than_what_is_used() -> None:
    if not ALLOWED.exists() or "[madvise]" not in ALLOWED.read_text():
        pytest.skip("this system gives large pages to everybody, or to nobody")
    _, large, resident = told("keep")
    assert large  # as many as the system finds at once
    assert resident < 512 * 1024  # of the GiB
    assert not told()[1]
