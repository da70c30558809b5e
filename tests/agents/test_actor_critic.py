"""The actor-critic on hand-made dynamics whose values and best actions are known, and what an update may touch."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel import Batch, ModelConfig, Prediction, WorldModel
from worldmodel.agents import ActorCritic, ActorCriticConfig
from worldmodel.agents.actor_critic.actor_critic import Replayed
from worldmodel.dynamics import DynamicsConfig, RSSMConfig
from worldmodel.learning.learner import LearnerConfig
from worldmodel.networks.latents import LatentConfig
from worldmodel.specs import ActionSpec, ObservationSpec

DISCRETE = ActionSpec((), classes=(3,), start=(0,))
CONTINUOUS = ActionSpec((1,), low=(-2.0,), high=(2.0,))
KINDS = [(DISCRETE, "score"), (DISCRETE, "pathwise"), (CONTINUOUS, "score"), (CONTINUOUS, "pathwise")]
IDS = [f"{'discrete' if spec.classes else 'continuous'}-{gradient}" for spec, gradient in KINDS]
kinds = pytest.mark.parametrize(("spec", "gradient"), KINDS, ids=IDS)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def settings(**changes: Any) -> ActorCriticConfig:
    """Everything these tests depend on, whatever the defaults are tuned to."""
    base: dict[str, Any] = {
        "hidden": 32,
        "actor_layers": 1,
        "critic_layers": 1,
        "horizon": 3,
        "discount": 0.8,
        "lambda_": 0.95,
        "entropy": 0.0,
        "value_output": "twohot",
        "slow_critic_rate": 0.2,
        "slow_actor_rate": 0.2,
        "scale_rate": 0.01,
        "learner": LearnerConfig(lr=5e-3),
    }
    return ActorCriticConfig(**base | changes)


# ------------------------------------------------------------------------------ dynamics with known answers


class Place(NamedTuple):
    code: Tensor  # (..., length + 1) one-hot: how many steps have been taken


class Chain:
    """One step forward whatever the action, with reward 1; the last place ends the episode, or leads to the first."""

    def __init__(self, length: int, ends: bool, discount: float = 1.0) -> None:
        self.length, self.ends, self.discount = length, ends, discount

    def starts(self, count: int) -> Place:
        places = torch.arange(count) % (self.length + 1)
        return Place(F.one_hot(places, self.length + 1).float())

    def feature(self, state: Place) -> Tensor:
        return state.code

    def imagine(self, state: Place, control: Tensor) -> Place:
        return Place(state.code.roll(1, -1))

    def predict(self, feature: Tensor, decode: bool = True) -> Prediction:
        last = feature[..., -1]
        goes_on = 1 - last if self.ends else torch.ones_like(last)
        return Prediction({}, torch.ones_like(last), self.discount * goes_on)


class Cue(NamedTuple):
    cue: Tensor  # (..., n): a one-hot symbol, or a number in [-1, 1]
    reward: Tensor  # (..., 1): of the action that led here


class CueTask:
    """Every step shows a cue and pays for the answer to it: the symbol itself, or half the number; then it ends."""

    discount = 1.0

    def __init__(self, spec: ActionSpec) -> None:
        self.classes = spec.width if spec.classes else 0
        self.feature_size = spec.width + 2

    def starts(self, count: int) -> Cue:
        if self.classes:
            cue = F.one_hot(torch.randint(self.classes, (count,)), self.classes).float()
        else:
            cue = torch.rand(count, 1) * 2 - 1
        return Cue(cue, torch.zeros(count, 1))

    def feature(self, state: Cue) -> Tensor:
        return torch.cat([state.cue, torch.ones_like(state.reward), state.reward], -1)

    def imagine(self, state: Cue, control: Tensor) -> Cue:
        if self.classes:
            reward = (state.cue * control).sum(-1, keepdim=True)
        else:
            reward = 1 - (control - 0.5 * state.cue).square()
        return Cue(self.starts(len(reward)).cue, reward)

    def predict(self, feature: Tensor, decode: bool = True) -> Prediction:
        reward = feature[..., -1]
        return Prediction({}, reward, torch.zeros_like(reward))


V1: dict[str, Any] = {"bootstrap": "own", "normalise": False}
V2: dict[str, Any] = {"slow_critic_rate": 1.0, "slow_critic_every": 20, "normalise": False}
V3: dict[str, Any] = {"bootstrap": "own", "slow_critic_rate": 0.1, "slow_regulariser": 1.0}  # 0.02 over longer runs


@pytest.mark.parametrize(
    ("value_output", "changes"),
    [("normal", {}), ("symlog", {}), ("twohot", {}), ("normal", V1), ("normal", V2), ("twohot", V3)],
    ids=["normal", "symlog", "twohot", "v1", "v2", "v3"],
)
@pytest.mark.parametrize("ends", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_critic_learns_the_closed_form(value_output: str, changes: dict[str, Any], ends: bool) -> None:
    """(1 - gamma^(n - t)) / (1 - gamma) where the chain ends after n steps, 1 / (1 - gamma) where it never does."""
    length, discount = 4, 0.8
    chain: Any = Chain(length, ends)
    learner = ActorCritic(settings(value_output=value_output, discount=discount, **changes), length + 1, DISCRETE)
    starts = chain.starts(5 * (length + 1))
    alive = 1 - starts.code[:, -1] if ends else torch.ones(len(starts.code))
    for _ in range(700 if changes is V3 else 250):
        learner.update(chain, starts, alive)
    values = learner.value(torch.eye(length + 1))[:length]
    left = length - torch.arange(length)
    exact = (1 - discount**left) / (1 - discount) if ends else torch.full((length,), 1 / (1 - discount))
    torch.testing.assert_close(values, exact, rtol=0.04, atol=0.02)


def test_a_discount_inside_the_continuation_counts_once() -> None:
    """DreamerV3 learns gamma as part of the continuation; returns are the same as with gamma outside of it."""
    length, discount = 4, 0.8
    chain: Any = Chain(length, ends=False, discount=0.9)
    learner = ActorCritic(settings(value_output="normal", discount=discount), length + 1, DISCRETE)
    starts = chain.starts(5 * (length + 1))
    for _ in range(250):
        learner.update(chain, starts, torch.ones(len(starts.code)))
    torch.testing.assert_close(learner.value(torch.eye(length + 1)), torch.full((5,), 5.0), rtol=0.04, atol=0.02)


def test_replayed_returns_are_those_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the recursion of DreamerV3's published code, in NumPy, over episodes that end in every way."""
    rng = np.random.default_rng(0)
    rows, steps, lambda_ = 6, 9, 0.7
    last = rng.random((rows, steps)) < 0.3
    terminal = last & (rng.random((rows, steps)) < 0.5)
    first = np.roll(last, 1, 1)
    first[:, 0] = False
    first[5, 4], last[5, 3] = True, False  # a seam of the replay: no episode has ended there
    reward, imagined = rng.normal(size=(2, rows, steps)).astype(np.float32)
    ended = last.copy()
    ended[:, :-1] |= first[:, 1:]
    future, expected = imagined[:, -1], np.zeros((rows, steps - 1))
    for t in reversed(range(steps - 1)):
        live, cont = 0.8 * (1.0 - terminal[:, t + 1]), lambda_ * (1.0 - ended[:, t + 1])
        future = reward[:, t + 1] + (1 - cont) * live * imagined[:, t + 1] + live * cont * future
        expected[:, t] = future
    config = settings(discount=0.8, lambda_=lambda_, replay_value=0.3, starts=0)
    learner, seen = ActorCritic(config, 3, DISCRETE), []
    monkeypatch.setattr(
        learner, "critic_loss", lambda judged, feature, returns: seen.append(returns) or torch.ones(rows, 8)
    )
    flags = [torch.from_numpy(each) for each in (first, last, terminal)]
    mask = torch.ones(rows, steps)
    mask[0, :3] = 0
    batch = Batch({}, torch.zeros(rows, steps, 3), torch.from_numpy(reward), *flags, mask)
    replayed = Replayed(torch.zeros(rows, steps, 3), batch)
    weight = learner.replay_loss(replayed, torch.from_numpy(imagined).flatten())
    np.testing.assert_allclose(seen[0].numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(weight.numpy(), (mask.numpy() * ~ended)[:, :-1])


def test_replayed_values_reach_the_features_but_no_imagined_ones_do() -> None:
    model, learner = smooth(DISCRETE, gradient="score", replay_value=0.3, starts=0)
    flags = torch.zeros(4, 5, dtype=torch.bool)
    states = Point(torch.randn(4, 5, 3).requires_grad_())
    batch = Batch({}, torch.zeros(4, 5, DISCRETE.width), torch.randn(4, 5), flags, flags, flags, torch.ones(4, 5))
    begin, alive, replayed = learner.given(model, states, batch)
    assert begin.x.shape == (20, 3) and not begin.x.requires_grad and alive.shape == (20,)
    loss, metrics = learner.loss(model, begin, alive, replayed)
    (gradient,) = torch.autograd.grad(loss, states.x)
    assert (gradient[:, :-1].abs().sum(-1) > 0).all() and (gradient[:, -1] == 0).all()
    assert metrics["actor_critic/replay_loss"] != 0
    before = [p.clone() for p in learner.critic.parameters()]
    learner.learn(model, Point(states.x.detach()), batch)
    assert any(not torch.equal(p, q) for p, q in zip(before, learner.critic.parameters(), strict=True))


def test_new_units_keep_the_values() -> None:
    learner = ActorCritic(settings(value_output="normal"), 3, CONTINUOUS)
    for critic in (learner.critic, learner.slow_critic):
        torch.nn.init.normal_(critic.last.weight.detach())
    rewards = torch.full((2, 5), 3.0)
    flags = torch.zeros(2, 5, dtype=torch.bool)
    batch = Batch({}, torch.zeros(2, 5, 1), rewards, flags, flags, flags, torch.ones(2, 5))
    feature = torch.randn(7, 3)
    before = [critic.mean(feature) for critic in (learner.critic, learner.slow_critic)]
    learner.fit_normalizers(batch, keep=True)
    for critic, values in zip((learner.critic, learner.slow_critic), before, strict=True):
        torch.testing.assert_close(critic.output.normalizer.scale, torch.tensor([3.0 / (1 - 0.8)]))
        torch.testing.assert_close(critic.mean(feature), values)


@pytest.mark.parametrize("unit", [1e-30, 1e-6, 1e-3, 1.0, 1e6, 1e25])
def test_values_and_returns_are_measured_in_the_unit_of_the_rewards(unit: float) -> None:
    """Rewards 0, 0, 3, 4 of a unit have the root mean square 2.5; what is below the largest of them is no spread."""
    learner = ActorCritic(settings(value_output="normal"), 3, DISCRETE)
    flags = torch.zeros(1, 5, dtype=torch.bool)
    first = torch.tensor([[True, False, False, False, False]])
    rewards = unit * torch.tensor([[7.0, 0.0, 0.0, 3.0, 4.0]])  # the first is that of a reset, and none
    learner.fit_normalizers(Batch({}, torch.zeros(1, 5, 3), rewards, first, flags, flags, torch.ones(1, 5)))
    assert learner.critic.output.normalizer.scale.item() == pytest.approx(2.5 * unit / (1 - 0.8), rel=1e-5)
    floor = learner.scale.after(torch.zeros(())).item()
    assert floor == pytest.approx(min(4 * unit, 1.0), rel=1e-5)
    learner.scale.update(torch.tensor(20 * unit))
    assert learner.scale.after(torch.tensor(20 * unit)).item() == pytest.approx(max(20 * unit, floor), rel=1e-5)
    other = ActorCritic(settings(value_output="normal"), 3, DISCRETE)
    other.load_state_dict(learner.state_dict())
    other.load_training_state(learner.training_state())
    assert torch.equal(other.scale.after(torch.zeros(())), learner.scale.after(torch.zeros(())))


def test_without_rewards_the_floor_of_returns_stays() -> None:
    learner = ActorCritic(settings(value_output="normal"), 3, DISCRETE)
    flags = torch.zeros(1, 5, dtype=torch.bool)
    learner.fit_normalizers(Batch({}, torch.zeros(1, 5, 3), torch.zeros(1, 5), flags, flags, flags, torch.ones(1, 5)))
    assert learner.critic.output.normalizer.scale.item() == learner.scale.after(torch.zeros(())).item() == 1


@kinds
def test_actor_learns_the_known_answer(spec: ActionSpec, gradient: Any) -> None:
    task: Any = CueTask(spec)
    learner = ActorCritic(settings(gradient=gradient, entropy=1e-3, horizon=1), task.feature_size, spec)
    for _ in range(250):
        learner.update(task, task.starts(128), torch.ones(128))
    tests = task.starts(64)
    answers = learner.act(task, tests, (), deterministic=True).control
    if spec.classes:
        assert torch.equal(answers, tests.cue)
    else:
        assert (answers - 0.5 * tests.cue).abs().max() < 0.15
    sampled = task.imagine(tests, learner.act(task, tests, ()).control).reward.mean().item()
    assert sampled > 0.9


def test_actor_and_critic_see_the_size_of_a_feature() -> None:
    learner = ActorCritic(settings(), 1, CONTINUOUS)
    small, large = torch.full((1, 1), 0.5), torch.full((1, 1), 2.0)
    assert not torch.allclose(learner.actor(small), learner.actor(large), rtol=1e-2)


def test_gradient_kind_follows_the_actions_unless_given() -> None:
    kind = {True: "pathwise", False: "score"}
    chosen = {
        (bool(spec.classes), gradient): kind[ActorCritic(settings(gradient=gradient), 4, spec).pathwise]
        for spec in (DISCRETE, CONTINUOUS)
        for gradient in ("auto", "pathwise", "score")
    }
    assert chosen[True, "auto"] == "score" and chosen[False, "auto"] == "pathwise"
    assert all(made == asked for (_, asked), made in chosen.items() if asked != "auto")


@pytest.mark.parametrize("bootstrap", ["own", "slow"])
@pytest.mark.parametrize("gradient", ["score", "pathwise"])
def test_values_are_those_that_returns_bootstrap_from(gradient: Any, bootstrap: Any) -> None:
    """Also where what the critic has said for its own loss is used again."""
    _, learner = smooth(CONTINUOUS, gradient=gradient, bootstrap=bootstrap)
    features = torch.randn(6, 4, 3)
    torch.testing.assert_close(learner.values(features, learner.critic(features[:-1])), learner.value(features))


@pytest.mark.parametrize(("spec", "gradient"), KINDS, ids=IDS)
def test_entropy_is_rewarded_by_its_weight(spec: ActionSpec, gradient: Any) -> None:
    """Where every action pays the same, a large weight makes a narrow policy wide again."""
    chain: Any = Chain(4, ends=True)
    learner = ActorCritic(settings(gradient=gradient, entropy=1.0, horizon=1), 5, spec)
    last = learner.actor[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias.copy_(torch.tensor([3.0, 0, 0] if spec.classes else [0.0, -3]))
    starts = chain.starts(64)
    before = learner.loss(chain, starts, torch.ones(64))[1]["actor_critic/entropy"]
    for _ in range(60):
        metrics = learner.update(chain, starts, torch.ones(64))
    assert metrics["actor_critic/entropy"] > before + 0.3


# ------------------------------------------------------------------------- what an update reads and changes


class Point(NamedTuple):
    x: Tensor  # (..., 3)


class Smooth(nn.Module):
    """Learnable, bounded dynamics; rewards so small that returns stay below the floor of the return scale."""

    discount = 1.0

    def __init__(self, actions: int) -> None:
        super().__init__()
        self.dynamics, self.reward, self.cont = nn.Linear(3 + actions, 3), nn.Linear(3, 1), nn.Linear(3, 1)

    def feature(self, state: Point) -> Tensor:
        return state.x

    def imagine(self, state: Point, control: Tensor) -> Point:
        return Point(torch.tanh(self.dynamics(torch.cat([state.x, control], -1))))

    def predict(self, feature: Tensor, decode: bool = True) -> Prediction:
        reward = 0.1 * torch.tanh(self.reward(feature)).squeeze(-1)
        return Prediction({}, reward, self.cont(feature).sigmoid().squeeze(-1))


def smooth(spec: ActionSpec, **changes: Any) -> tuple[Any, ActorCritic]:
    """The same model and actor-critic every time, with a critic that is not constant."""
    torch.manual_seed(1)
    changes = {"value_output": "normal", **changes}  # two-hot bins would make large returns of random weights
    model, learner = Smooth(spec.width), ActorCritic(settings(**changes), 3, spec)
    for head in (learner.critic, learner.slow_critic):
        last = head.net[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.add_(0.01 * torch.randn_like(last.weight))
    return model, learner


def gradients(model: Any, learner: ActorCritic, starts: Point, alive: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Of the loss by the actor's and by the critic's parameters, for the same random numbers every time."""
    torch.manual_seed(2)
    loss, _ = learner.loss(model, starts, alive)
    actor, critic = list(learner.actor.parameters()), list(learner.critic.parameters())
    found = torch.autograd.grad(loss, actor + critic)
    return list(found[: len(actor)]), list(found[len(actor) :])


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=1e-4, atol=1e-8) for x, y in zip(a, b, strict=True))


@kinds
def test_update_leaves_the_model_alone(spec: ActionSpec, gradient: Any) -> None:
    model, learner = smooth(spec, gradient=gradient)
    model_before = {name: value.clone() for name, value in model.state_dict().items()}
    actor_before = [p.clone() for p in learner.actor.parameters()]
    learner.update(model, Point(torch.randn(16, 3)), torch.ones(16))
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is None for p in [*learner.slow_critic.parameters(), *learner.slow_actor.parameters()])
    assert all(torch.equal(value, model_before[name]) for name, value in model.state_dict().items())
    assert not same(actor_before, list(learner.actor.parameters()))


@kinds
def test_slow_copies_follow_by_their_rates(spec: ActionSpec, gradient: Any) -> None:
    model, learner = smooth(spec, gradient=gradient, slow_critic_rate=0.25, slow_actor_rate=0.1)
    pairs = [(learner.slow_critic, learner.critic, 0.25), (learner.slow_actor, learner.actor, 0.1)]
    for _ in range(2):
        before = [[p.clone() for p in slow.parameters()] for slow, _, _ in pairs]
        learner.update(model, Point(torch.randn(16, 3)), torch.ones(16))
        for (slow, fast, rate), old in zip(pairs, before, strict=True):
            expected = [a + rate * (b - a) for a, b in zip(old, fast.parameters(), strict=True)]
            assert same(list(slow.parameters()), expected) and not same(list(slow.parameters()), old)


def test_the_deterministic_policy_is_the_mode_of_the_slow_actor() -> None:
    model, learner = smooth(CONTINUOUS)
    state = Point(torch.randn(16, 3))
    learner.slow_actor[-1].bias.data.fill_(0.7)  # [mean, raw]
    mode = learner.family.mode(learner.slow_actor(state.x))
    assert torch.equal(learner.act(model, state, (), deterministic=True).control, mode)
    sampled = torch.stack([learner.act(model, state, ()).control for _ in range(500)])
    assert (sampled.mean(0) - learner.family.mode(learner.actor(state.x))).abs().max() < 0.2 < (mode.mean() - 0.2)


@kinds
def test_actor_and_critic_losses_do_not_meet(spec: ActionSpec, gradient: Any) -> None:
    """The fast critic's weights do not reach the actor's gradient; the actor's loss does not reach the critic's."""
    starts, alive = Point(torch.randn(16, 3)), torch.ones(16)
    actor, critic = gradients(*smooth(spec, gradient=gradient), starts, alive)
    model, learner = smooth(spec, gradient=gradient)
    with torch.no_grad():
        for parameter in learner.critic.parameters():
            parameter.add_(torch.randn_like(parameter))
    other_actor, other_critic = gradients(model, learner, starts, alive)
    assert same(actor, other_actor) and not same(critic, other_critic)
    other_actor, other_critic = gradients(*smooth(spec, gradient=gradient, entropy=10.0), starts, alive)
    assert same(critic, other_critic) and not same(actor, other_actor)


@kinds
def test_a_critic_that_values_for_itself_gets_no_gradient_from_the_actor(spec: ActionSpec, gradient: Any) -> None:
    starts, alive = Point(torch.randn(16, 3)), torch.ones(16)
    _, critic = gradients(*smooth(spec, gradient=gradient, bootstrap="own"), starts, alive)
    _, other = gradients(*smooth(spec, gradient=gradient, bootstrap="own", entropy=10.0), starts, alive)
    assert same(critic, other)
    _, learner = smooth(spec, gradient=gradient, bootstrap="own")
    feature = torch.randn(5, 3, requires_grad=True)
    torch.testing.assert_close(learner.value(feature), learner.critic.mean(feature).squeeze(-1))
    assert torch.autograd.grad(learner.value(feature).sum(), feature)[0].abs().sum() > 0
    with pytest.raises(RuntimeError):  # it depends on no parameter of the critic
        torch.autograd.grad(learner.value(feature).sum(), list(learner.critic.parameters()))


def test_a_slow_critic_is_copied_every_so_many_updates() -> None:
    model, learner = smooth(CONTINUOUS, slow_critic_rate=1.0, slow_critic_every=3)
    for update in range(1, 7):
        learner.update(model, Point(torch.randn(16, 3)), torch.ones(16))
        pairs = zip(learner.slow_critic.parameters(), learner.critic.parameters(), strict=True)
        assert all(torch.equal(slow, fast) for slow, fast in pairs) == (update % 3 == 0)


def test_the_slow_copy_is_a_second_target_of_the_critic() -> None:
    _, learner = smooth(CONTINUOUS, slow_regulariser=0.5)
    _, plain = smooth(CONTINUOUS)
    feature, returns = torch.randn(4, 5, 3), torch.randn(4, 5)
    with torch.no_grad():
        for parameter in learner.slow_critic.parameters():
            parameter.add_(0.1)
        slow = learner.slow_critic.mean(feature)
    expected = plain.critic_loss(plain.critic(feature), feature, returns) - 0.5 * plain.critic.log_prob(feature, slow)
    torch.testing.assert_close(learner.critic_loss(learner.critic(feature), feature, returns), expected)


def test_returns_are_taken_as_they_are_without_normalisation() -> None:
    """Rewards ten thousand times as large: with normalisation the actor's gradient is that of a unit spread."""
    starts, alive = Point(torch.randn(16, 3)), torch.ones(16)
    sizes = {}
    for normalise in (True, False):
        for factor in (1.0, 1e4):
            model, learner = smooth(CONTINUOUS, normalise=normalise, entropy=0.0, discount=0.0)
            predict = model.predict
            model.predict = lambda feature, decode=True, p=predict, k=factor: p(feature, decode)._replace(
                reward=k * p(feature, decode).reward
            )
            actor, _ = gradients(model, learner, starts, alive)
            sizes[normalise, factor] = float(torch.cat([g.flatten() for g in actor]).norm())
    assert sizes[False, 1e4] == pytest.approx(1e4 * sizes[False, 1.0], rel=1e-3)
    assert sizes[True, 1e4] < 1e3 * sizes[True, 1.0]


@kinds
def test_terminal_starts_have_no_weight(spec: ActionSpec, gradient: Any) -> None:
    """What a dead start holds changes no gradient, while a living one's content does."""
    alive = torch.tensor([1.0, 0, 1, 0])
    starts = torch.randn(4, 3)
    dead_moved, alive_moved = starts.clone(), starts.clone()
    dead_moved[alive == 0] += 5
    alive_moved[alive == 1] += 5
    actor, critic = gradients(*smooth(spec, gradient=gradient), Point(starts), alive)
    others = gradients(*smooth(spec, gradient=gradient), Point(dead_moved), alive)
    assert same(actor, others[0]) and same(critic, others[1])
    others = gradients(*smooth(spec, gradient=gradient), Point(alive_moved), alive)
    assert not same(actor, others[0]) and not same(critic, others[1])
    model, learner = smooth(spec, gradient=gradient)
    assert learner.loss(model, Point(starts), torch.zeros(4))[0].item() == 0


def test_pathwise_gradient_is_that_of_the_mean_return() -> None:
    """One step, no bootstrap: the actor's gradient is minus that of the reward, by finite differences."""
    task: Any = CueTask(CONTINUOUS)
    learner = ActorCritic(settings(gradient="pathwise", horizon=1), task.feature_size, CONTINUOUS)
    learner.double()
    starts = Cue(torch.tensor([[0.4], [-0.8]], dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64))
    bias = learner.actor[-1].bias

    def mean_reward(shift: float) -> float:
        torch.manual_seed(3)
        with torch.no_grad():
            bias[0] += shift
            control = learner.family.sample(learner.actor(task.feature(starts)))
            bias[0] -= shift
        return (1 - (control - 0.5 * starts.cue).square()).mean().item()

    torch.manual_seed(3)
    loss, _ = learner.loss(task, starts, torch.ones(2, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss, [bias])
    slope = (mean_reward(1e-4) - mean_reward(-1e-4)) / 2e-4
    assert gradient[0].item() == pytest.approx(-slope, rel=1e-4) and abs(slope) > 1e-3


# -------------------------------------------------------------------------------------------------- tracing


@pytest.mark.parametrize(("spec", "gradient"), [KINDS[0], KINDS[3]], ids=["discrete-score", "continuous-pathwise"])
def test_loss_traces_without_a_graph_break(spec: ActionSpec, gradient: Any) -> None:
    sizes = DynamicsConfig("rssm", rssm=RSSMConfig(deter=8, hidden=8))
    config = ModelConfig(sizes, LatentConfig("gaussian", size=4), hidden=8, encoder_layers=1, head_layers=1)
    model = WorldModel.build(config, {"x": ObservationSpec((2,))}, spec)
    torch.manual_seed(1)
    learner = ActorCritic(settings(gradient=gradient, hidden=8), model.feature_size, spec)
    starts, alive = model.initial(6), torch.ones(6)
    torch.manual_seed(2)
    eager, _ = learner.loss(model, starts, alive)
    torch.manual_seed(1)
    learner = ActorCritic(settings(gradient=gradient, hidden=8), model.feature_size, spec)
    torch.compiler.reset()
    traced = torch.compile(learner.loss, backend="eager", fullgraph=True, dynamic=False)
    torch.manual_seed(2)
    loss, metrics = traced(model, starts, alive)
    torch.testing.assert_close(loss, eager)
    loss.backward(inputs=list(learner.actor.parameters()))
    assert all(p.grad is not None for p in learner.actor.parameters())
    assert not any(value.requires_grad for value in metrics.values())


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="horizon"):
        settings(horizon=0)
    with pytest.raises(ValueError, match=r"1\.5"):
        settings(discount=1.5)
    with pytest.raises(ValueError, match="bootstrap is slow or own: 'fast'"):
        settings(bootstrap="fast")
    with pytest.raises(ValueError, match="must not be negative"):
        settings(slow_regulariser=-1)
    with pytest.raises(ValueError, match="policy is tanh or clipped: 'gauss'"):
        settings(policy="gauss")
    with pytest.raises(ValueError, match="starts: 0: 7"):
        settings(replay_value=0.3, starts=7)


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_what_rests_on_no_number_is_reported_even_where_a_class_is_the_answer(
    spec: ActionSpec, deterministic: bool
) -> None:
    model = WorldModel.build(ModelConfig(hidden=8), {"x": ObservationSpec((2,))}, spec)
    behaviour = ActorCritic(settings(), model.feature_size, spec)
    with torch.no_grad():
        sound = behaviour.act(model, model.initial(2), (), deterministic).sound
        for actor in (behaviour.actor, behaviour.slow_actor):
            for parameter in actor.parameters():
                parameter.fill_(torch.nan)
        unsound = behaviour.act(model, model.initial(2), (), deterministic).sound
    assert sound.tolist() == [True, True] and unsound.tolist() == [False, False]


def test_where_nothing_learns_the_continuation_no_discount_is_in_it() -> None:
    """A behaviour divides its own discount by the model's, and multiplies by what is predicted: 1."""
    specs = {"x": ObservationSpec((2,))}
    discounts = [
        WorldModel.build(ModelConfig(continuation=goes_on, continuation_discount=0.9), specs, DISCRETE).discount
        for goes_on in (True, False)
    ]
    assert discounts == [0.9, 1.0]
