"""Runs whose behaviour plans: trained, saved, read back, and told when their model breaks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldmodel.agents import Planner
from worldmodel.training import Run, train
from worldmodel.training.cli import main
from worldmodel.training.loop.evaluations import UNSOUND
from worldmodel.training.loop.trainer import Trainer

TINY: dict[str, Any] = {
    "env": {"id": "Pendulum-v1", "time_limit": 20},
    "model": {"hidden": 8, "latent": {"size": 4}, "dynamics": {"rssm": {"deter": 8, "hidden": 8}}},
    "behaviour": {
        "name": "planner",
        "actor_critic": {"hidden": 8, "starts": 4, "horizon": 2},
        "planner": {
            "horizon": 3,
            "icem": {"candidates": 8, "elites": 4, "iterations": 2},
            "mppi": {"candidates": 8, "elites": 4, "iterations": 2},
            "cem": {"candidates": 8, "elites": 4, "iterations": 2},
        },
    },
    "replay": {"batch_size": 2, "window": 4},
    "training": {"steps": 40, "prefill": 20, "pretrain": 1, "replay_ratio": 4, "log_every": 10},
    "evaluation": {"every": 20, "episodes": 1, "final_episodes": 2},
    "logger": {"wandb": "disabled"},
}
DISCRETE = {"id": "CartPole-v1", "time_limit": 20}


def changed(**planner: Any) -> dict[str, Any]:
    behaviour = {**TINY["behaviour"], "planner": {**TINY["behaviour"]["planner"], **planner}}
    return {**TINY, "behaviour": behaviour}


@pytest.mark.parametrize("env", [TINY["env"], DISCRETE], ids=["continuous", "discrete"])
@pytest.mark.parametrize("optimizer", ["cem", "icem", "mppi", "random"])
def test_a_planner_is_trained_saved_and_read_back(tmp_path: Path, env: dict[str, Any], optimizer: str) -> None:
    made = train({**changed(optimizer=optimizer), "env": env}, run=tmp_path / "run")
    assert made.env_steps == 40 and len(made.behaviour.state_dict()) == 0  # nothing is learned but the model
    again = Run.load(made.folder)
    assert isinstance(again.behaviour, Planner)
    observation = np.zeros(made.obs_specs["observation"].shape, np.float32)
    torch.manual_seed(0)
    action, _ = made.agent.predict(observation, deterministic=True)
    torch.manual_seed(0)
    np.testing.assert_array_equal(action, again.agent.predict(observation, deterministic=True)[0])
    assert again.evaluate(2).returns == made.evaluate(2).returns


def test_a_guide_is_trained_and_saved_with_its_planner(tmp_path: Path) -> None:
    made = train(changed(optimizer="mppi", proposals=3, terminal_value=True), run=tmp_path / "run")
    again = Run.load(made.folder)
    rows = [json.loads(line) for line in (made.folder / "metrics.jsonl").read_text().splitlines()]
    assert any("actor_critic/critic_loss" in row for row in rows)
    assert len(again.behaviour.state_dict()) > 0
    for name, value in made.behaviour.state_dict().items():
        assert torch.equal(value, again.behaviour.state_dict()[name])


def test_a_model_that_breaks_is_reported_with_the_step_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From step 30 on the reward head predicts nothing finite while planning."""
    collect = Trainer.collect

    def breaking(self: Trainer, behaviour: Any) -> None:
        head = self.run.model.reward
        assert head is not None
        bias, broken = head.last.bias, self.envs.steps >= 29
        kept = bias.detach().clone()
        if broken:
            with torch.no_grad():
                bias.fill_(torch.nan)
        collect(self, behaviour)
        with torch.no_grad():
            bias.copy_(kept)

    monkeypatch.setattr(Trainer, "collect", breaking)
    made = train(TINY, run=tmp_path / "run")
    said = capsys.readouterr().err
    assert f"30 steps: {UNSOUND}" in said and said.count(UNSOUND) == 1
    rows = [json.loads(line) for line in (made.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["rollout/unsound_decisions"] for row in rows if "rollout/unsound_decisions" in row][-1] == 11
    stored = made.replay.everything()
    assert len(stored.reward[0]) >= 40 and bool((stored.prev_action.abs() <= 1).all())


def test_planner_settings_that_make_no_sense_are_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for override, message in (
        (["--behaviour.planner.cem.elites", "5000"], "1000 candidates and 5000 elites"),
        (["--behaviour.planner.optimizer", "cma"], "'cma' is not one of 'cem', 'icem', 'mppi', 'random'"),
        (["--behaviour.planner.refine", "3", "--env.id", "CartPole-v1"], "discrete actions do not have"),
    ):
        arguments = ["train", "configs/planet_pendulum.yaml", "--run", str(tmp_path / "run"), *override]
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
