"""The planning behaviour: what it scores, what it remembers, and what it does when a model breaks."""

import shutil
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from worldmodel import ModelConfig, WorldModel
from worldmodel.agents import (
    ActorCritic,
    ActorCriticConfig,
    Agent,
    BehaviourConfig,
    Planner,
    PlannerConfig,
    build_behaviour,
)
from worldmodel.agents.planning.search import CEMConfig, ICEMConfig, MPPIConfig, refined
from worldmodel.dynamics import DynamicsConfig, RSSMConfig
from worldmodel.envs import EnvConfig, action_spec, make, observation_specs
from worldmodel.envs.testing.exact import ExactCartPole, ExactModel, ExactPendulum, ExactState
from worldmodel.learning.learner import Learner, LearnerConfig
from worldmodel.networks.latents import LatentConfig
from worldmodel.specs import OBSERVATION, ActionSpec, ObservationSpec
from worldmodel.training.config.config import load_config
from worldmodel.training.evaluation.evaluation import evaluate
from worldmodel.types import Batch, Prediction

TORQUE = ActionSpec((1,), low=(-2.0,), high=(2.0,))
PUSH = ActionSpec((), classes=(2,))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def agent(name: str, model: Any, config: PlannerConfig) -> Agent:
    env = make(EnvConfig(name))
    specs, control = observation_specs(env.observation_space), action_spec(env.action_space)
    return Agent(model, Planner(config, control), specs, control)


def learned(spec: ActionSpec, width: int = 3, family: Any = "gaussian") -> WorldModel:
    sizes = DynamicsConfig("rssm", rssm=RSSMConfig(deter=8, hidden=16))
    config = ModelConfig(sizes, LatentConfig(family, size=4), hidden=16)
    return WorldModel.build(config, {OBSERVATION: ObservationSpec((width,))}, spec)


# ------------------------------------------------------------------------------------ the score of a plan


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_a_plan_is_worth_the_discounted_rewards_up_to_the_end_of_its_episode(discount: float) -> None:
    """Against CartPole itself, from a state in which some plans fall within the horizon and others do not."""
    env, model = make(EnvConfig("CartPole-v1")), ExactCartPole()
    planner = Planner(PlannerConfig(discount=discount, horizon=12), PUSH)
    start = [0.0, 0.1, 0.12, 0.9]
    state = model.filter(model.initial(1), {OBSERVATION: torch.tensor([start])}, torch.zeros(1, 2), torch.ones(1) > 0)
    actions = np.random.default_rng(0).integers(2, size=(40, 12))
    plans = torch.nn.functional.one_hot(torch.from_numpy(actions), 2).float()
    found = planner.score_of(model, state)(plans.unsqueeze(0))[0]
    expected, lengths = [], set()
    for plan in actions:
        env.reset(seed=0)
        env.unwrapped.state = np.array(start)  # type: ignore[attr-defined]
        total, length = 0.0, 0
        for h, action in enumerate(plan):
            _, reward, terminated, _, _ = env.step(action)
            total, length = total + discount**h * float(reward), h + 1
            if terminated:
                break
        expected.append(total)
        lengths.add(length)
    assert len(lengths) > 3  # the case distinguishes
    torch.testing.assert_close(found, torch.tensor(expected))


def test_the_terminal_value_is_discounted_and_counts_only_where_the_episode_goes_on() -> None:
    guide = ActorCritic(ActorCriticConfig(hidden=8), 4, TORQUE)
    planner = Planner(PlannerConfig(horizon=3, discount=0.5, terminal_value=True), TORQUE, guide)
    guide.value = lambda feature: torch.full(feature.shape[:-1], 16.0)  # type: ignore[method-assign]

    class Given(ExactModel):
        size = 2

        def read(self, observation: Tensor) -> Tensor:
            return observation

        def transition(self, x: Tensor, control: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return x + 1, torch.ones(len(x)), x[:, 0] >= 2

    state = Given().initial(2)._replace(x=torch.tensor([[0.0, 0], [-9, 0]]))  # the first ends at its third step
    score = planner.score_of(Given(), state)(torch.zeros(2, 1, 3, 1))
    rewards = 1 + 0.5 + 0.25
    torch.testing.assert_close(score, torch.tensor([[rewards], [rewards + 0.125 * 16]]))


def test_nothing_that_is_predicted_after_the_end_counts() -> None:
    """Not even what is no number, of reward and value alike."""

    class Ends(ExactPendulum):
        def predict(self, feature: Tensor, decode: bool = True) -> Prediction:
            steps = torch.arange(feature.shape[1]).expand(feature.shape[:2])
            return Prediction({}, torch.where(steps > 1, torch.nan, 1.0), (steps < 1).float())

    guide = ActorCritic(ActorCriticConfig(hidden=8), 4, TORQUE)
    nn.init.constant_(guide.slow_critic.last.bias, torch.nan)
    planner = Planner(PlannerConfig(horizon=5, discount=0.5, terminal_value=True), TORQUE, guide)
    score = planner.score_of(Ends(), ExactPendulum().initial(1))(torch.zeros(1, 1, 5, 1))
    torch.testing.assert_close(score, torch.tensor([[1.5]]))


def test_without_a_compiler_compiling_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"behaviour\.planner\.compile needs a C\+\+ compiler"):
        Planner(PlannerConfig(compile=True), TORQUE)
    with pytest.raises(ValueError, match=r"learner\.compile needs a C\+\+ compiler"):
        Learner(lambda: (torch.zeros(()), None), [nn.Parameter(torch.zeros(1))], LearnerConfig(compile="update"))


