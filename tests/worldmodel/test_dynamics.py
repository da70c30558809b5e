"""The contract that every member of the family keeps, with either latent family."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from worldmodel.imagination import rollout
from worldmodel.learning.objective import ObjectiveConfig, model_loss, objective
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.types import Batch, Rollout, State

B, T, H = 3, 6, 4
Build = Callable[..., WorldModel]
Window = Callable[..., Batch]
WithoutNoise = Callable[[WorldModel], WorldModel]


imagining = pytest.mark.members("imagining")
filtering = pytest.mark.members("filtering")


@pytest.fixture
def model(build: Build, member: str, family: str) -> WorldModel:
    return build(member, family)


@pytest.fixture
def batch(window: Window) -> Batch:
    return window(B, T)


def beginning_at(batch: Batch, t: int) -> Batch:
    """The batch with an episode that begins at step t."""
    is_first = batch.is_first.clone()
    is_first[:, t] = True
    return batch._replace(is_first=is_first)


def disturbed(batch: Batch, steps: slice) -> Batch:
    """The batch with other observations, controls and rewards at `steps`."""

    def replace(values: Tensor, new: Tensor) -> Tensor:
        values = values.clone()
        values[:, steps] = new[:, steps]
        return values

    obs = {
        "x": replace(batch.obs["x"], batch.obs["x"] + 5),
        "phase": replace(batch.obs["phase"], 2 - batch.obs["phase"]),
    }
    control, reward = replace(batch.prev_action, -3 - batch.prev_action), replace(batch.reward, batch.reward - 7)
    return batch._replace(obs=obs, prev_action=control, reward=reward)


def results(model: WorldModel, batch: Batch) -> dict[str, Tensor]:
    """Everything per step (B, T, ...) that inference and the ELBO give."""
    inference = model.observe(batch)
    elbo = model.elbo(batch, inference)
    return {
        "prior": inference.prior,
        "posterior": inference.posterior,
        "kl": elbo.kl,
        **inference.states._asdict(),
        **elbo.log_likelihood,
    }


def policy(feature: Tensor) -> tuple[Tensor, Tensor]:
    """A stochastic policy whose parameters are two simple functions of the features."""
    params = torch.stack([feature[..., 0], feature.sum(-1)], -1)
    return torch.tanh(params + torch.randn_like(params)), params


def last(state: State) -> State:
    """The states at the end of a window: (B, T, ...) -> (B, ...)."""
    return type(state)(*(field[:, -1] for field in state))


def test_shapes(model: WorldModel, batch: Batch) -> None:
    latent = model.dynamics.latent
    inference = model.observe(batch)
    assert inference.prior.shape == inference.posterior.shape == (B, T, latent.parameters)
    assert latent.sample(inference.posterior).shape == (B, T, latent.size)
    assert model.feature(inference.states).shape == (B, T, model.feature_size)
    assert all(field.shape[0] == B for field in model.initial(B))
    assert [field.shape for field in model.initial(B)] == [field[:, 0].shape for field in inference.states]
    loss = objective(model, batch, ObjectiveConfig()).loss
    assert loss.shape == (B, T)
    assert loss.isfinite().all()


def test_emissions_of_a_dictionary_with_a_discrete_key(model: WorldModel, batch: Batch) -> None:
    inference = model.observe(batch)
    prediction = model.predict(model.feature(inference.states))
    assert {key: mean.shape for key, mean in prediction.obs.items()} == {"x": (B, T, 2), "phase": (B, T, 3)}
    torch.testing.assert_close(prediction.obs["phase"].sum(-1), torch.ones(B, T))
    assert prediction.reward.shape == prediction.cont.shape == (B, T)
    assert ((prediction.cont > 0) & (prediction.cont < 1)).all()
    assert model.predict(model.feature(inference.states), decode=False).obs == {}
    elbo = model.elbo(batch, inference)
    assert set(elbo.log_likelihood) == {"x", "phase", "reward", "continue"}
    torch.testing.assert_close(elbo.total, sum(elbo.log_likelihood.values()) - elbo.kl)


def test_a_reset_brings_no_reward_and_only_termination_ends_the_return(build: Build, batch: Batch) -> None:
    model, batch = build("rssm"), beginning_at(batch, 2)
    is_terminal = torch.arange(T).expand(B, T) == 4
    batch = batch._replace(is_terminal=is_terminal, is_last=torch.ones(B, T, dtype=torch.bool))
    inference = model.observe(batch)
    logs = model.elbo(batch, inference).log_likelihood
    assert torch.equal(logs["reward"] == 0, batch.is_first)
    cont = model.predict(model.feature(inference.states)).cont
    torch.testing.assert_close(logs["continue"].exp(), torch.where(is_terminal, 1 - cont, cont))
    model.discount = 0.9  # of which the log likelihood of a step that goes on is the cross entropy
    logs = model.elbo(batch, inference).log_likelihood
    goes_on = 0.9 * cont.log() + 0.1 * (1 - cont).log()
    torch.testing.assert_close(logs["continue"], torch.where(is_terminal, (1 - cont).log(), goes_on))


def test_kl_is_not_negative(model: WorldModel, batch: Batch) -> None:
    kl = model.elbo(batch).kl
    assert kl.min() >= -1e-6
    assert kl.max() > 1e-3


def test_every_parameter_learns(model: WorldModel, batch: Batch) -> None:
    objective(model, batch, ObjectiveConfig())[0].sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


@filtering
@pytest.mark.parametrize("border", [None, 0, 3])
def test_filter_step_by_step_equals_observe(
    model: WorldModel, batch: Batch, without_noise: WithoutNoise, border: int | None
) -> None:
    without_noise(model)
    batch = batch if border is None else beginning_at(batch, border)
    for filtered, observed in zip(filter_all(model, batch), model.observe(batch).states, strict=True):
        torch.testing.assert_close(filtered, observed, atol=1e-5, rtol=0)


@pytest.mark.members("not filtering")
def test_a_smoother_cannot_filter_and_names_what_can(model: WorldModel, batch: Batch) -> None:
    with pytest.raises(ValueError, match=r"posterior: filter.* rssm"):
        filter_all(model, batch)


@pytest.mark.members("not imagining")
def test_a_model_without_dynamics_cannot_imagine_and_names_what_can(model: WorldModel) -> None:
    with pytest.raises(ValueError, match=r"VAE has no dynamics.* rssm"):
        rollout(model, model.initial(B), policy, H)


def test_a_kalman_filter_carries_no_discrete_latents(build: Build) -> None:
    with pytest.raises(ValueError, match=r"kvae needs model\.latent\.family gaussian.*rssm"):
        build("kvae", family="onehot")


def filter_all(model: WorldModel, batch: Batch) -> tuple[Tensor, ...]:
    """The states (B, T, ...) from `filter` at every step."""
    state, states = model.initial(B), []
    for t in range(T):
        obs = {key: value[:, t] for key, value in batch.obs.items()}
        state = model.filter(state, obs, batch.prev_action[:, t], batch.is_first[:, t])
        states.append(state)
    return tuple(torch.stack(fields, 1) for fields in zip(*states, strict=True))


def test_filter_without_sampling_takes_the_mode(build: Build, batch: Batch, family: str) -> None:
    model = build("rssm", family)
    row = {key: value[:, 0] for key, value in batch.obs.items()}, batch.prev_action[:, 0], batch.is_first[:, 0]
    modes = [model.filter(model.initial(B), *row, sample=False).latent for _ in range(2)]
    samples = torch.stack([model.filter(model.initial(B), *row).latent for _ in range(20)])
    assert torch.equal(*modes)
    assert samples.std(0).max() > 0.1


@filtering
def test_a_window_continues_from_the_state_before_it(
    model: WorldModel, batch: Batch, without_noise: WithoutNoise
) -> None:
    """Split in two, with the state carried over, a filtered window gives what it gives whole."""
    without_noise(model)
    whole = model.observe(batch)
    left, right = steps(batch, slice(0, 2)), steps(batch, slice(2, T))
    first = model.observe(left)
    second = model.observe(right, last(first.states))
    torch.testing.assert_close(torch.cat([first.posterior, second.posterior], 1), whole.posterior)
    torch.testing.assert_close(torch.cat([first.prior, second.prior], 1), whole.prior)


def steps(batch: Batch, chosen: slice) -> Batch:
    return Batch({key: value[:, chosen] for key, value in batch.obs.items()}, *(each[:, chosen] for each in batch[1:]))


def test_nothing_leaks_over_an_episode_border(model: WorldModel, batch: Batch, without_noise: WithoutNoise) -> None:
    without_noise(model)
    border = 3
    batch = beginning_at(batch, border)
    before = results(model, batch)
    past, future = (
        results(model, disturbed(batch, slice(0, border))),
        results(model, disturbed(batch, slice(border, T))),
    )
    for name, values in before.items():
        assert torch.equal(past[name][:, border:], values[:, border:]), f"{name} sees the episode before its own"
        assert torch.equal(future[name][:, :border], values[:, :border]), f"{name} sees the episode after its own"
    assert not torch.isclose(past["posterior"][:, :border], before["posterior"][:, :border]).all(-1).any()
    assert not torch.isclose(future["posterior"][:, border:], before["posterior"][:, border:]).all(-1).any()


def test_within_an_episode_only_a_smoother_sees_the_future(
    model: WorldModel, batch: Batch, without_noise: WithoutNoise
) -> None:
    without_noise(model)
    posterior = model.observe(batch).posterior[:, 0]
    observed_later = model.observe(disturbed(batch, slice(3, T))).posterior[:, 0]
    driven_later = model.observe(batch._replace(prev_action=disturbed(batch, slice(1, 2)).prev_action)).posterior[:, 0]
    for changed in (observed_later, driven_later):
        assert torch.equal(changed, posterior) == model.dynamics.can_filter


@imagining
def test_a_control_drives_the_state_unless_the_episode_begins(
    model: WorldModel, batch: Batch, without_noise: WithoutNoise
) -> None:
    """The first row of a window has a control too, when the window begins in the middle of an episode."""
    without_noise(model)

    def explained(batch: Batch) -> Tensor:
        inference = model.observe(batch)
        return torch.cat([model.feature(inference.states), inference.prior], -1)

    for t in (0, 2):
        for begins in (False, True):
            at = beginning_at(batch, t) if begins else batch
            other = at._replace(prev_action=disturbed(batch, slice(t, t + 1)).prev_action)
            assert torch.equal(explained(at)[:, t], explained(other)[:, t]) == begins, (t, begins)


def test_an_observation_explains_only_what_follows_it(
    model: WorldModel, batch: Batch, without_noise: WithoutNoise
) -> None:
    """Given z_t, p(x_t | s_t) has not seen x_t; p(. | s_{t+1}) has, where the member feeds it back."""
    without_noise(model)
    embed = torch.randn(2, B, model.encoder.size)
    state = last(model.observe(batch).states)
    states = [model.dynamics.with_observation(state, each) for each in embed]
    assert torch.equal(*(model.feature(each) for each in states))
    if model.dynamics.feeds_back:
        control = batch.prev_action[:, 0]
        contexts = [model.dynamics.advance(each, control) for each in states]
        after = [model.dynamics.with_latent(each, state.latent) for each in contexts]
        assert not torch.isclose(*(model.feature(each) for each in after)).all()


@pytest.mark.parametrize("member", ["storn", "vrnn", "srnn filter feedback"])
def test_imagination_feeds_back_what_it_decodes(model: WorldModel, batch: Batch) -> None:
    state = model.imagine(last(model.observe(batch).states), batch.prev_action[:, 0])
    shown = state.seen
    assert (shown != 0).any(-1).all()
    (gradient,) = torch.autograd.grad(shown.square().sum(), model.decoders[0].last.weight)
    assert (gradient != 0).any()


@imagining
def test_rollout_has_one_state_more_than_actions(model: WorldModel, batch: Batch) -> None:
    start = last(model.observe(batch).states)
    imagined = rollout(model, start, policy, H)
    assert imagined.features.shape == (B, H + 1, model.feature_size)
    assert imagined.actions.shape == imagined.policy.shape == (B, H, 2)
    assert imagined.reward.shape == imagined.cont.shape == (B, H)
    torch.testing.assert_close(imagined.features[:, 0], model.feature(start))
    torch.testing.assert_close(imagined.policy, policy(imagined.features[:, :-1])[1])
    arrived = model.predict(imagined.features[:, 1:], decode=False)
    torch.testing.assert_close(imagined.reward, arrived.reward)


@imagining
def test_imagination_is_reproducible_and_random(model: WorldModel, batch: Batch) -> None:
    start = last(model.observe(batch).states)

    def imagined(seed: int) -> Rollout:
        torch.manual_seed(seed)
        return rollout(model, start, policy, H)

    for one, two in zip(imagined(0)[:-1], imagined(0)[:-1], strict=True):  # which are not coded
        assert torch.equal(one, two)
    assert not torch.equal(imagined(0).features[:, -1], imagined(1).features[:, -1])


@imagining
def test_pathwise_gradients_reach_every_action(model: WorldModel, batch: Batch) -> None:
    start = last(model.observe(batch).states)
    plan = torch.zeros(B, H, 2, requires_grad=True)
    actions = iter(plan.unbind(1))
    imagined = rollout(model, start, lambda feature: (next(actions), feature), H)
    (gradient,) = torch.autograd.grad(imagined.reward[:, -1].sum(), plan)
    assert (gradient.abs().sum(-1) > 0).all()


def test_state_dict_round_trip(
    build: Build, batch: Batch, without_noise: WithoutNoise, member: str, family: str
) -> None:
    one, two = (without_noise(build(member, family, seed=seed)) for seed in (0, 1))
    one.fit_normalizers(batch)
    before = two.elbo(batch).total
    two.load_state_dict(one.state_dict())
    after = two.elbo(batch).total
    assert torch.equal(after, one.elbo(batch).total)
    assert not torch.isclose(before, after).any()


def test_new_units_keep_what_was_learned(
    build: Build, window: Window, without_noise: WithoutNoise, member: str, family: str
) -> None:
    """The world turns out ten times larger than the first records showed; the same predictions, in new units."""
    model, batch, more = without_noise(build(member, family)), window(B, T), window(B, T, seed=1)
    model.fit_normalizers(batch)
    more = more._replace(obs={key: v * 10 + 3 if v.is_floating_point() else v for key, v in more.obs.items()})

    def predictions() -> list[Tensor]:
        feature = model.feature(model.observe(batch).states)
        prediction = model.predict(feature)
        return [feature, prediction.reward, *prediction.obs.values()]

    before, old = predictions(), copy.deepcopy(model.encoder.entrances.state_dict())
    model.fit_normalizers(more, keep=True)
    assert any(
        not torch.isclose(value, old[name]).any() for name, value in model.encoder.entrances.state_dict().items()
    )
    torch.testing.assert_close(predictions(), before, rtol=1e-3, atol=1e-4)
    model.fit_normalizers(batch)
    assert not torch.isclose(predictions()[0], before[0]).all()


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(("batch_size", "length"), [(1, 1), (1, 3), (2, 1)])
def test_smallest_sizes(
    build: Build, window: Window, member: str, family: str, size: int, batch_size: int, length: int
) -> None:
    model, batch = build(member, family, size), window(batch_size, length)
    loss, inference, elbo, _ = objective(model, batch, ObjectiveConfig(balance=0.8, free_nats=1.0))
    assert loss.shape == elbo.kl.shape == (batch_size, length)
    assert elbo.total.isfinite().all()
    if model.dynamics.can_imagine:
        assert rollout(model, last(inference.states), policy, 1).reward.shape == (batch_size, 1)


def test_a_section_of_the_config_is_no_name() -> None:
    for name, given, told in (
        ("dynamics", "dkf", r"not 'dkf': DynamicsConfig\('dkf'\)"),
        ("latent", "onehot", r"LatentConfig\('onehot'\)"),
        ("layer", None, "layer is a LayerConfig, not None"),
    ):
        with pytest.raises(ValueError, match=told):
            ModelConfig(**{name: given})


def learned_from(model: WorldModel, batch: Batch) -> Tensor:
    """What an update asks of a model: its loss, which observes the batch, and imagination from where it ended."""
    loss, (states, _) = model_loss(model, ObjectiveConfig(free_nats=1.0, balance=0.8), batch)
    if not model.dynamics.can_imagine:
        return loss
    return loss + rollout(model, last(states), policy, 2).features.square().sum()


@pytest.mark.parametrize("family", ["gaussian", pytest.param("onehot", marks=pytest.mark.slow)])
def test_what_is_learned_from_traces_as_one_graph(model: WorldModel, window: Window, family: str) -> None:
    """So that it can be compiled: there is no graph break, and the gradients are those of the eager one."""
    batch = beginning_at(window(B, 2), 1)
    torch.compiler.reset()  # or it counts the other members as recompilations of one function, and refuses
    traced = torch.compile(learned_from, fullgraph=True, backend="eager")
    gradients = []
    for each in (learned_from, traced):
        torch.manual_seed(0)
        each(model, batch).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad(set_to_none=True)
    eager, compiled = gradients
    assert eager
    torch.testing.assert_close(compiled, eager)
