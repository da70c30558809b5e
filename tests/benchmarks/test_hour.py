"""The clock of benchmarks/hour.py against sleeps of known length."""

import time
from collections.abc import Callable
from types import ModuleType

import pytest


def test_an_inner_phase_does_not_count_in_the_outer_one(benchmark: Callable[[str], ModuleType]) -> None:
    hour = benchmark("hour")
    clock, began = hour.Clock(), time.perf_counter()
    inner = clock.timed(time.sleep, "inner")
    with clock.phase("outer"):
        time.sleep(0.05)
        inner(0.1)
        inner(0.1)
    clock.book()
    assert clock.wall["inner"] >= 0.2 and 0.05 <= clock.wall["outer"] < 0.2
    assert clock.calls == {"outer": 1, "inner": 2}
    assert sum(clock.wall.values()) == pytest.approx(time.perf_counter() - began, abs=0.02)
    assert sum(clock.cpu.values()) < 0.2


def test_what_is_timed_is_there(benchmark: Callable[[str], ModuleType]) -> None:
    hour = benchmark("hour")
    assert all(callable(getattr(owner, method)) for owner, method, _ in hour.PHASES)
