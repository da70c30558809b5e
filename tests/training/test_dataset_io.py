"""Every kind of file gives aligned sequences, and a file that cannot be learned from is named with the place in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldmodel.training.cli import main
from worldmodel.training.config.data_config import DataConfig
from worldmodel.training.config.schema import build
from worldmodel.training.data.dataset import Dataset
from worldmodel.training.data.dataset_io import read, read_parts

Write = Callable[..., Path]
COLUMNS = ("y", "v", "u", "run")
TABLE = [(t, 100 + t, 10 * t, "a" if t < 4 else "b") for t in range(6)]  # y, v, u, run
ONE = [(*row[:3], "") for row in TABLE]  # the same as one sequence


def source(file: Path | str, **values: Any) -> DataConfig:
    return build(DataConfig, {"file": str(file), **values})


def first_rows(data: Dataset) -> list[int]:
    return torch.nonzero(data.everything().is_first[0]).flatten().tolist()


def controls(data: Dataset) -> list[list[float]]:
    return data.everything().prev_action[0].tolist()


# ---------------------------------------------------------------------------------------------------- CSV


@pytest.fixture
def table(tmp_path: Path) -> Write:
    """Writes TABLE, or `rows`, as data.csv."""

    def write(rows: Any = TABLE, header: Any = COLUMNS, name: str = "data.csv") -> Path:
        lines = [",".join(map(str, row)) for row in (header, *rows)]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return tmp_path / name

    return write


def test_columns_make_one_vector_in_the_order_of_the_config(table: Write) -> None:
    data = read(source(table(ONE), observations=["v", "y"], controls=["u"]))
    assert len(data) == 1 and data.control_width == 1
    assert data.everything().obs["observation"][0].tolist() == [[100 + t, t] for t in range(6)]
    assert data.obs_specs["observation"].width == 2


@pytest.mark.parametrize(("delay", "expected"), [(1, [0, 0, 10, 20, 30, 40]), (0, [0, 10, 20, 30, 40, 50])])
def test_delay_says_which_transition_a_control_acts_on(table: Write, delay: int, expected: list[float]) -> None:
    data = read(source(table(ONE), observations=["y"], controls=["u"], delay=delay))
    assert [u for (u,) in controls(data)] == expected


def test_by_default_the_control_of_a_row_leads_to_the_next(table: Write) -> None:
    data = read(source(table([(t, 0, 10 + t, "") for t in range(3)]), observations=["y"], controls=["u"]))
    assert controls(data) == [[0], [10], [11]]


def test_names_that_would_tell_the_model_what_it_is_to_explain() -> None:
    with pytest.raises(ValueError, match=r"named twice: y, y"):
        DataConfig(observations=["y", "y"])
    with pytest.raises(
        ValueError, match=r"^With delay 0, y would be both an observation and the control that leads to it"
    ):
        DataConfig(observations=["y"], controls=["u", "y"], delay=0)
    DataConfig(observations=["y"], controls=["y"])  # one row earlier it may be


def test_a_change_in_the_sequence_column_begins_a_sequence(table: Write) -> None:
    file = table()
    data = read(source(file, observations=["y"], controls=["u"], sequence="run"))
    assert data.lengths.tolist() == [4, 2] and first_rows(data) == [0, 4]
    assert [u for (u,) in controls(data)] == [0, 0, 10, 20, 0, 40]
    assert data.names == [f"{file}, lines 2-5", f"{file}, lines 6-7"]


def test_a_table_without_controls(table: Write) -> None:
    assert read(source(table(ONE), observations=["y"])).control_width == 0


def test_a_spreadsheet_s_csv(tmp_path: Path) -> None:
    """A byte order mark, quotes, Windows line ends, blank lines, and an empty column at the end."""
    file = tmp_path / "sheet.CSV"
    file.write_bytes('\ufeff"y","u","Ts",\r\n1,2,4,\r\n\r\n" 3 ",4,,\r\n'.encode())
    data = read(source(file, observations=["y"], controls=["u"]))
    assert data.everything().obs["observation"].flatten().tolist() == [1, 3] and controls(data) == [[0], [2]]
    assert data.names == [f"{file}, lines 2-4"]


# What looks like several recordings is never joined without a word.


def experiments(*, marked: bool = True, clock: bool = True, gap: str = "") -> str:
    """Five experiments of ten rows below each other, as a CSV with the columns time, u, level and experiment."""
    header = ["time"] * clock + ["u", "level"] + ["experiment"] * marked
    lines = [",".join(header)]
    for experiment in range(5):
        lines += [gap.replace("HEADER", lines[0])] * bool(gap and experiment)
        for t in range(10):
            row = [f"{0.1 * t:.1f}"] * clock + [str(t // 5), str(experiment + t)] + [str(experiment + 1)] * marked
            lines.append(",".join(row))
    return "\n".join(lines) + "\n"


FIVE = [10] * 5


@pytest.mark.parametrize(
    ("content", "said", "answer"),
    [
        (experiments(), ["line 12", "column 'experiment' has 5 values"], "experiment"),
        (experiments(clock=False), ["line 12", "column 'experiment' has 5 values"], "experiment"),
        (experiments(marked=False), ["line 12", "column 'time' falls"], "time"),
        (experiments().replace("experiment", "x"), ["line 12", "column 'x' has 5 values"], "x"),
        (experiments(marked=False).replace("time", "Sim Time [s]"), ["column 'Sim Time [s]' falls"], "Sim Time [s]"),
    ],
    ids=["both", "mark", "clock", "numbers", "unit"],
)
def test_several_recordings_in_a_table_are_asked_about(
    tmp_path: Path, content: str, said: list[str], answer: str
) -> None:
    file, columns = tmp_path / "all.csv", {"observations": ["level"], "controls": ["u"]}
    file.write_text(content)
    with pytest.raises(ValueError, match=r"data\.sequence") as refused:
        read(source(file, **columns))
    assert all(part in str(refused.value) for part in (str(file), f"Set data.sequence to {answer}", "false", *said))
    assert "\n" not in str(refused.value)
    data = read(source(file, **columns, sequence=answer))
    assert data.lengths.tolist() == FIVE and first_rows(data) == [0, 10, 20, 30, 40]
    assert read(source(file, **columns, sequence=False)).lengths.tolist() == [50]


@pytest.mark.parametrize("gap", [" ", "HEADER", ",,", "\nHEADER"], ids=["blank", "header", "empty cells", "both"])
def test_blank_lines_and_repeated_headers_end_a_sequence(tmp_path: Path, gap: str) -> None:
    file, columns = tmp_path / "all.csv", {"observations": ["level"], "controls": ["u"]}
    file.write_text(experiments(marked=False, clock=False, gap=gap))
    data = read(source(file, **columns))
    assert data.lengths.tolist() == FIVE and first_rows(data) == [0, 10, 20, 30, 40]
    (note,) = data.notes
    assert f"{file}: 5 sequences" in note and "data.sequence: false" in note
    joined = read(source(file, **columns, sequence=False))
    assert joined.lengths.tolist() == [50] and not joined.notes


def test_one_recording_is_not_asked_about(tmp_path: Path) -> None:
    """Steps of a control, classes that come back, a slow sensor, an angle that wraps, a clock, blank lines."""
    rng, lines = np.random.default_rng(0), ["time,u,y,weather,temperature,angle,day,id"]
    for t in range(100):
        weather, warm = ("sun", "rain")[t // 20 % 2], 20 + round(t / 30, 1)
        lines.append(f"{t},{t // 25},{rng.normal()},{weather},{warm},{t % 7},2026-11-30,4")
    file, columns = tmp_path / "one.csv", {"observations": ["y"], "controls": ["u"]}
    file.write_text("\n".join(lines))
    assert read(source(file, **columns)).lengths.tolist() == [100]
    file.write_text("\n\n".join(lines))
    data = read(source(file, **columns))
    assert data.lengths.tolist() == [100] and "blank lines" in data.notes[0]


def test_a_sequence_column_that_ends_no_sequence(table: Write) -> None:
    with pytest.raises(ValueError, match="column 'y': the values rise in every row and never fall"):
        read(source(table(ONE), observations=["v"], sequence="y"))
    with pytest.raises(ValueError, match=r"sequence is true\. It must be the name of a column, or false"):
        DataConfig(sequence=True)


def test_column_names_and_offsets_are_kept(table: Write) -> None:
    data = read(source(table(ONE), observations=["v", "y"]))
    assert data.obs_specs["observation"].labels("observation") == ["v", "y"]


def refusal(capsys: pytest.CaptureFixture[str], file: Path | str, data: dict[str, Any], run: Path) -> str:
    """The one line on standard error of a fit that must fail before it makes a run."""
    arguments = [f"--data.{key}={value}" for key, value in data.items()]
    config = run.parent / "config.yaml"
    config.write_text("logger: {wandb: disabled}")
    assert main(["fit", str(config), str(file), "--run", str(run), *arguments]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == "" and line.startswith("worldmodel fit: error: ") and not run.exists()
    return line


@pytest.mark.parametrize(
    ("rows", "data", "said"),
    [
        (TABLE, {"controls": "[yy]"}, ["line 1", "no column 'yy'", "did you mean 'y'?", "'v', 'u', 'run'"]),
        (TABLE, {"controls": "[U]"}, ["no column 'U'", "did you mean 'u'?"]),
        (TABLE, {"sequence": "runs"}, ["no column 'runs'", "did you mean 'run'?"]),
        (TABLE, {"observations": "null"}, ["data.observations names no column", "'y', 'v', 'u', 'run'"]),
        ([*TABLE, ("7,5", 0, 0, "b")], {}, ["line 8: the row has 5 cells, but the header has 4"]),
        ([*TABLE[:3], ("high", 1, 1, "a")], {}, ["line 5", "column 'y'", "'high' is not a number"]),
        ([*TABLE[:3], ("nan", 1, 1, "a")], {}, ["line 5", "column 'y'", "nan is not a finite number"]),
        ([*TABLE[:3], (1, 1, "-inf", "a")], {}, ["line 5", "column 'u'", "-inf is not a finite number"]),
        ([*TABLE[:3], (1, 1, "1e39", "a")], {}, ["line 5", "column 'u'", "1e39 is not a finite number"]),
        ([*TABLE[:3], ("1_000", 1, 1, "a")], {}, ["line 5", "column 'y'", "'1_000' is not a number"]),
        (
            [*TABLE, (1, 1, 1, "a")],
            {"sequence": "run"},
            ["line 8", "column 'run'", "'a' appears again after", "line 2"],
        ),
        ([*TABLE[:3], ("", 1, 1, "a")], {}, ["line 5", "column 'y'", "empty"]),
        ([*TABLE[:3], (1, 1)], {}, ["line 5", "column 'u'", "empty"]),
        ([*TABLE[:3], (), ("x", 1, 1, "a")], {}, ["line 6", "column 'y'", "'x' is not a number"]),
        ([], {}, ["a header, but no rows"]),
        ([("y", 1, 1, "a")] * 3, {}, ["line 2", "column 'y'"]),
    ],
)
def test_a_bad_table_is_refused_with_the_place(
    table: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: Any, data: dict[str, Any], said: list[str]
) -> None:
    line = refusal(capsys, table(rows), {"observations": "[y]", "controls": "[u]", **data}, tmp_path / "run")
    assert str(tmp_path / "data.csv") in line and all(part in line for part in said), line


def test_a_column_that_is_there_twice(table: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(header=("y", "y", "u", "run"))
    assert "2 columns are called 'y'" in refusal(capsys, file, {"observations": "[y]"}, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("data.csv", b"\xff\xfe\x00", "cannot be read as CSV"),
        ("data.csv", b"", "Available: none"),
        ("data.npz", b"no archive", "cannot be read as an .npz archive"),
        ("data.npz", b"", "cannot be read as an .npz archive"),
        ("data.txt", b"y\n1\n", ".csv, .npz, a run folder or minari:DATASET_ID"),
        ("folder", None, "has no replay/replay.npz"),
        ("missing.csv", None, "no file at"),
    ],
)
def test_what_is_no_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, said: str
) -> None:
    (tmp_path / "folder").mkdir()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    line = refusal(capsys, tmp_path / name, {"observations": "[y]"}, tmp_path / "run")
    assert str(tmp_path / name) in line and said in line


def test_a_sequence_shorter_than_the_window(table: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(t, 0, 0, name) for name, length in (("a", 9), ("b", 4), ("c", 9), ("d", 9)) for t in range(length)]
    data = {"observations": "[y]", "sequence": "run", "window": 6, "validation": "{observations: [v]}"}
    data["split"] = "{test: 0}"
    line = refusal(capsys, table(rows), data, tmp_path / "run")
    assert "lines 11-14: this sequence of 4 steps is shorter than the window of 6" in line
    assert "data.window to 4 or less" in line and "null" in line and "data.drop_short" in line
    mapping = {"observations": ["y"], "sequence": "run", "window": 6, "drop_short": True, "split": {"test": 0}}
    parts = read_parts(source(tmp_path / "data.csv", **mapping, validation={"observations": ["v"]}))
    assert parts["train"].lengths.tolist() == [9, 9, 9] and parts["validation"].lengths.tolist() == [9, 4, 9, 9]


# ----------------------------------------------------------------------------------------- parts from elsewhere


def test_the_test_part_may_be_other_columns_of_the_same_file(table: Write) -> None:
    config = source(table(ONE), observations=["y"], controls=["u"], test={"observations": ["v"], "controls": ["y"]})
    parts = read_parts(build(DataConfig, {**vars(config), "window": 2, "split": {}, "test": vars(config.test)}))
    assert {name: len(part.everything().mask[0]) for name, part in parts.items()} == {
        "train": 5,
        "validation": 1,
        "test": 6,
    }
    assert parts["test"].everything().obs["observation"][0, :, 0].tolist() == [100 + t for t in range(6)]
    assert controls(parts["test"]) == [[0], [0], [1], [2], [3], [4]]


def test_a_part_may_be_another_file(table: Write) -> None:
    table([(t, 0, 0, "") for t in range(50, 54)], name="other.csv")
    file = table(ONE)
    values = {"observations": ["y"], "window": 2, "split": {"test": 0}}
    parts = read_parts(source(file, **values, validation=str(file.with_name("other.csv"))))
    assert list(parts) == ["train", "validation"] and parts["train"].lengths.tolist() == [6]
    assert parts["validation"].everything().obs["observation"].flatten().tolist() == [50, 51, 52, 53]


def test_a_part_from_elsewhere_is_named_in_its_errors(
    table: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(capsys, table(ONE), {"observations": "[y]", "test": "{controls: [u]}"}, tmp_path / "run")
    assert "data.test" in line and "1 controls, but the training data has 0" in line


# ---------------------------------------------------------------------------------------------------- npz


@pytest.fixture
def archive(tmp_path: Path) -> Write:
    def write(**arrays: Any) -> Path:
        np.savez(tmp_path / "data.npz", **arrays)
        return tmp_path / "data.npz"

    return write


X = np.arange(12, dtype=np.float64).reshape(6, 2)
U = 10 * np.arange(6)[:, None]


@pytest.mark.parametrize(
    ("arrays", "lengths"),
    [
        ({"x": X, "u": U}, [6]),
        ({"x": X.reshape(2, 3, 2), "u": U.reshape(2, 3, 1)}, [3, 3]),
        ({"x": X, "u": U, "lengths": np.array([4, 2])}, [4, 2]),
        ({"x": np.stack([X[:4], X[2:]]), "u": np.stack([U[:4], U[2:]]), "lengths": np.array([2, 4])}, [2, 4]),
    ],
    ids=["one", "stacked", "ragged", "padded"],
)
def test_arrays_by_name(archive: Write, arrays: dict[str, np.ndarray], lengths: list[int]) -> None:
    data = read(source(archive(**arrays), observations=["x"], controls=["u"]))
    assert data.lengths.tolist() == lengths and list(data.obs_specs) == ["x"]
    for index in range(len(data)):
        part = data.part(index)
        x, u = part.obs["x"][0], part.prev_action[0]
        assert (x.diff(dim=0) == 2).all()
        assert torch.equal(u[1:, 0], 5 * x[:-1, 0]) and u[0] == 0


def test_padded_archives_may_hold_anything_in_the_padding(archive: Write) -> None:
    x = np.full((2, 3, 1), np.nan)
    x[0, :2], x[1, :3] = 1, 2
    assert read(source(archive(x=x, lengths=np.array([2, 3])), observations=["x"])).everything().obs["x"].sum() == 8


def test_booleans_are_binary_observations(archive: Write) -> None:
    notes = np.random.default_rng(0).random((5, 88)) < 0.1
    data = read(source(archive(notes=notes), observations=["notes"]))
    assert data.obs_specs["notes"].binary and data.control_width == 0
    assert np.array_equal(data.everything().obs["notes"][0].numpy(), notes)


def test_several_arrays_are_several_keys_and_one_control(archive: Write) -> None:
    data = read(source(archive(x=X, y=X[:, :1], u=U, v=U), observations=["y", "x"], controls=["v", "u"], delay=0))
    assert {key: spec.width for key, spec in data.obs_specs.items()} == {"y": 1, "x": 2}
    assert controls(data) == [[0, 0], *([10 * t] * 2 for t in range(1, 6))]


WITH_NAN = X.copy()
WITH_NAN[4, 1] = np.nan


@pytest.mark.parametrize(
    ("arrays", "data", "said"),
    [
        ({"x": X}, {}, ["no array 'u'", "'x'"]),
        ({"x": X, "u": U}, {"observations": "null"}, ["data.observations names no array", "'x', 'u'"]),
        ({"x": WITH_NAN, "u": U}, {}, ["sequence 1, 'x', row 5, column 2: nan"]),
        (
            {"x": WITH_NAN, "u": U, "lengths": np.array([3, 3])},
            {},
            ["sequence 2, 'x', row 2, column 2: nan is not a finite number"],
        ),
        ({"x": X, "u": U[:5]}, {}, ["'u' (5, 1) does not fit 'x' (6, 2)"]),
        ({"x": X, "u": U, "lengths": np.array([3, 4])}, {}, ["'lengths' (2,) with the sum 7", "'x' (6, 2)"]),
        ({"x": X, "u": U, "lengths": np.array([6, 0])}, {}, ["at least 1"]),
        ({"x": X.ravel(), "u": U}, {}, ["'x' has the shape (12,)", "(N, L, width)"]),
        ({"x": np.array([["a"]]), "u": U}, {}, ["'x' has the shape (1, 1) and the type <U1"]),
        ({"x": np.array([[{}]], object), "u": U}, {}, ["cannot be read", "Python objects"]),
    ],
)
def test_a_bad_archive_is_refused_with_the_place(
    archive: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arrays: dict[str, np.ndarray],
    data: dict[str, Any],
    said: list[str],
) -> None:
    line = refusal(capsys, archive(**arrays), {"observations": "[x]", "controls": "[u]", **data}, tmp_path / "run")
    assert str(tmp_path / "data.npz") in line and all(part in line for part in said), line


# --------------------------------------------------------------------------------------- our own recordings


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Counter shows time and the last action, and pays the time: every row can be checked by itself."""
    folder = tmp_path_factory.mktemp("recording")
    (folder / "config.yaml").write_text(
        "env: {id: worldmodel/Counter-v0, num_envs: 2, kwargs: {length: 5, continuous: true}}"
    )
    out = folder / "replay" / "replay.npz"
    assert main(["collect", str(folder / "config.yaml"), "--steps", "24", "--out", str(out)]) == 0
    return out


