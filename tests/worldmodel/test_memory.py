"""What a replay, and the tensors of a run, take of the memory: in processes of their own, by what the system says."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

linux = pytest.mark.skipif(sys.platform != "linux", reason="glibc and /proc")

COUNTED = """
import resource, sys
from contextlib import nullcontext
from pathlib import Path
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
"""
TOUCHED = """
import torch
from worldmodel.kernels.memory import room_for_tensors
def refilled():
    before = faults()
    for _ in range(3):
        torch.ones(2**24)  # 64 MiB, twice as much as glibc would take from the heap
    return faults() - before
refilled()
before = resident()
with room_for_tensors() if "room" in sys.argv else nullcontext():
    refilled()
    inside = refilled()
print(inside, refilled(), resident() - before)
"""
STORED = """
import numpy as np, torch
from worldmodel import TimeStep, SequenceReplay
from worldmodel.kernels.memory import room_for_tensors
from worldmodel.specs import ActionSpec, ObservationSpec
action = ActionSpec((6,), low=(-1.0,) * 6, high=(1.0,) * 6)
picture, vector = ObservationSpec((64, 64, 3), image=True), ObservationSpec((17,))
def fill(replay, rows):
    count = len(replay.written)
    obs = {key: np.ones((count, spec.width), spec.dtype) for key, spec in replay.obs_specs.items()}
    never, real = np.zeros(count, bool), np.ones((count, 6), np.float32)
    for _ in range(rows // count):
        replay.add(TimeStep(obs, real, real[:, 0], never, never, never), np.arange(count))
        torch.ones(2**16)  # what else goes on
def grown(specs, count, capacity, rows):
    before = resident()
    replay = SequenceReplay(specs, action, count, capacity)
    fill(replay, rows)
    replay.sample(4, 16)
    return (resident() - before) / (rows * replay.row_bytes)
both = {"camera": picture, "angles": vector}
fill(SequenceReplay(both, action, 1, 100), 50)
with room_for_tensors():
    torch.ones(2**23)
    print(grown({"observation": picture}, 1, 100_000_000, 3000))
    print(grown({"observation": picture}, 1, 3000, 3000))
    print(grown(both, 4, 1_000_000, 3000))
    print(grown({"observation": vector}, 16, 10_000_000, 160_000))
"""
LOADED = """
if sys.argv[1] == "save":
    rings = SequenceReplay({"observation": picture}, action, 1, 12_000)
    fill(rings, 12_000)
    rings.save(sys.argv[2])
    sys.exit()
fill(SequenceReplay({"observation": picture}, action, 1, 100), 50)
replay, before = SequenceReplay({"observation": picture}, action, 1, 1_000_000), resident()
replay.load(sys.argv[2])
status = Path("/proc/self/status").read_text()  # ru_maxrss would be that of the process which began this one
peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
print((peak - before) / (12_000 * replay.row_bytes), (resident() - before) / (12_000 * replay.row_bytes))
"""


def told(code: str, *arguments: str) -> list[float]:
    """The numbers that a process of its own prints."""
    command = [sys.executable, "-c", COUNTED + code, *arguments]
    return [float(word) for word in subprocess.check_output(command, text=True).split()]


@cache
def touched(*arguments: str) -> list[float]:
    """Pages filled for tensors that replace each other, in the room and after it, and bytes that stay then."""
    return told(TOUCHED, *arguments)


@cache
def in_the_room() -> list[float]:
    """`touched` in the room: of a process whose heap begins so that each tensor finds the place of the last one.

    Where the heap begins, and what lies in it, differs from process to process. In every other one, glibc puts the few
    tensors of this measurement side by side; those of an update, which are many, find each other's places all the same.
    """
    return next((found for _ in range(12) if (found := told(TOUCHED, "room"))[0] < EVERY // 20), [EVERY] * 3)


EVERY = 3 * 2**26 // 4096  # pages of the three tensors


@linux
def test_freed_memory_is_used_again_in_the_room_for_tensors() -> None:
    assert in_the_room()[0] < EVERY // 20
    assert touched()[0] >= EVERY


@linux
def test_the_allocator_is_as_it_was_after_the_room_for_tensors() -> None:
    """Freed tensors are handed back again, and nothing of the room stays."""
    _, pages, more = in_the_room()
    assert pages >= 0.9 * EVERY
    assert more < 2**24


@linux
def test_a_replay_in_memory_takes_the_room_of_its_rows() -> None:
    """Of rows in one ring, in a full one, of several keys and environments, and of small rows in many rings."""
    assert max(told(STORED)) <= 1.05


@linux
def test_a_replay_that_is_loaded_is_in_memory_once(tmp_path: Path) -> None:
    """But for a part of one column at a time."""
    code, file = STORED.partition("both = ")[0] + LOADED, str(tmp_path / "replay.npz")
    told(code, "save", file)
    peak, after = told(code, "load", file)
    assert peak < 1.4 and after <= 1.05
