"""A replay on the disk is one in memory that outlives its process, however that ends."""

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worldmodel.replay import disk
from worldmodel.replay.disk import Disk, file_name
from worldmodel.replay.replay import SequenceReplay
from worldmodel.replay.storage import Column, Memory
from worldmodel.specs import ActionSpec, ObservationSpec
from worldmodel.types import Batch, TimeStep

OBS = {
    "x": ObservationSpec((3,)),
    "a key/with ..": ObservationSpec((), classes=(7,), start=(0,)),
    "state/é": ObservationSpec((2,)),
    "pixels": ObservationSpec((4, 4, 3), image=True),
}
ACTION = ActionSpec((2,), low=(-1.0, -1.0), high=(1.0, 1.0))


def time_step(rng: np.random.Generator, count: int) -> TimeStep:
    obs = {
        "x": rng.normal(size=(count, 3)).astype(np.float32),
        "a key/with ..": rng.integers(7, size=(count, 1)),
        "state/é": rng.normal(size=(count, 2)).astype(np.float32),
        "pixels": rng.integers(256, size=(count, 48)).astype(np.uint8),
    }
    numbers = rng.normal(size=(count, 2)).astype(np.float32), rng.normal(size=count).astype(np.float32)
    return TimeStep(obs, *numbers, *(rng.random((3, count)) < 0.2))


def replay(num_envs: int = 2, capacity: int = 20, **options: Any) -> SequenceReplay:
    return SequenceReplay(OBS, ACTION, num_envs, capacity, **options)


def filled(steps: int, num_envs: int = 2, capacity: int = 20, seed: int = 0) -> SequenceReplay:
    made, rng = replay(num_envs, capacity), np.random.default_rng(seed)
    for _ in range(steps):
        made.add(time_step(rng, num_envs), np.arange(num_envs))
    return made


def same(a: Batch, b: Batch) -> bool:
    leaves = [*zip(a[1:], b[1:], strict=True), *((a.obs[key], b.obs[key]) for key in a.obs)]
    return a.obs.keys() == b.obs.keys() and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in leaves)


# ------------------------------------------------------------------------------------------ the same as in memory


def do(made: SequenceReplay, what: str, number: int) -> Any:
    """One operation, the same for the same number; what it answers."""
    rng = np.random.default_rng(number)
    envs = rng.permutation(3)[: 1 + number % 3]
    if what == "add" or not len(made):
        for _ in range(1 + number % 5):
            made.add(time_step(rng, len(envs)), envs)
        return None
    if what == "sample":
        return made.sample(1 + number % 6, 1 + number % 9)
    if what == "look":
        return made.sample(2, 3, rng=rng)
    if what == "everything":
        return made.everything(["x"] if number % 2 else None, 1 + number % 3)
    if what == "stream":
        return made.stream(int(envs[0]))
    places = made.draw(4, 1 + number % 4)
    before = made.context(places)
    made.remember(places, torch.from_numpy(rng.normal(size=(*places.env.shape, 5))))
    return before


OPERATIONS = ("add", "add", "sample", "look", "everything", "stream", "remember")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 999)), max_size=40),
    moved=st.integers(0, 20),
    capacity=st.integers(3, 40),
    online=st.booleans(),
)
def test_the_disk_makes_no_difference(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, int]],
    moved: int,
    capacity: int,
    online: bool,
) -> None:
    """Bit for bit, whatever is added, sampled and remembered, from the beginning or after some rows in memory."""
    memory, other = (replay(3, capacity, seed=4, online=online) for _ in range(2))
    folder = tmp_path_factory.mktemp("disk")
    for at, (what, number) in enumerate(steps):
        if at == moved:
            memory.latents.known[:] = False
            other.move(folder / "replay")  # latent states stay behind
        a, b = do(memory, what, number), do(other, what, number)
        if isinstance(a, Batch):
            assert same(a, b)
        elif b is not None:
            assert torch.equal(a[1], b[1]) and torch.equal(a[0][a[1]], b[0][b[1]])
        else:
            assert a is None or not a[1].any()
    assert len(memory) == len(other) and np.array_equal(memory.written, other.written)
    if (folder / "replay").exists():
        again = replay(3, capacity)
        again.open(folder / "replay")
        assert same(memory.everything(), again.everything())