def test_particles_are_averaged_and_modes_are_not_random() -> None:
    model, spec = learned(TORQUE), TORQUE
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    state, plans = model.initial(1), torch.zeros(1, 1, 6, 1)

    def scores(particles: int, times: int) -> Tensor:
        score = Planner(PlannerConfig(particles=particles), spec).score_of(model, state)
        with torch.no_grad():
            return torch.stack([score(plans).squeeze() for _ in range(times)])

    assert float(scores(0, 3).std()) == 0
    few, many = scores(1, 300), scores(50, 60)
    assert float(many.std()) < 0.4 * float(few.std())
    assert float(many.mean()) == pytest.approx(float(few.mean()), abs=5 * float(few.std()) / 300**0.5)


@pytest.mark.parametrize("member", ["rssm", "dkf", "dvbf", "srnn", "rvae", "storn", "vrnn", "kvae"])
def test_bfloat16_ranks_plans_nearly_as_float32_does(member: str) -> None:
    config = ModelConfig(DynamicsConfig(member), LatentConfig(size=4), hidden=16)
    model = WorldModel.build(config, {OBSERVATION: ObservationSpec((3,))}, TORQUE)
    assert model.reward is not None
    nn.init.normal_(model.reward.last.weight)  # it begins at zero
    model.requires_grad_(False)
    plans = torch.rand(1, 200, 5, 1) * 2 - 1
    full, half = (
        Planner(PlannerConfig(precision=name), TORQUE).score_of(model, model.initial(1))(plans)[0]
        for name in ("float32", "bfloat16")
    )
    assert half.dtype == torch.float32 and not torch.equal(full, half)
    assert float(torch.corrcoef(torch.stack([full, half]))[0, 1]) > 0.95


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_search_draws_and_scores_as_it_would_without() -> None:
    model = learned(TORQUE).requires_grad_(False)
    assert model.reward is not None
    nn.init.normal_(model.reward.last.weight)  # it begins at zero
    state, scores = model.initial(2), []
    for compiled in (False, True):
        planner = Planner(PlannerConfig(horizon=3, particles=2, compile=compiled), TORQUE)
        torch.manual_seed(1)
        scores.append(planner.score_of(model, state)(torch.linspace(-1, 1, 24).reshape(2, 4, 3, 1)))
    torch.testing.assert_close(*scores)


@pytest.mark.parametrize("family", ["gaussian", "onehot"])
def test_plans_are_refined_with_every_latent_family(family: Any) -> None:
    """Through z_t, or where its modes have no gradient through h_t."""
    model = learned(TORQUE, family=family).requires_grad_(False)
    assert model.reward is not None
    nn.init.normal_(model.reward.last.weight)  # it begins at zero
    score = Planner(PlannerConfig(horizon=3), TORQUE).score_of(model, model.initial(2))
    plan = torch.zeros(2, 3, 1)
    better = refined(score, plan, 10, 0.05)
    assert bool((score(better.unsqueeze(1)) > score(plan.unsqueeze(1)) + 1e-3).all())
    planner = Planner(PlannerConfig(horizon=3, refine=2), TORQUE)
    decision = planner.act(model, model.initial(2), planner.initial(2), deterministic=True)
    assert bool((decision.control.abs() <= 1).all()) and bool(decision.sound.all())


# --------------------------------------------------------------------------------- with the true dynamics


