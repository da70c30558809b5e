"""The table of the eighteen tasks: statistics against definitions, published returns against their published means."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def control18(benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark("control18")


@pytest.mark.parametrize(
    ("frames", "method", "tasks", "mean", "median"),
    [
        (50_000, "BRO u10", 18, 648, 773),
        (50_000, "SimBa u2", 17, 516, 429),
        (100_000, "DreamerV3", 18, 442, 470),
        (100_000, "TD-MPC2", 18, 623, 723),
        (100_000, "BMPC", 18, 641, 761),
        (100_000, "SimBa u8", 18, 736, 770),
        (100_000, "BRO u10", 18, 753, 867),
        (100_000, "WIMLE", 7, 555, 602),
    ],
)
def test_published_returns_have_the_means_that_are_reported_of_them(
    control18: ModuleType, frames: int, method: str, tasks: int, mean: float, median: float
) -> None:
    found = {task: np.array([value]) for task, value in control18.published()[frames][method].items()}
    assert len(found) == tasks and set(found) <= set(control18.TASKS)
    assert float(control18.mean(found)) == pytest.approx(mean, abs=1)
    assert float(control18.median(found)) == pytest.approx(median, abs=1)


def test_every_published_method_says_how_it_was_scored(control18: ModuleType) -> None:
    methods = control18.PUBLISHED.with_name("control18_methods.csv").read_text().splitlines()[1:]
    named = {line.split(",")[0] for line in methods}
    assert named == {method for methods in control18.published().values() for method in methods}


def test_a_bootstrap_draws_the_seeds_of_each_task(control18: ModuleType) -> None:
    """Two tasks of two seeds each: the mean of a draw is a sum of two independent binomial halves, known in full."""
    scores = {"a": np.array([0.0, 4.0]), "b": np.array([100.0, 140.0])}
    # a: 0, 2, 4 with 1/4, 1/2, 1/4; b: 100, 120, 140 likewise. Lowest and highest mean: 1/16 each, above 2.5 %.
    assert control18.interval(scores, control18.mean) == (50.0, 72.0)
    assert control18.interval({**scores, "c": np.array([3.0])}, control18.mean) is None
    many = {"a": np.random.default_rng(0).normal(5, 2, 400)}
    half = 1.96 * many["a"].std() / 20
    assert control18.interval(many, control18.mean) == pytest.approx(
        (many["a"].mean() - half, many["a"].mean() + half), abs=0.02
    )


def test_the_table_compares_the_same_tasks(
    control18: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    head = ",".join(control18.learning_rows.COLUMNS)
    lines = [
        f"{task},dream,{seed},{frames // 2},{frames},{value + seed},{frames / 100},{commit * 40},c0,1"
        for commit in "ab"
        for seed in (1, 2)
        for frames in (50_000, 100_000)
        for task, value in (("dmc_hopper_hop", 10), ("dmc_ball_in_cup_catch", 20 if commit == "a" else 900))
    ]
    for name in ("r.csv", "r_final.csv"):
        (tmp_path / name).write_text("\n".join([head, *lines]) + "\n")

    def printed(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", ["control18.py", str(tmp_path / "r.csv"), *more])
        control18.main()
        return capsys.readouterr().out

    with pytest.raises(ValueError, match=r"rows of 2 commits: choose one with --commit"):
        printed()
    with pytest.raises(
        ValueError, match=r"no rows of commit 'c' and these seeds; the commits there: aaaaaaaa, bbbbbbbb"
    ):
        printed("--commit", "c")
    out = printed("--commit", "b")
    assert "| hopper_hop | **12** | 11, 12 | 0.14 | 0 | 2 | 14 | 54 |" in out
    # SimBa's published tasks lack ball_in_cup_catch at 50,000 frames: its mean over the same tasks is of one.
    assert "| mean of the 2 task(s) done here | **456** | 456 to 457 |  | 286 | 383 | 14 (1) | 510 |" in out
    assert "| mean of all 18 | | | | 245 | 412 | 516 (17) | 648 |" in out
    assert "| hopper_hop | **12** | 12 |" in printed("--commit", "b", "--seeds", "2")
    pytest.importorskip("matplotlib")
    printed("--commit", "b", "--picture", str(tmp_path / "r.png"))
    assert (tmp_path / "r.png").stat().st_size > 20_000
