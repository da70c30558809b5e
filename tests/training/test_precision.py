"""Updates with products in bfloat16 move weights where those in float32 do."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.kernels.compiling import has_compiler
from worldmodel.kernels.precision import Precision
from worldmodel.training import Run, train
from worldmodel.training.config.compilation import learners
from worldmodel.training.config.config import Config, load_config
from worldmodel.training.loop.trainer import Trainer

TINY: dict[str, Any] = {
    "env": {"id": "Pendulum-v1", "time_limit": 10},
    "model": {"hidden": 32, "latent": {"family": "onehot", "groups": 4, "classes": 4}},
    "behaviour": {"actor_critic": {"hidden": 32, "starts": 0, "horizon": 5, "gradient": "score"}},
    "replay": {"batch_size": 8, "window": 6},
    "training": {"steps": 40, "prefill": 30, "pretrain": 2, "replay_ratio": 9},
    "evaluation": {"every": 100, "episodes": 1, "final_episodes": 1},
    "logger": {"wandb": "disabled"},
}


def config(precision: Precision, changes: dict[str, str]) -> Config:
    found = load_config(TINY, [f"--{key}={value}" for key, value in changes.items()])
    for _, learner in learners(found):
        learner.precision = precision
    return found


def gradients(folder: Path, precision: Precision, changes: dict[str, str]) -> dict[str, Tensor]:
    """Of each learner's first update, from the same weights, records and random numbers."""
    trainer = Trainer(Run.create(folder / precision, config(precision, changes)))
    trainer.prefill(30)
    torch.manual_seed(3)
    metrics, unsound = trainer.update()
    assert not unsound and all(torch.isfinite(value).all() for value in metrics.values())
    return {
        str(place): torch.cat([weight.grad.flatten() for weight in learner.parameters if weight.grad is not None])
        for place, learner in enumerate(trainer.learners())
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"behaviour.actor_critic.gradient": "pathwise", "model.latent.family": "gaussian"},
        {
            "training.joint": "true",
            "model.reward_output": "twohot",
            "behaviour.actor_critic.value_output": "twohot",
            "behaviour.actor_critic.bootstrap": "own",
            "behaviour.actor_critic.slow_regulariser": "1",
            "behaviour.actor_critic.replay_value": "0.3",
        },
        {"env.id": "CartPole-v1", "model.dynamics.rssm.cell": "blocks", "model.dynamics.rssm.deter": "32"},
        {"behaviour.name": "plan2explore", "behaviour.actor_critic.gradient": "pathwise"},
        {"objective.bound": "fivo", "objective.particles": "2", "model.dynamics.name": "dkf"},
        {"env.pixels": "true", "env.image_size": "32", "model.image_depth": "4", "model.images": "redundancy"},
        pytest.param(
            {"learner.compile": "step", "behaviour.actor_critic.learner.compile": "step", "training.joint": "true"},
            marks=[pytest.mark.slow, pytest.mark.skipif(not has_compiler(), reason="nothing to compile with")],
        ),
    ],
    ids=["pathwise", "joint", "discrete, in blocks", "plan2explore", "fivo", "redundancy", "compiled"],
)
def test_gradients_are_nearly_the_same(changes: dict[str, str], tmp_path: Path) -> None:
    full, half = (gradients(tmp_path, precision, changes) for precision in ("float32", "bfloat16"))
    assert full and full.keys() == half.keys()
    for place, gradient in full.items():
        assert not torch.equal(gradient, half[place])
        assert F.cosine_similarity(gradient, half[place], 0) > 0.97


def test_a_run_in_bfloat16_has_weights_in_float32_and_goes_on(tmp_path: Path) -> None:
    half = ["--learner.precision", "bfloat16", "--behaviour.actor_critic.learner.precision", "bfloat16"]
    run = train(TINY, half, run=tmp_path / "run")
    again = Run.load(run.folder)
    assert again.config.learner.precision == again.config.behaviour.actor_critic.learner.precision == "bfloat16"
    weights = [*again.model.parameters(), *again.behaviour.parameters()]
    assert {weight.dtype for weight in weights} == {torch.float32}
    assert again.evaluate(episodes=1).mean < 0
