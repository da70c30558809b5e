"""Pink noise against its autocorrelation in closed form, and against the spectrum that gives it its name."""

import numpy as np
import pytest
import torch

from worldmodel.agents import ActorCritic, ActorCriticConfig
from worldmodel.agents.acting.noise import OCTAVES, PinkNoise, disturbed
from worldmodel.envs.testing.exact import ExactPendulum
from worldmodel.specs import ActionSpec

STEPS, SERIES = 1024, 256


def series() -> np.ndarray:
    torch.manual_seed(0)
    noise, steps = PinkNoise(), []
    memory = noise.initial(SERIES)
    for _ in range(STEPS):
        now, memory = noise.step(memory)
        steps.append(now)
    return torch.stack(steps, 1).numpy()


def test_pink_noise_has_variance_one_and_the_autocorrelation_of_its_processes() -> None:
    x = series()
    np.testing.assert_allclose(x.var(0)[[0, 1, 500, STEPS - 1]], 1, atol=0.4)  # stationary from the start
    for lag in (1, 8, 64):
        exact = np.mean([np.exp(-lag / 2.0**k) for k in range(OCTAVES)])
        assert abs((x[:, lag:] * x[:, :-lag]).mean() - exact) < 0.04


def test_pink_noise_has_a_spectrum_of_one_over_f() -> None:
    power = (np.abs(np.fft.rfft(series())) ** 2).mean(0)
    frequency = np.fft.rfftfreq(STEPS)
    middle = (frequency > 1 / 256) & (frequency < 1 / 8)
    slope, _ = np.polyfit(np.log(frequency[middle]), np.log(power[middle]), 1)
    assert -1.15 < slope < -0.85


def test_exploration_is_correlated_over_an_episode_alone() -> None:
    """Controls of an actor that knows nothing: their mean over ten steps varies as the noise's does."""
    torch.manual_seed(0)
    spec, model = ActionSpec((1,), low=(-2.0,), high=(2.0,)), ExactPendulum()
    state = model.initial(500)
    spread = {}
    for name in ("white", "pink"):
        behaviour = ActorCritic(ActorCriticConfig(hidden=8, noise=name), model.feature(state).shape[-1], spec)  # type: ignore[arg-type]
        memory, controls = behaviour.initial(500), []
        for _ in range(10):
            control, memory, _ = behaviour.act(model, state, memory)
            controls.append(control)
        assert torch.equal(*(behaviour.act(model, state, memory, deterministic=True).control for _ in range(2)))
        spread[name] = float(torch.stack(controls).mean(0).detach().std())
        first = behaviour.act(model, state, behaviour.initial(500)).control
        assert abs(float(torch.corrcoef(torch.cat([first, control], 1).T)[0, 1])) < 0.2  # a new episode, a new series
    assert spread["pink"] > 2 * spread["white"]


@pytest.mark.parametrize("noise", [0.0, 0.25, 1.0])
def test_discrete_controls_are_drawn_anew_by_their_share(noise: float) -> None:
    torch.manual_seed(0)
    spec = ActionSpec((2,), classes=(2, 4), start=(0, 0))
    control = torch.tensor([1.0, 0, 0, 0, 0, 1]).expand(40_000, -1)
    after = disturbed(spec, control, noise)
    same = (after * control).mean(0)[[0, 5]]
    torch.testing.assert_close(same, torch.tensor([1 - noise / 2, 1 - noise * 3 / 4]), rtol=0, atol=0.01)
    assert torch.equal(after.sum(-1), torch.full((40_000,), 2.0))


def test_box_exploration_stays_inside() -> None:
    torch.manual_seed(0)
    after = disturbed(ActionSpec((1,), low=(-2.0,), high=(2.0,)), torch.full((10_000, 1), 0.9), 0.3)
    assert after.max() == 1 and float((after < 0.9).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_action_noise_is_added_while_exploring_alone() -> None:
    spec, model = ActionSpec((1,), low=(-2.0,), high=(2.0,)), ExactPendulum()
    state = model.initial(2000)
    behaviour = ActorCritic(ActorCriticConfig(hidden=8, action_noise=0.3), model.feature_size, spec)
    with torch.no_grad():
        behaviour.actor[-1].weight.zero_()
        behaviour.actor[-1].bias.copy_(torch.tensor([0.0, -20.0]))
    control = behaviour.act(model, state, ()).control
    assert float(control.std()) == pytest.approx(0.3, rel=0.1)
    greedy = behaviour.act(model, state, (), deterministic=True).control
    assert float(greedy.std()) < 1e-6
