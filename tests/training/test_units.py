"""Tasks that differ by nothing but the unit they are measured in are learned alike."""

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from worldmodel.envs.testing.probes import Choice
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.specs import ActionSpec, ObservationSpec
from worldmodel.training import train
from worldmodel.training.config.config import load_config
from worldmodel.training.loop.normalization import FAR, Reach
from worldmodel.training.loop.trainer import Trainer
from worldmodel.training.run.run import Run
from worldmodel.types import Batch

CHOICE: dict[str, Any] = {
    "env": {"id": "worldmodel.envs.testing.probes:worldmodel/Choice-v0"},
    "model": {"hidden": 32, "latent": {"size": 8}, "dynamics": {"rssm": {"deter": 32, "hidden": 32}}},
    "behaviour": {"actor_critic": {"hidden": 32, "starts": 64, "horizon": 5}},
    "replay": {"batch_size": 16, "window": 16},
    "training": {"steps": 1500},
    "evaluation": {"every": 10_000, "final_episodes": 20},
    "logger": {"wandb": "disabled"},
    "seed": 1,
}


def trainer_of(folder: Path, **kwargs: float) -> Trainer:
    trainer = Trainer(Run.create(folder, load_config(CHOICE | {"env": CHOICE["env"] | {"kwargs": kwargs}})))
    trainer.prefill(100)
    return trainer


def scales(trainer: Trainer) -> dict[str, float]:
    return {key: units.scale.item() for key, units in trainer.run.model.normalizers.items()}


@pytest.mark.parametrize(
    ("centre", "unit", "reward"), [(0, 1, 1), (0, 1e-4, 1e-4), (48.137, 1e-3, 1e-3), (0, 1e-9, 1e6), (1e5, 1, 1e25)]
)
def test_a_task_is_measured_in_its_own_units(tmp_path: Path, centre: float, unit: float, reward: float) -> None:
    trainer = trainer_of(tmp_path / "run", centre=centre, unit=unit, reward=reward)
    rows = trainer.run.replay.everything()
    right = rows.reward[~rows.is_first].double() / reward  # 0 or 1
    expected = {"observation": unit, "reward": reward * float(right.std(correction=0))}
    assert scales(trainer) == pytest.approx(expected, rel=2e-2)
    behaviour = cast(Any, trainer.run.behaviour)
    lifetime = 1 / (1 - behaviour.config.discount)
    assert behaviour.critic.output.normalizer.scale.item() == pytest.approx(
        reward * math.sqrt(right.mean()) * lifetime, 1e-3
    )
    assert behaviour.scale.floor.item() == pytest.approx(min(reward, 1.0))


def test_what_begins_to_move_is_measured_at_once(tmp_path: Path) -> None:
    """A movement of ten thousand of its units is not waited for until the recording has doubled."""
    trainer = trainer_of(tmp_path / "run", unit=1e-4)
    cast(Choice, trainer.envs.unwrapped.envs[0].unwrapped).unit = 1.0  # type: ignore[attr-defined]
    fitted = []
    for _ in range(20):
        trainer.collect(trainer.run.behaviour)
        before = scales(trainer)["observation"]
        trainer.refit_normalizers(trainer.envs.steps - 1)
        if scales(trainer)["observation"] != before:
            fitted.append((trainer.envs.steps, len(trainer.run.replay)))
    ((step, count),) = fitted
    assert step == 101  # one value of size 1 among those that are next to nothing
    assert scales(trainer)["observation"] == pytest.approx(math.sqrt(count - 1) / count, rel=1e-2)


def test_a_unit_reaches_as_far_as_any_of_the_values_it_was_taken_from() -> None:
    """The farthest that one of n values can be from their mean is sqrt(n - 1) standard deviations: one among zeros."""
    model = WorldModel.build(ModelConfig(hidden=8), {"observation": ObservationSpec((2,))}, ActionSpec((1,)))
    for count in (100, 10_000):
        x = torch.zeros(1, count, 2)
        x[0, 7] = 1.0
        flags = torch.zeros(1, count, dtype=torch.bool)
        batch = Batch(
            {"observation": x}, torch.zeros(1, count, 1), x[..., 0], flags, flags, flags, torch.ones(1, count)
        )
        model.fit_normalizers(batch)
        reach = Reach()
        reach.take(model, count)
        std = math.sqrt((1 / count) * (1 - 1 / count))
        far = max(FAR, 3 * math.sqrt(count)) * std
        none = np.zeros(2)
        assert not reach.exceeded(x[0, 6:8].numpy(), x[0, 6:8, 0].numpy())
        assert not reach.exceeded(np.array([[0, 0], [0, 0.99 * far]]), none)
        assert reach.exceeded(np.array([[0, 0], [0, -1.01 * far]]), none)
        assert not reach.exceeded(np.array([[0, 0], [0, 1.01 * far]]), none)  # told before
        assert reach.exceeded(np.zeros((2, 2)), np.array([0, 1.01 * far]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("centre", "unit", "reward"), [(0, 1, 1), (0, 1e-4, 1), (48.137, 1e-3, 1), (0, 1, 1e-3), (0, 1, 1e-4), (0, 1, 1e25)]
)
def test_a_choice_is_learned_in_any_unit(tmp_path: Path, centre: float, unit: float, reward: float) -> None:
    """Perfect is 20, chance 10."""
    env = CHOICE["env"] | {"kwargs": {"centre": centre, "unit": unit, "reward": reward}}
    run = train(CHOICE | {"env": env}, run=tmp_path / "run")
    assert run.evaluate().mean > 19 * reward
