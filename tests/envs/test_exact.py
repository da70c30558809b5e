"""The true dynamics against the environments themselves."""

from typing import Any

import numpy as np
import pytest
import torch

from worldmodel.envs import EnvConfig, action_spec, make
from worldmodel.envs.testing.exact import ExactCartPole, ExactLinearQuadratic, ExactModel, ExactPendulum, ExactTree
from worldmodel.envs.testing.probes import LinearQuadratic, Tree
from worldmodel.specs import OBSERVATION

CASES: dict[str, Any] = {
    "Pendulum-v1": ExactPendulum,
    "CartPole-v1": ExactCartPole,
    "worldmodel.envs.testing.probes:worldmodel/LinearQuadratic-v0": ExactLinearQuadratic,
    "worldmodel.envs.testing.probes:worldmodel/Tree-v0": lambda: ExactTree(Tree()),
}


@pytest.mark.parametrize("name", CASES)
def test_the_true_dynamics_foresee_what_the_environment_does(name: str) -> None:
    env, model = make(EnvConfig(name)), CASES[name]()
    control = action_spec(env.action_space)
    env.action_space.seed(0)
    for episode in range(5):
        observation, _ = env.reset(seed=episode)
        state = model.initial(1)
        first = torch.ones(1, dtype=torch.bool)
        state = model.filter(state, {OBSERVATION: torch.tensor(observation)[None]}, torch.zeros(1, 1), first)
        for _ in range(30):
            action = env.action_space.sample()
            observation, reward, terminated, _, _ = env.step(action)
            code = torch.from_numpy(control.encode(np.asarray(action)[None]))
            state = model.imagine(state, code)
            outcome = model.predict(model.feature(state))
            shown = model.read(torch.tensor(observation)[None])
            error = (outcome.obs[OBSERVATION] - shown)[0].numpy()
            if name == "Pendulum-v1":
                error[0] = (error[0] + np.pi) % (2 * np.pi) - np.pi
            np.testing.assert_allclose(error, 0, atol=2e-3)
            np.testing.assert_allclose(outcome.reward.item(), reward, atol=1e-3)
            if name.endswith("Tree-v0") and env.unwrapped.time == env.unwrapped.length:  # type: ignore[attr-defined]
                break  # the model need not know how deep the tree is: plans are no longer
            assert outcome.cont.item() == float(not terminated)
            if terminated:
                break


def test_nothing_is_received_after_the_end() -> None:
    model: ExactModel = ExactCartPole()
    state = model.initial(1)._replace(x=torch.tensor([[2.39, 3.0, 0.0, 0.0]]))
    rewards = []
    for _ in range(3):
        state = model.imagine(state, torch.tensor([[1.0, 0.0]]))
        rewards.append(model.predict(model.feature(state)).reward.item())
    assert rewards == [1, 0, 0] and state.cont.item() == 0


def test_riccati_is_the_best_of_all_linear_controls() -> None:
    gains, P = LinearQuadratic.gains(10)

    def cost(change: float) -> float:
        x, total = np.array([0.7, -0.4]), 0.0
        for K in gains:
            u = -(K + change) @ x
            total += float(x @ LinearQuadratic.Q @ x + u @ LinearQuadratic.R @ u)
            x = LinearQuadratic.A @ x + LinearQuadratic.B @ u
        return total

    x = np.array([0.7, -0.4])
    np.testing.assert_allclose(cost(0.0), x @ P @ x)
    assert min(cost(0.01), cost(-0.01)) > cost(0.0)
