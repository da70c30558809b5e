"""What a model imagines of returns is told in a unit that means something, and warned of only where it is wrong."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from worldmodel.agents import AgentState, Decision
from worldmodel.training import Run, train
from worldmodel.training.evaluation.evaluation import Evaluation, imagined_returns
from worldmodel.training.evaluation.imagined_vs_real import ReturnRange, promise
from worldmodel.types import Prediction


def evaluation(
    returns: list[float],
    imagined: list[float],
    weighed: list[float] | None = None,
    random: float | None = None,
    best: float | None = None,
) -> Evaluation:
    known = ReturnRange(random or 0.0, 0 if random is None else 1, best)
    found = Evaluation(returns, [20] * len(returns), None, imagined, (), (), weighed or imagined)
    return found._replace(spread=known.spread(found.mean))


def test_a_model_that_promises_too_much_is_warned_of() -> None:
    said = promise(evaluation([-190.0, -210.0], [-150.0, -168.0]))
    assert said.startswith("warning: The model imagines a return of -159.0 for the same episodes. It differs")
    assert "by 20% of the size of the returns. The model overestimates the return. Run `worldmodel diagnose`" in said
    assert "--training.steps" in said
    assert "The model underestimates the return" in promise(evaluation([-100.0], [-150.0]))
    assert promise(evaluation([-200.0], [-190.0])).startswith("The model imagines a return of -190.0")
    assert "warning" not in promise(evaluation([0.0, 3.0], [0.0, 3.1]))  # about 0 its spread is the size
    assert promise(evaluation([0.0], [1.0])) == "The model imagines a return of 1 for the same episodes."


def test_a_solved_task_is_not_warned_of() -> None:
    """-10.6 for -7.5 is 41 % of the return, and 3 % of what there was to learn: random actions have -109."""
    result = evaluation([-7.5], [-10.6], random=-109.0)
    assert result.gap == pytest.approx(3.1 / 101.5)
    assert promise(result) == (
        "The model imagines a return of -10.6 for the same episodes. "
        "It differs from the real return by 3% of the range from random to best."
    )
    failed = evaluation([-100.0], [-60.0], random=-109.0, best=-9.0)  # measured by what was once reached
    assert failed.gap == pytest.approx(0.4) and "overestimates" in promise(failed)


def test_where_returns_differ_by_chance_a_mean_is_not_warned_of() -> None:
    """Four of ten episodes reach the goal in the world, six in the dream: they differ by 1.0 standard errors."""
    real, dreamt = [1.0] * 4 + [0.0] * 6, [0.0] * 4 + [1.0] * 6
    result = evaluation(real, dreamt, random=0.0)
    assert result.gap is not None and result.gap > 0.1 and "warning" not in promise(result)
    assert "overestimates" in promise(evaluation([0.0] * 8 + [1.0] * 2, [1.0] * 10, random=0.0))


class Going:
    """A reward of 1 at every step, after which the episode goes on with a probability that is always the same."""

    def __init__(self, goes_on: float, discount: float = 1.0) -> None:
        self.goes_on, self.discount = goes_on, discount

    def imagine(self, state: torch.Tensor, control: torch.Tensor, sample: bool = True) -> torch.Tensor:
        return state

    def feature(self, state: torch.Tensor) -> torch.Tensor:
        return state

    def predict(self, feature: torch.Tensor, decode: bool = True) -> Prediction:
        ones = torch.ones(len(feature))
        return Prediction({}, ones, ones * self.goes_on * self.discount)


class Still:
    """The same action at every step."""

    def act(self, model: Any, state: Any, memory: Any, deterministic: bool = False) -> Decision:
        return Decision(torch.zeros(len(state), 1), memory, torch.ones(len(state), dtype=torch.bool))


def promised(model: Going, steps: int, returns: list[float], random: float = 20.0) -> Evaluation:
    """What the model says of so many steps, beside what the same episodes returned."""
    agent = SimpleNamespace(model=model, behaviour=Still(), device=torch.device("cpu"))
    begin = torch.zeros(len(returns), 1)
    imagined, weighed = imagined_returns(agent, AgentState(begin, begin, None, begin > 0), steps)  # type: ignore[arg-type]
    return evaluation(returns, imagined, weighed, random)


def test_the_error_of_a_continuation_is_not_compounded_into_a_warning() -> None:
    """0.998 a step over 1,000 steps weighs 1,000 rewards of 1 as (1 - 0.998^1000) / 0.002 = 432."""
    result = promised(Going(0.998), 1000, [1000.0, 1000.0])
    assert result.imagined == [1000.0, 1000.0]
    np.testing.assert_allclose(result.weighed, (1 - 0.998**1000) / 0.002, rtol=1e-4)
    assert result.gap == 0 and promise(result) == (
        "The model imagines a return of 432.5 to 1000.0 for the same episodes. "
        "It differs from the real return by 0% of the range from random to best."
    )


def test_where_chance_ends_episodes_the_expectation_is_the_promise() -> None:
    """With 0.99 a step an episode lasts 100 steps on average, though none of its ends is likelier than not."""
    lengths = np.random.default_rng(0).geometric(0.01, 200).clip(max=1000).astype(float).tolist()
    result = promised(Going(0.99), 1000, lengths, random=0.0)
    assert "warning" not in promise(result)
    assert "overestimates" in promise(promised(Going(0.998), 500, [21.0, 19.0]))
    assert "underestimates" in promise(promised(Going(0.2), 500, [500.0, 500.0]))


def test_a_continuation_above_its_discount_does_not_compound() -> None:
    result = promised(Going(1.0015, discount=0.997), 1000, [1000.0])
    assert result.imagined == result.weighed == [1000.0]


def test_the_range_is_that_of_random_actions_and_of_evaluations() -> None:
    known = ReturnRange()
    assert known.spread(3.0) is None
    known.ended([], True)
    known.ended([-4.0], False)  # the first of all: no episode of random actions has ended
    known.ended([9.0, float("nan")], False)
    assert known.spread(1.0) == 5.0
    known.evaluated(float("nan"))
    known.evaluated(6.0)
    known.evaluated(2.0)
    assert known.spread(1.0) == 10.0 and known.spread(7.0) == 11.0


def test_a_run_knows_the_range_of_its_returns_when_it_is_read_back(tmp_path: Path) -> None:
    """Of 25 random steps the first 20 are an episode; later ones are the agent's."""
    settings = {
        "env": {"id": "Pendulum-v1", "time_limit": 20},
        "model": {"hidden": 8, "latent": {"size": 2}, "dynamics": {"rssm": {"deter": 8, "hidden": 8}}},
        "behaviour": {"actor_critic": {"hidden": 8, "starts": 4, "horizon": 2}},
        "replay": {"batch_size": 2, "window": 4},
        "training": {"steps": 60, "prefill": 25, "pretrain": 1, "replay_ratio": 1},
        "evaluation": {"every": 30, "episodes": 1, "final_episodes": 1},
        "logger": {"wandb": "disabled"},
    }
    made = train(settings, run=tmp_path / "run")
    first = float(made.replay.stream(0, 0, 21).reward.sum())
    assert (made.returns.count, made.returns.total) == (1, pytest.approx(first, rel=1e-5))
    rows = [json.loads(line) for line in (made.folder / "metrics.jsonl").read_text().splitlines()]
    played = [row[name] for row in rows for name in row if name in ("eval/mean_reward", "final/mean_reward")]
    assert made.returns.best == max(played) and len(played) == 3
    again = Run.load(made.folder)
    assert again.returns == made.returns
    result = again.evaluate(1)
    assert result.spread == pytest.approx(abs(max(result.mean, *played) - first))