@pytest.mark.parametrize(
    "optimizer", ["icem", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cem", "mppi"))]
)
def test_planning_with_the_true_dynamics_swings_the_pendulum_up(optimizer: Any) -> None:
    config = PlannerConfig(
        optimizer, horizon=25, cem=CEMConfig(3, 100, 10, warm_start=True), mppi=MPPIConfig(3, 100, 20)
    )
    result = evaluate(agent("Pendulum-v1", ExactPendulum(), config), EnvConfig(), episodes=20, stream=2)
    assert result.mean > -200, result.mean  # optimal control has -158.5 on these episodes, doing nothing -1,200


def test_planning_with_the_true_dynamics_keeps_the_pole_up() -> None:
    config = PlannerConfig(horizon=50, icem=ICEMConfig(beta=0, candidates=128, elites=32))
    result = evaluate(agent("CartPole-v1", ExactCartPole(), config), EnvConfig("CartPole-v1", time_limit=100), 2, 2)
    assert result.returns == [100.0, 100.0]


# ---------------------------------------------------------------------------------------- what it remembers


def test_the_plan_is_forgotten_where_an_episode_begins_and_kept_elsewhere() -> None:
    planning = agent("Pendulum-v1", ExactPendulum(), PlannerConfig(horizon=5))
    hanging = np.array([[-1.0, 0, 0], [-1.0, 0, 0]], np.float32)
    _, state = planning.predict(hanging, None, None, deterministic=True)
    seen: list[Any] = []
    act = planning.behaviour.act

    def watched(model: Any, latent: Any, memory: Any, deterministic: bool = False) -> Any:
        seen.append(memory)
        return act(model, latent, memory, deterministic)

    planning.behaviour.act = watched  # type: ignore[method-assign]
    planning.predict(hanging, state, np.array([True, False]), deterministic=True)
    fresh = planning.behaviour.initial(2)
    assert torch.equal(seen[0].params[0], fresh.params[0])  # the elites of a new episode are random plans
    for now, before in zip(seen[0], state.memory, strict=True):
        assert torch.equal(now[1], before[1]) and not torch.equal(now[0], before[0])


def test_exploration_noise_is_added_unless_deterministic() -> None:
    planning = agent("Pendulum-v1", ExactPendulum(), PlannerConfig(horizon=8, noise=0.3, icem=ICEMConfig(4, 200, 10)))
    up = np.tile(np.array([1.0, 0.0, 0.0], np.float32), (200, 1))
    first = np.ones(200, bool)
    calm, state = planning.predict(up, None, first, deterministic=True)
    noisy, _ = planning.predict(up, None, first, deterministic=False)
    assert abs(noisy.std() - 0.6) < 0.15 and calm.std() < 0.3  # 0.3 of [-1, 1] is 0.6 Nm
    assert bool(state.sound.all())


# ------------------------------------------------------------------------------------- when a model breaks


class Broken(ExactPendulum):
    """Predicts nothing finite for those that hang."""

    def transition(self, x: Tensor, control: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        moved, reward, ended = super().transition(x, control)
        return moved, torch.where(x[:, 0].abs() > 3, torch.nan, reward), ended


@pytest.mark.parametrize("optimizer", ["cem", "icem", "mppi", "random"])
def test_a_model_that_predicts_nothing_finite_is_named_and_the_action_is_valid(optimizer: Any) -> None:
    planning = agent("Pendulum-v1", Broken(), PlannerConfig(optimizer, horizon=3, refine=2))
    hanging, upright = [-1.0, 0, 0], [1.0, 0.1, 0]
    for deterministic in (True, False):
        actions, state = planning.predict(np.array([hanging, upright], np.float32), deterministic=deterministic)
        assert state.sound.tolist() == [False, True]
        assert np.isfinite(actions).all() and (np.abs(actions) <= 2).all()
    result = evaluate(planning, EnvConfig(time_limit=15), episodes=20, stream=2)
    assert result.unsound is not None and 1 <= result.unsound <= 15
    assert np.isfinite(result.returns).all()


def test_discrete_actions_stay_valid_too() -> None:
    class Nothing(ExactCartPole):
        def transition(self, x: Tensor, control: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            moved, reward, ended = super().transition(x, control)
            return moved * torch.nan, reward * torch.nan, ended

    planning = agent("CartPole-v1", Nothing(), PlannerConfig(horizon=3))
    action, state = planning.predict(np.zeros(4, np.float32))
    assert action in (0, 1) and not bool(state.sound)


# ------------------------------------------------------------------------------------------ bounds, guides


@pytest.mark.parametrize("optimizer", ["cem", "icem", "mppi", "random"])
def test_bounds_are_never_violated(optimizer: Any) -> None:
    """Whatever a model wants: here rewards grow with the control without bound, in asymmetric units."""

    class Greedy(ExactPendulum):
        def transition(self, x: Tensor, control: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return x, 1e6 * control.sum(-1), torch.zeros(len(x), dtype=torch.bool)

    space = gym.spaces.Box(np.array([-0.1, 2.0, -7.0]), np.array([0.3, 2.5, 1e3]), dtype=np.float64)
    specs = observation_specs(gym.spaces.Box(-8, 8, (3,), np.float32))
    config = PlannerConfig(optimizer, horizon=2, noise=2.0, refine=3, refine_rate=0.5)
    greedy = Agent(Greedy(), Planner(config, action_spec(space)), specs, action_spec(space))
    state = None
    for _ in range(20):
        action, state = greedy.predict(np.zeros(3, np.float32), state, np.array([False]))
        assert space.contains(action.astype(np.float64)), action


def test_a_guide_proposes_values_and_learns() -> None:
    config = BehaviourConfig(
        "planner",
        ActorCriticConfig(hidden=8, starts=4, horizon=2),
        PlannerConfig("mppi", horizon=3, proposals=5, terminal_value=True, mppi=MPPIConfig(2, 20, 4)),
    )
    model = learned(TORQUE)
    planner = build_behaviour(config, model.feature_size, TORQUE)
    assert isinstance(planner, Planner) and isinstance(planner.guide, nn.Module)
    before = [p.clone() for p in planner.guide.actor.parameters()]
    flags = torch.zeros(2, 3, dtype=torch.bool)
    obs, control = {OBSERVATION: torch.randn(2, 3, 3)}, torch.zeros(2, 3, 1)
    batch = Batch(obs, control, torch.zeros(2, 3), flags, flags, flags, torch.ones(2, 3))
    metrics = planner.learn(model, model.observe(batch).states, batch)
    assert "actor_critic/actor_loss" in metrics
    assert any(not torch.equal(p, q) for p, q in zip(before, planner.guide.actor.parameters(), strict=True))
    with torch.no_grad():
        last = planner.guide.actor[-1]
        assert isinstance(last, nn.Linear)
        last.weight.zero_()
        last.bias.copy_(torch.tensor([2.0, -20.0]))  # always near tanh(5 tanh(0.4)) = 0.956
    proposed = planner.proposed(model, model.initial(3))
    assert proposed.shape == (3, 5, 3, 1)
    torch.testing.assert_close(proposed, torch.full_like(proposed, 0.956), rtol=0, atol=0.01)
    assert planner.act(model, model.initial(3), planner.initial(3)).control.shape == (3, 1)


def test_refinement_improves_the_imagined_return() -> None:
    model = ExactPendulum()
    state = ExactState(torch.tensor([[0.3, 0.5]]), torch.zeros(1, 1), torch.ones(1, 1))
    returns = {}
    for steps in (0, 30):
        torch.manual_seed(0)
        planner = Planner(PlannerConfig("random", horizon=10, refine=steps), TORQUE)
        score = planner.score_of(model, state)
        plan = planner.optimizer.search(score, planner.initial(1)).plan
        returns[steps] = float(score(refined(score, plan, steps, 0.05).unsqueeze(1)))
    assert returns[30] > returns[0] + 0.05


@pytest.mark.parametrize(
    ("make_planner", "message"),
    [
        (lambda: PlannerConfig(horizon=0), "horizon must be at least 1"),
        (lambda: PlannerConfig(discount=1.5), "discount must lie"),
        (lambda: PlannerConfig(noise=-1), "noise must be finite and at least 0, got -1"),
        (lambda: PlannerConfig(optimizer="cma"), "unknown optimizer 'cma'"),
        (lambda: PlannerConfig(precision="float16"), "or unknown precision 'float16'"),
        (lambda: Planner(PlannerConfig(refine=2), PUSH), "discrete actions do not have"),
        (lambda: Planner(PlannerConfig(noise=1.5), PUSH), "a probability"),
        (lambda: Planner(PlannerConfig(terminal_value=True), PUSH), "need an actor-critic"),
        (
            lambda: BehaviourConfig("planner", planner=PlannerConfig(terminal_value=True, discount=1.0)),
            r"planner.discount is 1.0, but .* is 0.99",
        ),
    ],
)
def test_what_cannot_be(make_planner: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_planner()


def test_a_config_with_the_old_key_of_the_optimizer_still_loads() -> None:
    with pytest.warns(FutureWarning, match=r"'behaviour.planner.optimiser' .* 'behaviour.planner.optimizer'"):
        config = load_config("configs/planet_pendulum.yaml", ["--behaviour.planner.optimiser", "mppi"])
    assert config.behaviour.planner.optimizer == "mppi"
