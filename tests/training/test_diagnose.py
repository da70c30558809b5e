"""`worldmodel diagnose` as a person or a script uses it."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from training.cli import main
from training.diagnose import DiagnoseConfig, diagnose
from training.run import Run
from training.subject import open_subject

TINY: dict[str, Any] = {
    "env": {"id": "worldmodel/Counter-v0", "kwargs": {"length": 20, "continuous": True}},
    "model": {"hidden": 8, "latent": {"size": 4}, "dynamics": {"rssm": {"deter": 8, "hidden": 8}}},
    "behaviour": {"hidden": 8, "starts": 4, "horizon": 2},
    "replay": {"batch_size": 2, "window": 4},
    "training": {"steps": 320, "prefill": 310, "pretrain": 1, "replay_ratio": 1},
    "evaluation": {"every": 1000, "episodes": 1, "final_episodes": 1},
    "logger": {"wandb": "disabled"},
}
SMALL = ["--context", "2", "--horizon", "3", "--samples", "4"]
PAIRS = list(zip(SMALL[::2], SMALL[1::2], strict=True))
FIGURES = {"open_loop.png", "examples.png", "latent.png", "calibration.png"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return str(file)


@pytest.fixture(scope="module")
def finished(config: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", config, "--run", str(folder)]) == 0
    return folder


def test_diagnose_writes_numbers_that_agree_with_what_it_prints(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as where it is not installed
    assert main(["diagnose", str(finished), *SMALL, "--json"]) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found == json.loads((finished / "media" / "diagnosis.json").read_text())
    assert {"latent", "actions", "open loop", "calibration"} == found["verdicts"].keys()
    assert shown[0].split(maxsplit=1) == ["latent", found["verdicts"]["latent"]]
    assert found["trained_on"] and found["horizon"] == 3
    model, arx = found["open_loop"]["observation"]["model"], found["open_loop"]["observation"]["linear ARX"]
    assert len(model["nll"]) == 3 and len(model["rmse"][0]) == 2
    assert max(map(max, arx["rmse"])) < 1  # it counts, and shows the action: both are linear
    assert found["actions"]["elbo_loss"].keys() >= {"of another sequence"}
    assert any("no figures" in line and "worldmodel[plot]" in line for line in shown)


def test_diagnose_repeats_itself_and_leaves_the_random_state(finished: Path) -> None:
    import torch

    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    results = [diagnose(finished, config=DiagnoseConfig(2, 3, 4)) for _ in range(2)]
    assert torch.equal(before, torch.random.get_rng_state())
    first, again = (each.outlooks["observation"].forecast for each in results)
    assert torch.equal(first.samples, again.samples)


def test_diagnose_draws_figures_of_another_recording(
    config: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    data = tmp_path / "data.npz"
    assert main(["collect", config, "--steps", "330", "--out", str(data), "--env.num_envs", "3"]) == 0
    assert main(["diagnose", str(finished), str(data), *SMALL, "--against", str(finished)]) == 0
    out = capsys.readouterr().out
    assert str(data) in out and "trained on these" not in out
    assert f"as good as {finished}" in out
    assert {file.name for file in (finished / "media").glob("*.png")} == FIGURES


def test_the_recent_part_is_held_out(finished: Path) -> None:
    stream = Run.load(finished).replay.stream(0)
    recording = open_subject(finished).read(None)
    assert recording.seen
    length = stream.reward.shape[1]
    assert recording.train[0].reward.shape[1] == int(0.8 * length)
    assert recording.held[0].obs["observation"].tolist() == stream.obs["observation"][:, int(0.8 * length) :].tolist()


def test_a_fit_is_diagnosed_on_its_test_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """y_t = 0.5 y_{t-1} + u_{t-1} + noise, as a CSV; linear ARX must find it."""
    rng = np.random.default_rng(0)
    u, y = rng.normal(size=400), np.zeros(400)
    for t in range(1, 400):
        y[t] = 0.5 * y[t - 1] + u[t - 1] + 0.1 * rng.normal()
    file, config, folder = (str(tmp_path / name) for name in ("system.csv", "config.yaml", "run"))
    Path(file).write_text("y,u\n" + "\n".join(f"{a},{b}" for a, b in zip(y, u, strict=True)))
    settings = {
        "data": {"observations": ["y"], "controls": ["u"], "split": {"train": 0.6, "validation": 0.1, "test": 0.3}},
        "model": {"hidden": 8, "latent": {"size": 2}, "dynamics": {"name": "dkf", "dkf": {"hidden": 8}}},
        "fit": {"updates": 2, "batch_size": 2},
        "logger": {"wandb": "disabled"},
    }
    Path(config).write_text(yaml.safe_dump(settings))
    assert main(["fit", config, file, "--run", folder]) == 0
    assert main(["diagnose", folder, *SMALL, "--against", folder]) == 0
    out = capsys.readouterr().out
    assert "measured on the test data of" in out and "trained on these" not in out
    found = json.loads((Path(folder) / "media" / "diagnosis.json").read_text())
    assert not found["trained_on"]
    assert max(map(max, found["open_loop"]["observation"]["linear ARX"]["rmse"])) < 0.2
    assert main(["diagnose", folder, file, *SMALL]) == 0
    assert "measured on the test data" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--horizon", "40"], "lower --context or --horizon"),
        (["--context", "0"], "at least 1"),
        (["--samples", "1"], "at least 2"),
        (["missing.npz"], "missing.npz"),
        (["--against", "nowhere"], "nowhere holds no run"),
    ],
)
def test_diagnose_says_what_is_wrong(
    finished: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    small = [option for pair in PAIRS if pair[0] not in arguments for option in pair]
    assert main(["diagnose", str(finished), *arguments, *small]) == 2
    assert message in capsys.readouterr().err


def test_diagnose_refuses_a_recording_of_another_environment(
    config: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "other.npz"
    assert main(["collect", config, "--steps", "20", "--out", str(data), "--env.kwargs.continuous", "false"]) == 0
    assert main(["diagnose", str(finished), str(data), *SMALL]) == 2
    assert "other.npz" in capsys.readouterr().err