@pytest.mark.parametrize("steps", [3, 10, 37])
def test_what_was_kept_is_there_when_it_is_opened(tmp_path: Path, steps: int) -> None:
    """Also in a process that adds no row; and then, as one would have been that was never closed."""
    made, twin = filled(steps), filled(steps)
    made.move(tmp_path / "replay")
    made.flush()
    del made
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "replay").iterdir()}
    opened = replay(capacity=4)  # the capacity is that of the folder
    opened.open(tmp_path / "replay")
    assert opened.length == twin.length
    assert same(opened.everything(), twin.everything()) and same(opened.sample(8, 6), twin.sample(8, 6))
    assert files == {file: file.stat().st_mtime_ns for file in (tmp_path / "replay").iterdir()}
    for number in range(30):
        for one in (opened, twin):
            one.add(time_step(np.random.default_rng(number), 2), np.arange(2))
    assert same(opened.everything(), twin.everything()) and same(opened.sample(8, 6), twin.sample(8, 6))


def test_an_archive_is_the_same_from_either(tmp_path: Path) -> None:
    a, b = filled(17), filled(17)
    for one in (a, b):
        one.add(time_step(np.random.default_rng(1), 1), np.array([1]))
    b.move(tmp_path / "replay")
    a.save(tmp_path / "a.npz")
    b.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").stat().st_size == (tmp_path / "b.npz").stat().st_size
    with np.load(tmp_path / "a.npz") as one, np.load(tmp_path / "b.npz") as other:
        assert one.files == other.files and all(np.array_equal(one[name], other[name]) for name in one.files)
    copy = replay(capacity=8)
    copy.move(tmp_path / "copy")
    copy.add(time_step(np.random.default_rng(9), 2), np.arange(2))
    copy.load(tmp_path / "a.npz")
    assert torch.equal(copy.stream(1).obs["pixels"], a.stream(1).obs["pixels"][:, -4:])
    again = replay(capacity=8)
    again.open(tmp_path / "copy")
    assert same(again.everything(), copy.everything())


def test_latent_states_leave_nothing_behind(tmp_path: Path) -> None:
    made = filled(10)
    made.move(tmp_path / "replay")
    held = {file.name for file in (tmp_path / "replay").iterdir()}
    made.remember(made.draw(4, 5), torch.ones(4, 5, 1000))
    assert made.latents.array is not None and made.latents.array.shape == (2, 10, 1000)
    assert {file.name for file in (tmp_path / "replay").iterdir()} == held


def test_files_take_room_as_rows_arrive(tmp_path: Path) -> None:
    made = SequenceReplay({"pixels": ObservationSpec((64, 64, 3), image=True)}, ACTION, 1, 100_000)
    made.move(tmp_path / "replay")
    file = tmp_path / "replay" / file_name("obs/pixels")
    made.add(TimeStep({"pixels": np.ones((1, 12288), np.uint8)}, *_rest(1)), np.array([0]))
    assert file.stat().st_size == 100_000 * 12288 and file.stat().st_blocks * 512 < 1e6


def _rest(count: int) -> Any:
    return np.zeros((count, 2), np.float32), np.zeros(count, np.float32), *np.zeros((3, count), bool)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_the_memory_of_the_process_does_not_grow_with_what_is_read(tmp_path: Path) -> None:
    """2 GB of pictures are read, and never more than a map's share of them counts."""
    made = SequenceReplay({"pixels": ObservationSpec((64, 64, 3), image=True)}, ACTION, 1, 40_000)
    made.move(tmp_path / "replay")
    made.storage.written[:] = made.storage.begun[:] = 0
    made.storage.begin_writing()
    made.storage.begun[:] = made.storage.written[:] = 40_000  # holes in the file are read as zeros, at no cost
    before, most = _resident(), 0
    for _ in range(160):
        made.sample(16, 64)
        most = max(most, _resident() - before)
    assert most < 2 * disk.MAX_MAPPED, most
    scattered = made.everything(every=7)  # 70 MB, which lie in 370 MB of pages
    assert scattered.obs["pixels"].shape == (1, 5715, 12288) and _resident() - before < 2 * disk.MAX_MAPPED + 2**27


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


# ----------------------------------------------------------------------------------------------------- crashes


class Killed(BaseException):
    """In place of a signal."""


def steps_of(made: SequenceReplay) -> list[list[float]]:
    """The first observed number of every stored row, by environment."""
    return [made.stream(env).obs["x"][0, :, 0].tolist() for env in range(2)]