def check_counter(data: Dataset) -> None:
    assert data.from_env and data.lengths.tolist() == [6, 6, 3] * 2
    for index in range(len(data)):
        part = data.part(index)
        count, echo = part.obs["observation"][0].unbind(-1)
        assert (count.diff() == 1).all()
        torch.testing.assert_close(2 * part.prev_action[0, :, 0], echo)  # controls are actions / 2
        assert torch.equal(part.reward[0], count * ~part.is_first[0])
        assert part.is_terminal[0, -1] == (data.lengths[index] == 6) and not part.is_terminal[0, :-1].any()


def test_recordings_are_cut_at_resets(recording: Path) -> None:
    check_counter(read(source(recording)))


def test_a_run_folder_is_its_replay(recording: Path) -> None:
    check_counter(read(source(recording.parent.parent)))


def changed(recording: Path, file: Path, **arrays: np.ndarray | None) -> Path:
    """A copy of a recording with other arrays, or without one that is None."""
    with np.load(recording) as saved:
        np.savez(file, **{name: array for name, array in {**dict(saved), **arrays}.items() if array is not None})
    return file


def test_a_reset_that_nothing_followed_is_no_sequence(recording: Path, tmp_path: Path) -> None:
    file = changed(recording, tmp_path / "data.npz", stored=np.array([7, 13]))
    assert read(source(file)).lengths.tolist() == [6, 6, 6]


