"""Runs of every format that was ever released load, act as they did, and go on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from worldmodel.training import Run
from worldmodel.training.run.checkpoint import FORMAT_VERSION
from worldmodel.training.start import resume

FIXTURES = Path(__file__).parents[1] / "fixtures"
FORMATS = sorted(FIXTURES.glob("format-*"))


def test_there_is_a_run_of_each_format() -> None:
    """A new format needs `python tests/fixtures/make.py`."""
    assert [folder.name for folder in FORMATS] == [f"format-{number}" for number in range(1, FORMAT_VERSION + 1)]


@pytest.mark.parametrize("kept", FORMATS, ids=lambda folder: folder.name)
def test_a_run_of_an_earlier_format(kept: Path, tmp_path: Path) -> None:
    expected = json.loads((kept / "expected.json").read_text())
    folder = shutil.copytree(kept, tmp_path / "run")
    run = Run.load(folder, at_checkpoint=True)
    assert run.env_steps == 60
    actions, _ = run.agent.predict(np.array(expected["observations"], np.float32), deterministic=True)
    np.testing.assert_allclose(actions, expected["actions"], rtol=1e-4, atol=1e-5)
    assert run.replay.everything().obs["observation"].sum().item() == pytest.approx(expected["sum_of_observations"])
    assert resume(folder, 70).env_steps == 70
    assert [json.loads(line)["global_step"] for line in (folder / "metrics.jsonl").read_text().splitlines()][-1] == 70
