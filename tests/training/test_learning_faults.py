"""Updates that are not finite are skipped, told and, where they persist, end in a return to what was good."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from worldmodel.training import Run, train
from worldmodel.training.cli import main
from worldmodel.training.config.schema import merge
from worldmodel.training.loop import collector, faults, updater
from worldmodel.training.run.checkpoint import find, numbers
from worldmodel.training.start import resume

TINY: dict[str, Any] = {
    "env": {"id": "Pendulum-v1", "time_limit": 30},
    "model": {"hidden": 8, "latent": {"size": 4}, "dynamics": {"rssm": {"deter": 8, "hidden": 8}}},
    "behaviour": {"actor_critic": {"hidden": 8, "starts": 4, "horizon": 2}},
    "replay": {"batch_size": 2, "window": 4},
    "training": {"steps": 60, "prefill": 20, "pretrain": 0, "replay_ratio": 8, "log_every": 10},
    "evaluation": {"every": 30, "episodes": 1, "final_episodes": 1},
    "logger": {"wandb": "disabled"},
}  # an update for every step from 20 on


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def spoiled(monkeypatch: pytest.MonkeyPatch, when: Callable[[int], bool]) -> list[int]:
    """Let the model's loss be infinite in the updates, counted from 0, for which `when` holds; the updates so far."""
    updates, honest, learn = [0], updater.model_loss, updater.Updater.learn

    def loss(*given: Any, **named: Any) -> Any:
        value, aux = honest(*given, **named)
        return value * torch.inf if when(updates[0] - 1) else value, aux

    def counted(self: Any, update: Any) -> Any:
        updates[0] += 1
        return learn(self, update)

    monkeypatch.setattr(updater, "model_loss", loss)
    monkeypatch.setattr(updater.Updater, "learn", counted)
    return updates


def test_an_update_that_is_not_finite_changes_nothing_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    seen = []
    learn = updater.Updater.learn

    def watched(self: Any, update: Any) -> Any:
        before = [parameter.clone() for parameter in self.run.model.parameters()]
        found = learn(self, update)
        seen.append(all(torch.equal(p, q) for p, q in zip(before, self.run.model.parameters(), strict=True)))
        return found

    monkeypatch.setattr(updater.Updater, "learn", watched)
    spoiled(monkeypatch, lambda call: call == 5)
    folder = train(TINY, run=tmp_path / "run").folder
    assert seen == [update == 5 for update in range(40)]
    logged = {row["global_step"]: row.get("training/skipped_updates") for row in rows(folder) if "replay/steps" in row}
    assert logged == {30: 1, 40: 1, 50: 1, 60: 1}
    assert all(np.isfinite(row["world_model/loss"]) for row in rows(folder) if "world_model/loss" in row)
    assert "an update was not finite and is skipped" in capsys.readouterr().err
    (report,) = (folder / "faults").iterdir()
    found = json.loads((report / "report.json").read_text())
    assert found["update"] == 6 and "world_model" in found["not_finite"]["gradients"][0]
    batch = load_file(report / "batch.safetensors")
    assert batch["obs/observation"].shape == (2, 4, 3) and batch["prev_action"].shape == (2, 4, 1)


def test_a_report_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(faults, "save_tensors", full)
    spoiled(monkeypatch, lambda call: call == 5)
    assert train(TINY, run=tmp_path / "run").env_steps == 60
    assert "its report could not be written ([Errno 28] No space left on device)" in capsys.readouterr().err


