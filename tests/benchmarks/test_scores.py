"""The statistics of the results' tables, against definitions."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def scores(benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark("scores")


@pytest.mark.parametrize("count", [1, 3, 4, 5, 10])
def test_the_interquartile_mean_is_that_of_the_middle_half(scores: ModuleType, count: int) -> None:
    """With every score four times, the middle half is whole copies of scores."""
    values = np.random.default_rng(count).normal(size=count)
    copies = np.sort(np.repeat(values, 4))
    assert float(scores.iqm(values)) == pytest.approx(copies[count : 3 * count].mean())


def test_the_interval_is_that_of_the_mean(scores: ModuleType) -> None:
    """Of many normal draws: within a hundredth of mean +- 1.96 s / sqrt(n)."""
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = scores.interval(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02) and high == pytest.approx(
        values.mean() + half, abs=0.02
    )
    assert scores.interval(np.array([3.0])) == (3.0, 3.0)


def test_curves_become_tables_and_the_published_form(
    scores: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "r.csv", tmp_path / "r.json"
    lines = ["task,variant,seed,env_steps,frames,return,seconds"]
    for seed in (1, 2):
        lines += [f"T,m,{seed},{step},{2 * step},{seed * step},1" for step in (10, 20, 30)]
    file.write_text("\n".join(lines))
    monkeypatch.setattr(sys, "argv", ["scores.py", str(file), "--at", "45", "5", "--json", str(out)])
    scores.main()
    printed = capsys.readouterr().out
    assert "| T | m | 45 | 2 | 30 | 30 | 20 to 40 | 20, 40 |" in printed and "| T | m | 5 | 2 | nan |" in printed
    assert json.loads(out.read_text())[1] == {
        "task": "T", "method": "m", "seed": 2, "xs": [20.0, 40.0, 60.0], "ys": [20.0, 40.0, 60.0]
    }  # fmt: skip