def test_a_stream_whose_beginning_was_forgotten_begins_all_the_same(recording: Path, tmp_path: Path) -> None:
    with np.load(recording) as saved:
        arrays = {name: array[:, 2:] if array.ndim > 1 else array - 2 for name, array in saved.items()}
    np.savez(tmp_path / "data.npz", **arrays)
    data = read(source(tmp_path / "data.npz"))
    assert data.lengths.tolist() == [4, 6, 3] * 2
    first = data.part(0)
    assert first.is_first[0, 0] and first.prev_action[0, 0] == 0 and first.reward[0, 0] == 0


def test_classes_of_discrete_observations_are_those_that_were_seen(recording: Path, tmp_path: Path) -> None:
    with np.load(recording) as saved:
        phase = (np.arange(saved["reward"].size) % 3).reshape(*saved["reward"].shape, 1)
    data = read(source(changed(recording, tmp_path / "data.npz", **{"obs/phase": phase}), observations=["phase"]))
    assert list(data.obs_specs) == ["phase"] and data.obs_specs["phase"].classes == (3,)


@pytest.mark.parametrize(
    ("data", "arrays", "said"),
    [
        ({"controls": "[]"}, {}, ["there are actions", "Leave data.controls out"]),
        ({"controls": "[u]"}, {}, ["the only control of a recording is 'prev_action'"]),
        ({"controls": "[u]"}, {"prev_action": np.zeros((2, 15, 0))}, ["there are no actions", "names u"]),
        ({"observations": "[observaton]"}, {}, ["no observation 'observaton'", "did you mean 'observation'?"]),
        ({}, {"reward": np.full((2, 15), np.nan)}, ["stream 1, 'reward', row 1: nan"]),
        ({}, {"reward": np.zeros((2, 14))}, ["does not fit 'reward' (2, 14)"]),
        ({}, {"stored": np.array([16, 15])}, ["does not fit 'reward'"]),
        ({}, {"stored": np.array([1, 0])}, ["no sequence of two or more steps"]),
        ({}, {"stored": np.array([16.0, 3.0])}, ["'stored' has the shape (2,) and the type float64"]),
        ({}, {"prev_action": None}, ["this recording lacks prev_action"]),
    ],
)
def test_a_bad_recording_is_refused(
    recording: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    data: dict[str, Any],
    arrays: dict[str, np.ndarray],
    said: list[str],
) -> None:
    line = refusal(capsys, changed(recording, tmp_path / "data.npz", **arrays), data, tmp_path / "run")
    assert str(tmp_path / "data.npz") in line and all(part in line for part in said), line


