"""Every member of the family and every behaviour on a device, against the same on the CPU: a line that mixes fails."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodel.agents import Agent
from worldmodel.agents.build import BehaviourConfig, build_behaviour
from worldmodel.agents.planning.planner import OPTIMIZERS
from worldmodel.diagnostics.actions import action_test
from worldmodel.diagnostics.baselines import fit_baselines, series
from worldmodel.diagnostics.collapse import collapse
from worldmodel.diagnostics.evidence import posterior_gap
from worldmodel.diagnostics.open_loop import open_loop, scores
from worldmodel.diagnostics.probe import linear_probe
from worldmodel.diagnostics.scores import calibration
from worldmodel.dynamics import DYNAMICS
from worldmodel.learning.bounds import fivo, log_likelihood
from worldmodel.learning.learner import Learner, LearnerConfig
from worldmodel.learning.objective import ObjectiveConfig, annealed, model_loss
from worldmodel.model import WorldModel
from worldmodel.networks.outputs import Normalizer
from worldmodel.specs import ActionSpec, ObservationSpec
from worldmodel.training.config.schema import build as configured
from worldmodel.training.config.schema import merge
from worldmodel.training.run.tree import load_tree, save_tree
from worldmodel.types import Batch

OBS = {"x": ObservationSpec((2,)), "phase": ObservationSpec((), classes=(3,), start=(0,))}  # of the fixture `build`
SMALL: dict[str, Any] = {
    "actor_critic": {"hidden": 8, "starts": 3, "horizon": 2, "noise": "pink"},
    "planner": {
        "horizon": 2,
        "refine": 1,
        **{name: {"iterations": 2, "candidates": 6, "elites": 2} for name in ("cem", "icem", "mppi")},
        "random": {"candidates": 6},
    },
    "exploration": {"task": 0.1, "ensemble": {"members": 2, "hidden": 4}},
}
BEHAVIOURS = [name for name in get_args(get_type_hints(BehaviourConfig)["name"]) if name != "sb3"]
GUIDED = {"proposals": 2, "terminal_value": True}
CHOICES: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in BEHAVIOURS},
    "symlog values": {"actor_critic": {"value_output": "symlog", "slow_regulariser": 1.0}},
    "two-hot values": {"actor_critic": {"value_output": "twohot", "bootstrap": "own", "policy": "clipped"}},
    "replayed values": {"actor_critic": {"starts": 0, "replay_value": 0.3, "action_noise": 0.3}},
    **{name: {"name": "planner", "planner": {"optimizer": name, **GUIDED}} for name in OPTIMIZERS},
}

Answer = dict[str, Tensor]
Check = Callable[[Callable[[str], Answer]], None]


@pytest.fixture
def same(pretended: Callable[[str], AbstractContextManager[str]]) -> Check:
    """Ask that what is computed on a device is finite, and what the CPU computes: the pretended one draws alike."""

    def check(ours: Callable[[str], Answer]) -> None:
        torch.manual_seed(0)
        expected = ours("cpu")
        torch.manual_seed(0)
        with pretended("cuda") as device:
            found = {name: value.cpu() for name, value in ours(device).items()}
        assert expected.keys() == found.keys() and expected
        for name, value in found.items():
            assert value.isfinite().all(), name
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-3, msg=f"{name}: {value}")

    return check


def learned(model: WorldModel, records: Batch, batch: Batch, device: str) -> Answer:
    """Units from records on the CPU, as a replay gives them, twice; and an update on a batch of the device."""
    model.fit_normalizers(records)
    model.fit_normalizers(records._replace(obs={**records.obs, "x": 3 * records.obs["x"]}), keep=True)
    learner = Learner(partial(model_loss, model, ObjectiveConfig()), model.parameters(), LearnerConfig())
    (_, metrics), report = learner.update(batch, annealed(ObjectiveConfig(), 0, device), None)
    return {**metrics, **report}


def test_every_member_of_the_family_is_swept(members: tuple[str, ...]) -> None:
    assert {member.partition(" ")[0] for member in members} == set(DYNAMICS)


def test_a_member_learns_and_forecasts(
    member: str,
    build: Callable[..., WorldModel],
    window: Callable[..., Batch],
    on_device: Callable[..., Any],
    same: Check,
) -> None:
    family = "gaussian" if member == "kvae" else "onehot"

    def ours(device: str) -> Answer:
        model, records = build(member, family).to(device), window(4, 4)
        batch = on_device(records, device)
        found = learned(model, records, batch, device)
        with torch.no_grad():
            found["elbo"] = model.elbo(batch).total
            if model.dynamics.can_filter:
                obs = {key: value[:, 0] for key, value in batch.obs.items()}
                begun = model.filter(model.initial(4), obs, batch.prev_action[:, 0], batch.is_first[:, 0])
                found["filtered"] = model.feature(begun)
            if model.dynamics.can_imagine:
                for key, forecast in open_loop(model, batch, 2, samples=2).items():
                    found |= {f"{key}/{name}": value for name, value in scores(forecast)._asdict().items()}
        return found

    same(ours)


def test_what_diagnoses_any_member(
    build: Callable[..., WorldModel], window: Callable[..., Batch], on_device: Callable[..., Any], same: Check
) -> None:
    def ours(device: str) -> Answer:
        model, batch = build("rssm").to(device), on_device(window(9, 7), device)
        with torch.no_grad():
            found = {f"active {key}": value for key, value in collapse(model, batch).explained.items()}
            found |= {f"controls {key}": value for key, value in action_test(model, batch, 4, 2).elbo.items()}
            found |= linear_probe(model, batch, {"x": batch.obs["x"]}, 3)
            found |= {"iwae": log_likelihood(model, batch, 2), "fivo": fivo(model, batch, 2)}
            found["gap"] = posterior_gap(model, batch, 2).mean
            forecast = open_loop(model, batch, 4, samples=2)["x"]
            found["coverage"] = calibration(forecast.samples, forecast.value).coverage
            baselines = fit_baselines(model, batch, batch, 4)
            found |= {name: each.predict(series(model, batch), 4) for name, each in baselines.items()}
        return found

    same(ours)


@pytest.mark.parametrize(
    ("choice", "classes"),
    [*((choice, ()) for choice in CHOICES), *((choice, (2,)) for choice in (*BEHAVIOURS, *OPTIMIZERS))],
    ids=lambda each: each if isinstance(each, str) else "discrete" if each else "continuous",
)
def test_a_behaviour_acts_learns_and_goes_on(
    choice: str,
    classes: tuple[int, ...],
    build: Callable[..., WorldModel],
    window: Callable[..., Batch],
    on_device: Callable[..., Any],
    same: Check,
    tmp_path: Path,
) -> None:
    spec = ActionSpec((), classes, (0,)) if classes else ActionSpec((2,))
    changes = merge(CHOICES[choice], {"planner": {"refine": 0}} if classes else {})
    config = configured(BehaviourConfig, merge(SMALL, changes))
    seen = {"x": np.zeros((3, 2), np.float32), "phase": np.array([0, 1, 2])}

    def ours(device: str) -> Answer:
        model, records = build("rssm").to(device), window(3, 4)
        batch = on_device(records, device)
        with torch.no_grad():
            states = model.observe(batch).states
        behaviour = build_behaviour(config, model.feature_size, spec).to(device)
        behaviour.fit_normalizers(records)
        behaviour.fit_normalizers(records._replace(reward=3 * records.reward), keep=True)
        agent = Agent(model, behaviour, OBS, spec)
        sampled, memory = agent.predict(seen)
        likeliest, _ = agent.predict(seen, memory, np.array([True, False, False]), deterministic=True)
        found = {"sampled": torch.as_tensor(sampled), "likeliest": torch.as_tensor(likeliest)}
        found |= behaviour.learn(model, states, batch)
        save_tree(tmp_path / device, behaviour.training_state())
        behaviour.load_training_state(load_tree(tmp_path / device))
        again = behaviour.learn(model, states, batch)
        return found | {f"again {name}": value for name, value in again.items()}

    same(ours)


@pytest.mark.parametrize("config", [{}, {"optimizer": "laprop", "eps": 1e-20, "adaptive_clip": 0.3}], ids=str)
def test_an_optimizer_that_goes_on_has_all_it_remembers_on_the_device(config: dict[str, Any], gpu: str) -> None:
    weight = torch.nn.Parameter(torch.ones(3, device=gpu))
    learner = Learner(lambda: (weight.square().sum(), None), [weight], LearnerConfig(**config))
    learner.update()
    saved = learner.state()
    moved = {
        place: {name: value.cpu() for name, value in state.items()}
        for place, state in saved["optimizer"]["state"].items()
    }
    learner.load({**saved, "optimizer": {**saved["optimizer"], "state": moved}})
    for name, value in learner.optimizer.state[weight].items():
        assert value.device == weight.device, name
    learner.update()
    assert weight.isfinite().all()


def test_units_are_measured_in_double_precision_where_a_device_has_none(gpu: str) -> None:
    """A small variation on a large offset, of records that lie on the device: mean 10,000 and standard deviation 1."""
    units = Normalizer(1).to(gpu)
    values = torch.tensor([[9_999.0], [10_001.0]]).repeat(50_000, 1)
    ratio, shift = units.fit(values.to(gpu), torch.ones(len(values), device=gpu))
    assert (units.loc.item(), units.scale.item()) == (10_000.0, 1.0)
    assert (ratio.item(), shift.item()) == (1.0, 10_000.0) and ratio.device == units.loc.device


def test_the_pretended_device_refuses_what_a_real_one_refuses(gpu: str) -> None:
    here, there = torch.ones(2), torch.ones(2, device=gpu)
    for mixed in (lambda: here + there, lambda: torch.stack([here[0], there[0]]), lambda: here[there.long()]):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            mixed()
    with pytest.raises(TypeError, match="float64"):
        there.double()
    with pytest.raises((RuntimeError, TypeError)):
        there.numpy()
    assert (there + here[0]).device == there[torch.tensor([1])].device == here.to(there).device  # as on a real one
    there[1:] += here.to(gpu)[1:]
    assert there.tolist() == [1, 2] and there.cpu().device == here.device