def test_a_crash_at_any_write_costs_that_row_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each of the system calls that write a row, before it and halfway through, in rings that are full and not."""
    write_at = disk.write_at
    for before, crash in itertools.product((1, 4, 9), range(40)):
        folder = tmp_path / f"{before}-{crash}"
        made, rng = replay(capacity=8), np.random.default_rng(0)
        made.move(folder)
        rows = [time_step(rng, 2) for _ in range(before + 2)]
        for each in rows[:before]:
            made.add(each, np.arange(2))
        calls = itertools.count()

        def dying(descriptor: int, offset: int, content: memoryview, crash: int = crash, calls: Any = calls) -> None:
            if next(calls) == crash // 2:
                write_at(descriptor, offset, content[: len(content) * (crash % 2) // 2])
                raise Killed
            write_at(descriptor, offset, content)

        monkeypatch.setattr(disk, "write_at", dying)
        with pytest.raises(Killed):
            for each in rows[before:]:
                made.add(each, np.arange(2))
        monkeypatch.undo()
        whole = before + int(crash // 2 >= 2 * len(made.storage.columns))
        opened = replay(capacity=8)
        opened.open(folder)
        kept = [each.obs["x"] for each in rows[:whole]]
        kept = kept[-3:] if whole >= 4 else kept  # in a full ring the slot of the unfinished row held the oldest
        assert steps_of(opened) == [[float(x[env, 0]) for x in kept] for env in range(2)]
        for key in OBS:
            expected = np.stack([each.obs[key] for each in rows[:whole]], 1)[:, -len(kept) :]
            assert all(np.array_equal(opened.stream(env).obs[key][0], expected[env]) for env in range(2))
        opened.add(rows[whole], np.arange(2))  # and it goes on from there
        assert [len(one) for one in steps_of(opened)] == [min(whole + 1, 4)] * 2


WRITER = """
import sys
from pathlib import Path
import numpy as np
from worldmodel.replay.disk import MANIFEST, Disk
from worldmodel.replay.storage import Column

folder, long = Path(sys.argv[1]), np.dtype(np.int64)
columns = {"row": Column(long, ()), "big": Column(long, (40_000,)), "small": Column(np.dtype(np.int32), (3,))}
rings = Disk.open(folder, columns, 2) if (folder / MANIFEST).exists() else Disk.create(folder, columns, 2, 5)
rings.begin_writing()
print("ready", flush=True)
while True:
    for envs in (np.array([0, 1]), np.array([1])):
        number = rings.written[envs] * 2 + envs
        rings.append({"row": number, "big": np.repeat(number[:, None], 40_000, 1),
            "small": np.repeat(number[:, None], 3, 1)}, envs)
"""
COLUMNS = {
    "row": Column(np.dtype(np.int64), ()),
    "big": Column(np.dtype(np.int64), (40_000,)),
    "small": Column(np.dtype(np.int32), (3,)),
}


def killed_again_and_again(folder: Path, times: int) -> int:
    """Kill a process that writes, at random moments; how often it was within a row. Every row says its own number."""
    rng, within, before = np.random.default_rng(), 0, np.zeros(2, int)
    for _ in range(times):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
        rings = Disk.open(folder, COLUMNS, 2)
        within += int((rings.begun > rings.written).any())
        assert (rings.begun - rings.written <= 1).all() and (rings.written >= before).all()
        before = rings.written.copy()
        for env in range(2):
            expected = np.arange(rings.oldest[env], rings.written[env])
            assert len(expected) >= min(rings.written[env], 4)
            for name in COLUMNS:
                held = [values for _, values in rings.chunks(name, env)]
                assert sum(map(len, held)) == len(expected)
                if held:
                    numbers = np.concatenate(held).reshape(len(expected), -1)
                    assert (numbers == 2 * expected[:, None] + env).all()
    return within


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_kill_9_leaves_whole_rows(tmp_path: Path) -> None:
    assert killed_again_and_again(tmp_path / "rings", 8) > 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_kill_9_leaves_whole_rows_three_hundred_times(tmp_path: Path) -> None:
    assert killed_again_and_again(tmp_path / "rings", 300) > 50


def test_an_error_within_a_row_costs_that_row_alone(tmp_path: Path) -> None:
    """In memory as on the disk: values that are no numbers, from someone else's environment."""
    for move in (False, True):
        made = filled(14, capacity=12)
        if move:
            made.move(tmp_path / "replay")
        before = [made.stream(env).obs["x"] for env in range(2)]
        wrong = time_step(np.random.default_rng(0), 2)._replace(reward=np.array(["a", "b"]))
        with pytest.raises(ValueError, match="could not convert"):
            made.add(wrong, np.arange(2))
        assert [torch.equal(made.stream(env).obs["x"], before[env][:, 1:]) for env in range(2)] == [True, True]


def test_a_full_disk_is_an_error_that_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = filled(3)
    made.move(tmp_path / "replay")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "write_at", full)
    with pytest.raises(OSError, match=rf"No space left .* wrote 'obs/x'.*{tmp_path}"):
        made.add(time_step(np.random.default_rng(0), 2), np.arange(2))
    monkeypatch.undo()
    assert len(made) == 6
    made.add(time_step(np.random.default_rng(0), 2), np.arange(2))
    assert len(made) == 8