def test_the_report_names_the_module_where_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight of the reward head that became infinite."""
    learn = updater.Updater.learn

    def breaks(self: Any, update: Any) -> Any:
        if self.updates == 3:
            with torch.no_grad():
                self.run.model.reward.net[-1].weight[:] = 3e38
        return learn(self, update)

    monkeypatch.setattr(updater.Updater, "learn", breaks)
    with pytest.raises(FloatingPointError, match=r"11 updates were not finite, before there was a checkpoint"):
        train(merge(TINY, {"evaluation": {"every": 1000}}), run=tmp_path / "run")
    first = sorted((tmp_path / "run/faults").iterdir())[0]
    found = json.loads((first / "report.json").read_text())
    assert found["first"] == ["outputs", "world_model.reward.net.6"], found
    assert len(list((tmp_path / "run/faults").iterdir())) == 3
    assert not (tmp_path / "run/checkpoint").exists() and len(np.load(tmp_path / "run/replay/replay.npz")["reward"][0])


def test_too_many_bring_back_the_last_checkpoint_with_a_lower_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """From update 15 on 11 in a row: the evaluation at 30 steps has made the checkpoint that returns."""
    spoiled(monkeypatch, lambda call: 15 <= call < 26)
    made = train(TINY, run=tmp_path / "run")
    assert (
        "11 updates were not finite; the weights of checkpoint 00001 (30 steps) are restored, and the learning "
        "rate is multiplied by 0.5" in (capsys.readouterr().err)
    )
    last = rows(made.folder)[-2]
    assert last["training/skipped_updates"] == 11 and last["training/restored_checkpoints"] == 1
    assert made.env_steps == 60 and len(made.replay) == 63  # nothing recorded was lost
    assert made.behaviour.learner.optimizer.param_groups[0]["lr"] == 5e-4
    more = resume(made.folder, 70)
    assert more.behaviour.learner.optimizer.param_groups[0]["lr"] == 5e-4
    assert rows(made.folder)[-2]["training/skipped_updates"] == 11


def test_what_does_not_get_better_stops_with_the_last_good_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Two returns are allowed, and ten skipped updates before each: 33 from update 12 on."""
    calls = spoiled(monkeypatch, lambda call: call >= 12)
    config = merge(TINY, {"training": {"steps": 100}, "evaluation": {"every": 30}})
    with pytest.raises(FloatingPointError, match=r"11 updates were not finite, after 2 return\(s\) to a checkpoint"):
        train(config, run=tmp_path / "run")
    assert calls[0] == 12 + 33
    folder = tmp_path / "run"
    told = f"the records are saved in {folder}; the weights are those of the last checkpoint"
    assert told in capsys.readouterr().err
    assert numbers(folder / "checkpoint") == [1] and find(folder / "checkpoint")[0].env_steps == 30
    assert len(Run.load(folder).replay) > 60
    monkeypatch.undo()
    assert main(["train", "--resume", str(folder)]) == 0  # from there, and without the fault


def one_action_breaks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the decision of that number be none."""
    calls = [0]

    class Broken(collector.Agent):
        def predict(self, *given: Any) -> Any:
            actions, state = super().predict(*given)
            calls[0] += 1
            return actions * np.nan if calls[0] == number else actions, state

    monkeypatch.setattr(collector, "Agent", Broken)


def test_an_action_that_is_not_finite_brings_a_checkpoint_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_action_breaks(monkeypatch, 50)
    made = train(TINY, run=tmp_path / "run")
    assert made.env_steps == 60 and rows(made.folder)[-2]["training/restored_checkpoints"] == 1


def test_an_action_that_is_not_finite_before_the_first_checkpoint_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    one_action_breaks(monkeypatch, 25)
    told = (
        "^training diverged by step 24: an action at step 24 is not finite, before there was a checkpoint to return to"
    )
    with pytest.raises(FloatingPointError, match=told):
        train(TINY, run=tmp_path / "run")
    assert (tmp_path / "run" / "replay" / "replay.npz").is_file()  # what was recorded until then
    assert "; there is no checkpoint yet" in capsys.readouterr().err


def test_a_covariance_without_a_decomposition_is_an_update_that_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """What `kvae` meets where its weights have run away; the report says why, and training goes on."""
    learn, calls = updater.Updater.learn, [0]

    def breaks(self: Any, update: Any) -> Any:
        calls[0] += 1
        return torch.linalg.cholesky(-torch.eye(2)) if calls[0] == 7 else learn(self, update)

    monkeypatch.setattr(updater.Updater, "learn", breaks)
    folder = train(TINY, run=tmp_path / "run").folder
    assert "is skipped, a covariance has no decomposition" in capsys.readouterr().err
    assert rows(folder)[-2]["training/skipped_updates"] == 1
    (report,) = (folder / "faults").iterdir()
    assert json.loads((report / "report.json").read_text())["reason"] == "a covariance has no decomposition"


@pytest.mark.parametrize(("key", "value"), [("skips", -1), ("restores", -1), ("keep", 0)])
def test_bad_settings_are_refused(key: str, value: int, capsys: Any) -> None:
    assert main(["train", "configs/pendulum.yaml", f"--training.{key}", str(value)]) == 2
    assert key in capsys.readouterr().err
