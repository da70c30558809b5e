"""The records of a run: metrics.jsonl and the real Weights & Biases, offline, read back with W&B's own tool."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb

from worldmodel.training.logging import wandb_run
from worldmodel.training.logging.logger import Averages, Logger, LoggerConfig, numbers


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which nobody has logged in to W&B, nor used it since this process began."""
    wandb.teardown()  # it remembers the mode and the key of whoever came first
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb_config"))


def records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """The records of one kind in the run's .wandb file, as `wandb leet inspect` prints them."""
    (file,) = run_dir.glob("wandb/*run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [record[kind] for record in map(json.loads, lines) if record["type"] == kind]


def jsonl(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def offline_run(tmp_path: Path) -> tuple[Path, list[str]]:
    said: list[str] = []
    run_dir = tmp_path / "pendulum"
    config = LoggerConfig(wandb="offline", tags=["a"])
    logger = Logger(run_dir, config, {"seed": 7, "behaviour": {"horizon": 15}}, say=said.append)
    logger.log({"world_model/log_likelihood/observation": torch.tensor(-2.5), "time/fps": 31}, step=200)
    logger.log({"eval/mean_reward": -180.5, "world_model/kl": torch.tensor(float("nan"))}, step=400)
    logger.close()
    return run_dir, said


def test_wandb_holds_names_values_axis_and_config(offline_run: tuple[Path, list[str]]) -> None:
    run_dir, said = offline_run
    history = [record["item"] for record in records(run_dir, "history")]
    assert [row["global_step"] for row in history] == [200, 400]
    assert history[0]["world_model/log_likelihood/observation"] == -2.5 and history[0]["time/fps"] == 31
    assert history[1]["eval/mean_reward"] == -180.5
    assert {"glob_name": "*", "step_metric": "global_step"}.items() <= records(run_dir, "metric")[1].items()

    run = records(run_dir, "run")[0]
    assert run["project"] == "worldmodel" and run["display_name"] == "pendulum" and run["tags"] == ["a"]
    saved = run["config"]["update"]
    assert saved["seed"] == 7 and saved["behaviour"] == {"horizon": 15}
    assert {"commit", "version"} <= saved.keys()

    assert len(said) == 1
    synced = Path(said[0].partition("wandb sync ")[2])
    assert synced.parent == run_dir / "wandb" and list(synced.glob("*.wandb"))


def test_jsonl_holds_the_same_as_strict_json(offline_run: tuple[Path, list[str]]) -> None:
    first, second = jsonl(offline_run[0])
    assert first["world_model/log_likelihood/observation"] == -2.5 and first["time/fps"] == 31
    assert (first["global_step"], second["global_step"]) == (200, 400)
    assert second["world_model/kl"] is None
    assert 0 <= first["seconds"] <= second["seconds"]


def test_auto_without_a_key_goes_offline_without_asking(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Logger(tmp_path / "run", LoggerConfig(), {}).close()
    out, err = capfd.readouterr()
    assert err == ""
    assert out.startswith("Weights & Biases: offline (no API key found") and out.count("\n") == 1


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_a_refused_key_goes_offline_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: wandb_run.Mode
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    said: list[str] = []
    Logger(tmp_path / "run", LoggerConfig(wandb=mode), {}, say=said.append).close()
    assert len(said) == 1 and "offline (WANDB_API_KEY invalid" in said[0] and "wandb sync" in said[0]


def test_auto_follows_wandb_mode_and_disabled_writes_jsonl_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = Logger(tmp_path / "run", LoggerConfig(), {})
    logger.log({"x": 1}, step=3)
    logger.close()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]
    assert capfd.readouterr() == ("", "")


def test_a_resumed_run_goes_on_in_the_same_file(tmp_path: Path) -> None:
    for step in (1, 2):
        logger = Logger(tmp_path, LoggerConfig(wandb="disabled"), {})
        logger.log({"x": step}, step)
        logger.close()
    assert [row["global_step"] for row in jsonl(tmp_path)] == [1, 2]


def test_what_was_logged_after_a_checkpoint_is_forgotten(tmp_path: Path) -> None:
    """Also twice, and where nothing is logged in between."""
    logger = Logger(tmp_path, LoggerConfig(wandb="disabled"), {})
    logger.log({"x": 1}, 1)
    then = logger.position()
    logger.log({"x": 2}, 2)
    logger.close()
    for _ in range(2):
        logger = Logger(tmp_path, LoggerConfig(wandb="disabled"), {}, since=then)
        then = logger.position()
        logger.close()
    logger = Logger(tmp_path, LoggerConfig(wandb="disabled"), {}, since=then)
    logger.log({"x": 3}, 3)
    assert then["seconds"] <= logger.position()["seconds"]
    logger.close()
    assert [row["global_step"] for row in jsonl(tmp_path)] == [1, 3]


def test_disabled_does_not_import_wandb(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from worldmodel.training.logging.logger import Logger, LoggerConfig;"
        f"Logger(Path({str(tmp_path)!r}), LoggerConfig(wandb='disabled'), {{}}); sys.exit('wandb' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


def test_numbers_keeps_order_and_integers() -> None:
    read = numbers({"b": torch.tensor([1.5]), "a": 3, "c": torch.tensor(2), "d": torch.tensor(True)})
    assert list(read.items()) == [("b", 1.5), ("a", 3), ("c", 2.0), ("d", 1.0)]
    assert isinstance(read["a"], int)
    assert json.dumps(numbers({"x": np.float32(0.5)})) == '{"x": 0.5}'


def test_a_metric_that_is_no_scalar_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metric 'kl' has shape \(2, 3\)"):
        numbers({"kl": torch.zeros(2, 3)})


def test_averages_count_each_name_and_copy_what_they_add() -> None:
    averages, static = Averages(), torch.tensor(1.0, requires_grad=True)
    averages.add({"loss": static, "rare": 4})
    with torch.no_grad():
        static.fill_(3.0)  # as a captured update does
    averages.add({"loss": static})
    assert averages.sums["loss"].requires_grad is False  # type: ignore[union-attr]
    assert averages.pop() == {"loss": 2.0, "rare": 4.0}
    assert averages.pop() == {}