# ----------------------------------------------------------------------------------------- what cannot be opened


def _cut(folder: Path) -> None:
    (folder / file_name("obs/x")).write_bytes(b"123")


def _manifest(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / disk.MANIFEST
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def _pictures(shape: list[int]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        columns = json.loads((folder / disk.MANIFEST).read_text())["columns"]
        columns["obs/pixels"]["image"] = shape
        _manifest(columns=columns)(folder)

    return change


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / disk.MANIFEST).unlink(), "holds no replay"),
        (lambda folder: (folder / disk.MANIFEST).write_text("{"), "cannot be read"),
        (lambda folder: (folder / disk.MANIFEST).write_text("[]"), "cannot be read"),
        (_manifest(version=2), "version 2"),
        (_manifest(slots=0), "0 slots"),
        (_manifest(slots=11), "bytes instead of"),
        (_manifest(num_envs=3), "3 environments, but here are 2"),
        (_manifest(columns={}), "needs 'is_first' bool"),
        (_manifest(columns={"reward": {"dtype": "nonsense", "shape": []}}), "cannot be read"),
        (_pictures([4, 4, 4]), "differs from the size of its rows"),
        (_pictures([2, 8, 3]), "has the columns"),
        (_cut, "has 3 bytes instead of"),
        (lambda folder: (folder / file_name("reward")).unlink(), "reward.raw is missing"),
        (lambda folder: (folder / disk.COUNTERS).write_bytes(b""), "counters has 0 bytes"),
        (lambda folder: np.full((2, 2), -1).tofile(folder / disk.COUNTERS), "damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], Any], said: str) -> None:
    made = filled(3)
    made.move(tmp_path / "replay")
    damage(tmp_path / "replay")
    with pytest.raises(ValueError, match=said) as caught:
        replay().open(tmp_path / "replay")
    assert str(tmp_path / "replay") in str(caught.value)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    filled(3).move(tmp_path / "replay")
    other = SequenceReplay({"x": ObservationSpec((4,))}, ACTION, 2, 20)
    with pytest.raises(ValueError, match=r"'obs/x' float32\[4\]"):
        other.open(tmp_path / "replay")


def test_a_folder_holds_one_replay(tmp_path: Path) -> None:
    filled(3).move(tmp_path / "replay")
    with pytest.raises(ValueError, match="already holds a replay"):
        filled(3).move(tmp_path / "replay")


def test_what_the_disk_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    huge = SequenceReplay({"pixels": ObservationSpec((512, 512, 3), image=True)}, ACTION, 1, 10**9)
    with pytest.raises(ValueError, match=r"takes 7864\d\d\.\d GB.*replay.capacity_bytes"):
        huge.move(tmp_path / "replay")
    assert not (tmp_path / "replay").exists()


@pytest.mark.skipif(disk.fcntl is None, reason="needs file locks")
def test_two_processes_do_not_write_to_one_replay(tmp_path: Path) -> None:
    made = Disk.create(tmp_path / "rings", COLUMNS, 2, 5)
    command = [sys.executable, "-c", WRITER, str(tmp_path / "rings")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        assert made.stored.tolist() == [0, 0]  # to look is allowed
        with pytest.raises(ValueError, match="written to by another process"):
            made.begin_writing()
        process.kill()
    made.begin_writing()
    assert (made.written >= made.begun - 1).all()


# -------------------------------------------------------------------------------------------------- capacity


def test_the_lesser_capacity_counts() -> None:
    row = 12 + 8 + 8 + 48 + 8 + 4 + 3
    assert replay(2, 1000, capacity_bytes=20 * row + 7).length == 10
    assert replay(2, 12, capacity_bytes=20 * row).length == 6
    with pytest.raises(
        ValueError, match="capacity_bytes is 150, but one time step of each of the 2 environments takes 182 bytes"
    ):
        replay(2, 1000, capacity_bytes=150)


def test_memory_grows_with_what_is_stored_where_addresses_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ring of 120 GB, of which 3,000 rows are there."""
    monkeypatch.setattr("worldmodel.replay.storage.addresses_are_free", lambda: False)
    rings = Memory({"pixels": Column(np.dtype(np.uint8), (12288,))}, 1, 10_000_000)
    for row in range(3000):
        rings.append({"pixels": np.full((1, 12288), row % 251, np.uint8)}, np.array([0]))
    assert rings.array("pixels").nbytes <= 2 * 3000 * 12288
    assert (rings.array("pixels")[0, :3000] == np.arange(3000)[:, None] % 251).all()