def test_only_a_csv_has_a_column_of_sequences(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "data.sequence works only with a CSV file" in refusal(
        capsys, recording, {"sequence": "run"}, tmp_path / "run"
    )


def test_only_recordings_have_rewards(table: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, table(ONE), {"observations": "[y]", "rewards": "true"}, tmp_path / "run")
    assert "data.rewards" in line and "has no rewards" in line


# ------------------------------------------------------------------------------------------------- Minari


def test_minari_without_minari(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "minari", None)
    assert "pip install 'worldmodel[minari]'" in refusal(capsys, "minari:cart/pole-v0", {}, tmp_path / "run")


@pytest.fixture
def minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return pytest.importorskip("minari", reason="the optional package minari is not installed")


@pytest.mark.parametrize("kind", ["file", "run"])
def test_a_recording_goes_to_minari_and_back(
    minari: Any, recording: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    given = recording if kind == "file" else recording.parent.parent
    assert main(["export", str(given), "minari:counter/random-v0"]) == 0
    assert "6 episodes" in capsys.readouterr().out
    check_counter(read(source("minari:counter/random-v0")))
    episode = minari.load_dataset("counter/random-v0")[0]
    scale = 1 if kind == "run" else 2  # from a run, actions are those of the environment again
    np.testing.assert_allclose(scale * episode.actions[:, 0], episode.observations[1:, 1], rtol=1e-6)
    assert len(episode.observations) == 6 and episode.terminations.tolist() == [False] * 4 + [True]


def test_minari_says_what_is_missing(
    minari: Any, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "`minari download no/thing-v0`" in refusal(capsys, "minari:no/thing-v0", {}, tmp_path / "run")
    for target in ("counter-v0", "minari:counter", "minari:a counter-v0"):
        assert main(["export", str(recording), target]) == 2
        assert "minari:NAME-vN" in capsys.readouterr().err


def test_the_line_of_a_header_after_blank_ones_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "late.csv").write_text("\n\ny,u\n1,2\n")
    with pytest.raises(ValueError, match="line 3: there is no column 'v'"):
        read(source(tmp_path / "late.csv", observations=["v"]))
