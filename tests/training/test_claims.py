"""Runs of one config that are begun at the same time each get a folder of their own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodel.training import WorldModelAgent, fit, start, train
from worldmodel.training.data.dataset import control_normalizer
from worldmodel.training.loop.trainer import Trainer
from worldmodel.training.run.folder import TakenError, claim, free_folder
from worldmodel.training.run.run import Run

TINY: dict[str, Any] = {
    "env": {"id": "Pendulum-v1", "time_limit": 10},
    "model": {"hidden": 8, "latent": {"size": 2}, "dynamics": {"rssm": {"deter": 8, "hidden": 8}}},
    "behaviour": {"actor_critic": {"hidden": 8, "starts": 4, "horizon": 2}},
    "replay": {"batch_size": 2, "window": 4},
    "training": {"steps": 12, "prefill": 10, "pretrain": 1, "replay_ratio": 1},
    "evaluation": {"every": 100, "final_episodes": 1},
    "logger": {"wandb": "disabled"},
}


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two runs of the same name are begun between the choice of a folder and its claim."""
    monkeypatch.chdir(tmp_path)
    quicker = [Path("runs/Pendulum-v1"), Path("runs/Pendulum-v1-2")]

    class Slow(Trainer):
        def __init__(self, run: Run, *given: Any) -> None:
            super().__init__(run, *given)
            for folder in quicker:
                claim(folder, run.config)

    monkeypatch.setattr(start, "Trainer", Slow)


def test_a_run_claims_the_next_folder_where_another_was_quicker(others: None) -> None:
    made = train(TINY)
    assert made.folder == Path("runs/Pendulum-v1-3")
    assert sorted(folder.name for folder in Path("runs").iterdir()) == ["Pendulum-v1", "Pendulum-v1-2", "Pendulum-v1-3"]
    assert (made.folder / "metrics.jsonl").is_file() and not (Path("runs/Pendulum-v1-2") / "metrics.jsonl").exists()


def test_a_folder_that_was_asked_for_is_not_replaced_by_another(others: None) -> None:
    with pytest.raises(TakenError, match=r"runs/Pendulum-v1 already holds a run\. Choose another --run folder"):
        train(TINY, run="runs/Pendulum-v1")


def test_a_fit_claims_the_next_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("noise.npz", x=np.random.default_rng(0).normal(size=(10, 8, 1)))
    settings = {"data": {"observations": ["x"], "window": 4}, "model": {"hidden": 8}, "fit": {"updates": 1}}

    def slow(dataset: Any) -> Any:
        Path("runs/noise").mkdir(parents=True)
        Path("runs/noise/config.yaml").write_text("another: 1\n")
        return control_normalizer(dataset)

    monkeypatch.setattr("worldmodel.training.fitting.fit.control_normalizer", slow)
    assert fit({**settings, "logger": TINY["logger"]}, "noise.npz").folder == Path("runs/noise-2")


def test_an_agent_claims_the_next_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which some begin to learn at the same time, long after they were made."""
    monkeypatch.chdir(tmp_path)
    agent = WorldModelAgent(TINY)

    def slow(name: str) -> Path:
        found = free_folder(name)
        claim(found, agent.run.config)
        return found

    monkeypatch.setattr("worldmodel.training.algorithm.agent.free_folder", slow)
    agent.learn(12)
    agent.close()
    assert agent.run.folder == Path("runs/Pendulum-v1-2")
