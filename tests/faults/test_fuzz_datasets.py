"""Files that a disk, a transfer or another program has spoilt, at every place where a command reads one.

`pytest tests/faults -m slow -k fuzz -s` makes a thousand bad ones for each reader and prints what they came to.
"""

import hashlib
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from worldmodel.training import cli

Random = np.random.Generator

QUICK, SLOW = 8, 1_000  # bad files for each reader: of the default run, and of the slow one
ROWS = [(t % 5 + 0.25, t % 3 - 1.5, "ab"[t // 30]) for t in range(60)]  # y, u, run
FIT: dict[str, Any] = {
    "data": {"window": 5},
    "model": {"hidden": 4, "latent": {"size": 2}, "dynamics": {"rssm": {"deter": 4, "hidden": 4}}},
    "fit": {"updates": 2, "batch_size": 2},
    "logger": {"wandb": "disabled"},
}
UNREAD = ("metrics", "wandb", "lock", "media", "replay/lock")  # files of a run that nobody reads
EXPORT = ["export", "data.npz", "minari:fuzz/x-v0"]
NAMED = ["--data.observations=[y]", "--data.controls=[u]"]


def pick(rng: Random, options: Any) -> Any:
    """One of them, not as an array's element."""
    options = list(options)
    return options[rng.integers(len(options))]


# ------------------------------------------------------------------------------------------- spoilt bytes


def spoilt(rng: Random, whole: bytes) -> bytes:
    """A file cut short, with bits turned over, with a part missing, doubled or overwritten, or another one."""
    size = len(whole)
    at, length = int(rng.integers(size)), int(rng.integers(1, 40))
    noise = rng.integers(256, size=length).astype(np.uint8).tobytes()
    bits = bytearray(whole)
    for place in rng.integers(size, size=rng.integers(1, 4)):
        bits[place] ^= 1 << int(rng.integers(8))
    how = rng.integers(12)
    if how < 3:
        return whole[:at]
    if how < 7:
        return bytes(bits)
    others = (
        whole[:at] + noise + whole[at + length :],
        whole[:at] + noise + whole[at:],
        whole[:at] + whole[at + length :],
        whole[:at] + bytes(length) + whole[at + length :],
        noise * 20,
        b"",
        pickle.dumps({"stored": [1]}),
        b"\x89PNG\r\n\x1a\n" + noise,
        b"PK\x05\x06" + bytes(18),
        whole.decode("latin-1").encode("utf-16"),
        b"[" * 100_000,
        b'{"a":' * 50_000,
    )
    return pick(rng, others)


# ----------------------------------------------------------------------------------------------- tables


def table(rng: Random) -> tuple[bytes, list[str]]:
    """A CSV that is wrong as a table, or as a file."""
    rows = [list(map(str, row)) for row in ROWS]
    header, arguments = ["y", "u", "run"], [*NAMED, "--data.sequence=run"]
    at, column = int(rng.integers(len(rows))), int(rng.integers(2))
    how = rng.integers(12)
    if how == 0:
        rows[at][column] = pick(
            rng, ("nan", "inf", "-inf", "1e400", "", " ", "x", "1,5", "1_0", "0x1", "1e39", "é", "=1+1")
        )
    elif how == 1:
        rows[at] = rows[at] + ["7"] * int(rng.integers(1, 4)) if rng.random() < 0.5 else rows[at][:column]
    elif how == 2:
        header[column] = pick(rng, ("", "Y", "x", "y" if column else "u", "\x00"))
    elif how == 3:
        rows = rows[: int(rng.integers(0, 3))]
    elif how == 4:
        rows[at][2] = pick(rng, ("", "a" if at > 30 else "b"))
    elif how == 5:
        arguments[0] = f"--data.observations={pick(rng, ('null', '[]', '[z]', '[y, y]', '[run]', '[Y]'))}"
    elif how == 6:
        for row in rows:
            row[column] = "nan"
    elif how == 7:
        rows[at][column] = "9" * int(10 ** rng.uniform(2, 5.5))
    elif how == 8:
        header = []
    content = "\n".join(",".join(row) for row in [header, *rows]).encode()
    if how == 9:
        content = content.decode().encode(pick(rng, ("utf-16", "utf-32", "utf-16-be")))
    return (spoilt(rng, content) if how > 9 else content), arguments


# ---------------------------------------------------------------------------------------------- archives

CLAIMS = ((10**12,), (2**62,), (2**40, 2**40), (10**9, 1), (-1,), (60, -1), (61, 1), (0, 1))
DTYPES = ("O", "<U5", "S3", "c16", "M8[s]", "V8", "f2", "i1", "u8", "?", ">f4", "f16")


def member(array: np.ndarray, claim: tuple[int, ...] | None = None) -> bytes:
    """An array as an archive holds it, or with a header that says it is of another shape."""
    stream = io.BytesIO()
    if claim is None:
        np.lib.format.write_array(stream, array, allow_pickle=True)
    else:
        header = {"descr": array.dtype.str, "fortran_order": False, "shape": claim}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(array.tobytes())
    return stream.getvalue()


def zipped(members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", how) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def spoilt_arrays(rng: Random, arrays: dict[str, np.ndarray]) -> bytes:
    """An archive of arrays that do not fit each other, are of no use, or are not there."""
    arrays = dict(arrays)
    members = {name: member(array) for name, array in arrays.items()}
    name = pick(rng, arrays)
    array, how = arrays[name], rng.integers(12)
    if how == 0:
        del members[name]
    elif how == 1:
        with np.errstate(all="ignore"):
            dtype = pick(rng, DTYPES)
            changed = np.zeros(array.shape, dtype) if dtype in ("M8[s]", "V8") else array.astype(dtype)
        members[name] = member(changed)
    elif how == 2:
        shapes = (array[None], array[..., None], array.ravel(), array[:-1], array[:0], np.float32(1), array.T)
        members[name] = member(np.asarray(pick(rng, shapes)))
    elif how == 3:
        members[name] = member(array, pick(rng, CLAIMS))
    elif how == 4:
        values = array.astype(np.float32) if array.dtype.kind == "b" else array.copy()
        bad = (np.nan, np.inf, -np.inf) if values.dtype.kind == "f" else (-1, 2**31, 2**62, -(2**62))
        values.flat[rng.integers(values.size)] = np.array(pick(rng, bad)).astype(values.dtype)
        members[name] = member(values)
    elif how == 5:
        members[name] = pick(rng, (b"", b"\x93NUMPY", pickle.dumps(array), members[name][:40], b"\x93NUMPY\x09\x00"))
    elif how == 6:
        members = {f"../{key}": content for key, content in members.items()}
    elif how == 7:
        members[pick(rng, ("obs/other", "lengths", "stored", "more"))] = member(np.arange(3))
    elif how == 8:
        members[name] = member(np.array([{"a": 1}], object))
    elif how == 9:
        header = b"{'descr': " + b"(" * int(10 ** rng.uniform(1, 3.9)) + b", 'shape': (1,)}"
        members[name] = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    whole = zipped(members, pick(rng, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    return spoilt(rng, whole) if how > 9 else whole


def series() -> dict[str, np.ndarray]:
    rows = np.array([row[:2] for row in ROWS], np.float32)
    return {"y": rows[:, :1], "u": rows[:, 1:], "lengths": np.array([30, 20, 10])}


def recording(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as archive:
        return dict(archive)


# ------------------------------------------------------------------------------------------- every reader


class Place:
    """What a command reads, and how it is put there: spoilt at random, or as it should be without a `Random`."""

    def __init__(self, commands: Any, arguments: list[str], put: Callable[[Random | None], list[str]]) -> None:
        self.commands, self.arguments, self.put = commands, arguments, put

    def fuzz(self, name: str, count: int, seed: int) -> None:
        rng, made = np.random.default_rng(seed), 0
        while self.commands.refused < count:
            more = self.put(rng)
            self.commands.refusal([*self.arguments, *more], name)
            made += 1
            assert made < 10 * count, f"too many were good after all: {self.commands.report()}"
        print(f"\n{name}: {self.commands.report()}")


def spoil(rng: Random, whole: Path, folder: Path, files: list[str]) -> None:
    """In a copy of a folder, one file: spoilt, gone, a folder, or what says odd things."""
    file = folder / pick(rng, files)
    how, content = rng.integers(10), file.read_bytes()
    file.unlink()
    if how == 0:
        return
    if how == 1:
        file.mkdir()
    elif how < 5 and file.suffix == ".json":
        file.write_bytes(changed_json(rng, content))
    elif how < 4 and file.suffix == ".npz":
        file.write_bytes(spoilt_arrays(rng, recording(whole / file.relative_to(folder))))
    else:
        file.write_bytes(spoilt(rng, content))


def reseal(run: Path) -> None:
    """Let the manifest of a checkpoint say of its files what they are now: the damage has to be met behind it."""
    for manifest in run.glob("checkpoint/*/manifest.json"):
        with suppress(ValueError, LookupError, TypeError, OSError, RecursionError):
            said = json.loads(manifest.read_bytes())
            for name in said["files"]:
                content = (manifest.parent / name).read_bytes()
                said["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            manifest.write_text(json.dumps(said))


def changed_json(rng: Random, text: bytes) -> bytes:
    """With one value, anywhere in it, of another kind."""
    value = json.loads(text)
    at, places = value, []
    while isinstance(at, dict | list) and at:
        key = pick(rng, at if isinstance(at, dict) else range(len(at)))
        places.append((at, key))
        at = at[key]
    holder, key = pick(rng, places)
    odd = (None, -1, 0, 2**70, 1e300, "x", [], {}, [None], {"a": 1}, True, "O", "../../x", [2**40, 2**40], float("nan"))
    if isinstance(holder, dict) and rng.random() < 0.3:
        del holder[key]
    else:
        holder[key] = pick(rng, odd)
    return json.dumps(value).encode()


@pytest.fixture(scope="session")
def disk_run(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    """A run that keeps its replay in files."""
    folder = tmp_path_factory.mktemp("disk")
    config = str(finished.parent / "tiny.yaml")
    assert cli.main(["train", config, "--run", str(folder / "run"), "--replay.disk=true"]) == 0
    return folder / "run"


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short fit, its data beside it."""
    folder = tmp_path_factory.mktemp("fitted")
    (folder / "c.yaml").write_text(yaml.safe_dump(FIT))
    np.savez(folder / "data.npz", **series())
    arguments = ["fit", str(folder / "c.yaml"), str(folder / "data.npz"), "--run", str(folder / "fit"), *NAMED]
    assert cli.main(arguments) == 0
    return folder / "fit"


@pytest.fixture(scope="session")
def minari(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    """Where Minari keeps a dataset of the finished run."""
    pytest.importorskip("minari")
    folder = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        assert cli.main(["export", str(finished), "minari:fuzz-v0"]) == 0
    return folder


@pytest.fixture
def reader(
    request: pytest.FixtureRequest,
    finished: Path,
    disk_run: Path,
    fitted: Path,
    minari: Path,
    commands: Any,
    untrained: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Place:
    """The place of this name, see PLACES."""
    folder = commands.folder
    (folder / "c.yaml").write_text(yaml.safe_dump(FIT))

    def stop(*_: Any, **__: Any) -> Any:
        raise SystemExit(0)

    monkeypatch.setattr("worldmodel.training.report.diagnose.windows", stop)  # everything has been read by then
    monkeypatch.setattr("worldmodel.training.run.run.Run.evaluate", stop)
    fit = ["fit", "c.yaml", "data.npz", "--run", "made"]
    name = request.param

    def data(good: bytes, make: Callable[[Random], tuple[bytes, list[str]]], arguments: list[str]) -> Any:
        def put(rng: Random | None) -> list[str]:
            content, more = (good, arguments) if rng is None else make(rng)
            (folder / ("data.csv" if name == "csv" else "data.npz")).write_bytes(content)
            return more

        return put

    def damaged(whole: Path, under: str = "", at: str = "run") -> Any:
        files = [str(path.relative_to(whole)) for path in (whole / under).rglob("*") if path.is_file()]
        files = [each for each in files if not each.startswith(UNREAD)]

        def put(rng: Random | None) -> list[str]:
            shutil.rmtree(folder / at, ignore_errors=True)
            shutil.copytree(whole, folder / at)
            if rng is not None:
                spoil(rng, whole, folder / at, files)
                if rng.random() < 0.5:
                    reseal(folder / at)
            return []

        return put

    if name == "csv":
        good = "\n".join(",".join(map(str, row)) for row in [("y", "u", "run"), *ROWS]).encode()
        return Place(commands, ["fit", "c.yaml", "data.csv", "--run", "made"], data(good, table, NAMED))
    if name == "npz":
        good = zipped({key: member(array) for key, array in series().items()})
        return Place(commands, fit, data(good, lambda rng: (spoilt_arrays(rng, series()), NAMED), NAMED))
    if name.startswith("recording"):
        monkeypatch.setattr("minari.create_dataset_from_buffers", stop)
        commanded = {"fit": fit, "diagnose": ["diagnose", str(finished), "data.npz"], "export": EXPORT}
        file = finished / "replay/replay.npz"
        arrays = recording(file)
        make = data(file.read_bytes(), lambda rng: (spoilt_arrays(rng, arrays), []), [])
        return Place(commands, commanded[name.removeprefix("recording ")], make)
    if name == "minari":
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
        return Place(commands, ["fit", "c.yaml", "minari:fuzz-v0", "--run", "made"], damaged(minari, at="minari"))
    placed = {
        "disk fit": (["fit", "c.yaml", "run", "--run", "made"], damaged(disk_run, "replay")),
        "disk evaluate": (["evaluate", "run"], damaged(disk_run)),
        "run evaluate": (["evaluate", "run"], damaged(finished)),
        "run resume": (["train", "--resume", "run", "--training.steps=50"], damaged(finished, "checkpoint")),
        "fit diagnose": (["diagnose", "run"], damaged(fitted)),
    }
    return Place(commands, *placed[name])


PLACES = (
    *("csv", "npz", "recording fit", "recording diagnose", "recording export"),
    *("disk fit", "disk evaluate", "run evaluate", "run resume", "fit diagnose", "minari"),
)


@pytest.mark.parametrize("reader", PLACES, indirect=True)
def test_what_is_spoilt_is_good_before(reader: Place) -> None:
    """Else everything would be refused, for a reason that has nothing to do with the damage."""
    assert reader.commands.refusal([*reader.arguments, *reader.put(None)], "good") is None


@pytest.mark.parametrize("reader", PLACES, indirect=True)
def test_fuzz_datasets(reader: Place, request: pytest.FixtureRequest) -> None:
    reader.fuzz(request.node.callspec.params["reader"], QUICK, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("reader", PLACES, indirect=True)
def test_fuzz_many_datasets(reader: Place, request: pytest.FixtureRequest) -> None:
    reader.fuzz(request.node.callspec.params["reader"], SLOW, seed=1)
