"""Rows of learning curves are added, never changed and never lost."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

ALL = ["task", "variant", "seed", "env_steps", "frames", "return", "seconds", "commit", "config", "threads"]
OLD = "task,variant,seed,env_steps,frames,return,seconds\r\nT,m,1,10,20,1.5,3.25\r\nT,m,1,20,40,2.5,6.5\r\n"


@pytest.fixture(scope="module")
def rows(benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark("learning_rows")


def a_run(rows: ModuleType, seed: int = 1, commit: str = "a" * 40, returns: tuple[float, ...] = (1.0, 2.0)) -> list:
    values = [["T", "m", seed, 10 * n, 20 * n, value, 3 * n, commit, "c0ffee", 1] for n, value in enumerate(returns, 1)]
    return [dict(zip(rows.COLUMNS, map(str, each), strict=True)) for each in values]


def test_rows_from_before_commits_were_recorded_stay(rows: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    file.write_text(OLD, newline="")
    assert rows.merge(file, a_run(rows)) == [rows.Key("T", "m", 1, "a" * 40, "c0ffee")]
    there = rows.read(file)
    assert [row["return"] for row in there] == ["1.5", "2.5", "1.0", "2.0"]
    assert [row["seconds"] for row in there[:2]] == ["3.25", "6.5"] and there[0]["commit"] == ""
    assert [run.commit for run in rows.runs(there)] == ["", "a" * 40]


def test_two_machines_merge_in_either_order_and_twice(
    rows: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with its curves and its final evaluations."""
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    for place in (lambda file: file, rows.final_file):
        rows.merge(place(one), a_run(rows, 1) + a_run(rows, 2))
        rows.merge(place(two), a_run(rows, 2) + a_run(rows, 3))
    for into, other in ((one, two), (two, one), (one, two)):
        monkeypatch.setattr(sys, "argv", ["learning_rows.py", str(into), str(other)])
        rows.main()
    assert rows.runs(rows.read(one)) == rows.runs(rows.read(two))
    assert sorted(run.seed for run in rows.runs(rows.read(one))) == [1, 2, 3]
    assert rows.runs(rows.read(rows.final_file(one))) == rows.runs(rows.read(rows.final_file(two)))
    assert "seed 3" in (printed := capsys.readouterr().out) and "holds every run" in printed


def test_the_same_run_with_other_rows_is_refused_and_nothing_changes(rows: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    rows.merge(file, a_run(rows))
    before = file.read_bytes()
    again = a_run(rows, returns=(1.0, 2.5))
    with pytest.raises(
        ValueError, match=r"already holds T m, seed 1 at commit aaaaaaaa, config c0ffee, with other rows"
    ):
        rows.merge(file, [*a_run(rows, 2), *again])
    assert file.read_bytes() == before


def test_rows_of_another_commit_or_config_are_of_another_run(rows: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    other = [{**row, "config": "decade"} for row in a_run(rows)]
    rows.merge(file, a_run(rows))
    assert len(rows.merge(file, a_run(rows, commit="b" * 40) + other)) == 2
    assert len(rows.runs(rows.read(file))) == 3


def test_processes_that_merge_at_once_lose_nothing(rows: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: rows.merge(file, a_run(rows, seed)), range(40)))
    assert sorted(run.seed for run in rows.runs(rows.read(file))) == list(range(40))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "its first line is 'a,b'"),
        (OLD.replace("seconds", "seconds,machine"), "its first line is"),
        (OLD + "T,m,1,30,6", "line 4 was cut off"),
        (OLD + "T,m,one,1,2,3,4\n", "line 4"),
        (OLD + "T,m,1,1,2,nonsense,4\n", "line 4"),
        (",".join(ALL) + "\nT,m,1,1,2,3,4,aaaa", "line 2"),
    ],
)
def test_a_file_that_is_damaged_is_left_alone(rows: ModuleType, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "r.csv"
    file.write_text(text, newline="")
    with pytest.raises(ValueError, match=says):
        rows.merge(file, a_run(rows))
    assert file.read_text() == text.replace("\r\n", "\n")


def test_curves_of_two_commits_are_not_drawn_as_one(rows: ModuleType) -> None:
    both = a_run(rows) + a_run(rows, commit="b" * 40)
    with pytest.raises(ValueError, match=r"several runs of one seed, .* choose a commit with --commit"):
        rows.one_each(both)
    assert rows.one_each(both, "bb") == a_run(rows, commit="b" * 40)
    with pytest.raises(ValueError, match="no rows of commit 'c'"):
        rows.one_each(both, "c")
