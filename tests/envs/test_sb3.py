"""The dream behind Stable-Baselines3's contract, beside its own `DummyVecEnv`, and under its algorithms."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from worldmodel.envs.imagined.sb3 import ImaginedVecEnv
from worldmodel.envs.imagined.vector import ImaginedEnv, ImaginedVectorEnv
from worldmodel.envs.testing.exact import ExactCartPole, ExactPendulum, ExactState

TORQUE, PUSH = gym.spaces.Box(-2, 2, (1,), np.float32), gym.spaces.Discrete(2)


def upright(count: int) -> ExactState:
    return ExactState(torch.zeros(count, 4), torch.zeros(count, 1), torch.ones(count, 1))


def hanging(count: int) -> ExactState:
    x = torch.rand(count, 2) * torch.tensor([6.28, 2.0]) - torch.tensor([3.14, 1.0])
    return ExactState(x, torch.zeros(count, 1), torch.ones(count, 1))


def dream(action: Any, count: int = 4, horizon: int = 20) -> ImaginedVecEnv:
    model, begin = (ExactPendulum(), hanging) if action is TORQUE else (ExactCartPole(), upright)
    return ImaginedVecEnv(ImaginedVectorEnv(model, action, begin, count, horizon))


def test_it_does_what_a_dummy_does_with_single_imagined_environments() -> None:
    """Observations, rewards, ends, terminal observations and truncation, where the start is always the same."""
    ours = dream(PUSH, 2, horizon=12)
    theirs = DummyVecEnv([lambda: ImaginedEnv(ExactCartPole(), PUSH, upright, 12) for _ in range(2)])
    np.testing.assert_allclose(ours.reset(), theirs.reset())
    falls = truncations = 0
    for step in range(40):
        actions = np.array([1, step % 2])
        one, two = ours.step(actions), theirs.step(actions)
        for mine, other in zip(one[:3], two[:3], strict=True):
            np.testing.assert_allclose(mine, other)
        for mine, other in zip(one[3], two[3], strict=True):
            assert mine["TimeLimit.truncated"] == other["TimeLimit.truncated"]
            assert ("terminal_observation" in mine) == ("terminal_observation" in other)
            if "terminal_observation" in mine:
                np.testing.assert_allclose(mine["terminal_observation"], other["terminal_observation"])
                truncations += mine["TimeLimit.truncated"]
                falls += not mine["TimeLimit.truncated"]
    assert falls >= 3 and truncations >= 3


def test_both_checkers_accept_a_single_one() -> None:
    check_env(ImaginedEnv(ExactPendulum(), TORQUE, hanging, 20, render_mode="rgb_array"), skip_render_check=False)
    check_env(ImaginedEnv(ExactCartPole(), PUSH, upright, 20), warn=False, skip_render_check=True)


@pytest.mark.parametrize("algorithm", [PPO, A2C, SAC, TD3, DQN])
def test_algorithms_learn_inside(algorithm: Any) -> None:
    action = PUSH if algorithm is DQN else TORQUE
    envs = VecMonitor(dream(action))
    short: dict[str, Any] = {"n_steps": 16} if algorithm in (PPO, A2C) else {"learning_starts": 20, "train_freq": 4}
    model = algorithm("MlpPolicy", envs, seed=0, device="cpu", **short)
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(200)
    assert any(not torch.equal(p, q) for p, q in zip(before, model.policy.parameters(), strict=True))
    assert len(model.ep_info_buffer) > 0


def test_their_callbacks_work_in_the_dream(tmp_path: Path) -> None:
    """A cart that is pushed at random falls, or is cut off after 20 steps: what they hear is what happened."""

    class Hears(BaseCallback):
        def _on_training_start(self) -> None:
            self.dones, self.episodes = 0, list[dict[str, Any]]()

        def _on_step(self) -> bool:
            infos, dones = self.locals["infos"], self.locals["dones"]
            self.dones += int(dones.sum())
            self.episodes += [info["episode"] for info in infos if "episode" in info]
            assert [done for done in dones] == ["terminal_observation" in info for info in infos]
            assert all(info["episode"]["l"] == 20 for info in infos if info["TimeLimit.truncated"])
            return True

    heard, judged = Hears(), VecMonitor(dream(PUSH, 2))
    judge = EvalCallback(
        judged, n_eval_episodes=3, eval_freq=16, best_model_save_path=str(tmp_path / "best"), verbose=0
    )
    callbacks = [heard, judge, CheckpointCallback(16, str(tmp_path / "saved")), StopTrainingOnMaxEpisodes(6)]
    model = PPO("MlpPolicy", VecMonitor(dream(PUSH)), seed=0, n_steps=16, device="cpu").learn(2_000, callbacks)
    assert 24 <= heard.dones == len(heard.episodes) < 30 and model.num_timesteps < 2_000
    assert all(each["r"] == each["l"] <= 20 for each in heard.episodes)
    assert 0 < judge.best_mean_reward <= 20 and (tmp_path / "best" / "best_model.zip").is_file()
    assert (tmp_path / "saved" / "rl_model_64_steps.zip").is_file()


def test_the_same_seed_gives_the_same_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        model = PPO("MlpPolicy", dream(TORQUE), seed=seed, n_steps=16, device="cpu").learn(300)
        return torch.cat([p.detach().flatten() for p in model.policy.parameters()])

    assert torch.equal(weights(3), weights(3)) and not torch.equal(weights(3), weights(4))


def test_attributes_wrappers_and_modes() -> None:
    envs = dream(TORQUE, 3)
    assert envs.get_attr("horizon") == [20, 20, 20] and envs.get_attr("horizon", [0, 2]) == [20, 20]
    envs.set_attr("horizon", 7)
    assert envs.envs.horizon == 7
    with pytest.raises(ValueError, match="set 'horizon' for all of them"):
        envs.set_attr("horizon", 3, [0])
    envs.reset()
    assert envs.env_method("reset", indices=[1])[0][0].shape == (3, 4)
    assert envs.env_is_wrapped(gym.Wrapper) == [False] * 3
    normalised = VecNormalize(envs)
    assert normalised.reset().shape == (3, 4)
    with pytest.raises(ValueError, match="SAME_STEP"):
        ImaginedVecEnv(ImaginedVectorEnv(ExactPendulum(), TORQUE, hanging, 2, autoreset_mode=AutoresetMode.NEXT_STEP))


def test_frames_are_tiled_as_of_any_other_environment() -> None:
    envs = ImaginedVecEnv(ImaginedVectorEnv(ExactPendulum(), TORQUE, hanging, 4, 20, render_mode="rgb_array"))
    envs.reset()
    assert len(envs.get_images()) == 4 and envs.render().shape == (320, 480, 3)
    assert dream(TORQUE).get_images() == [None] * 4
