"""Environments are made as configured, or the error says what to do."""

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import TimeLimit

from worldmodel.envs import EnvConfig, make, make_vector
from worldmodel.training.config.config import load_config, to_mapping
from worldmodel.training.config.schema import dump_yaml


def episode(env: gym.Env) -> tuple[int, bool, bool]:
    """(decisions, terminated, truncated) of one episode with a constant action."""
    env.reset(seed=0)
    action = env.action_space.sample()
    for steps in range(1, 1000):
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            return steps, terminated, truncated
    raise AssertionError("no end")


def wrappers(env: gym.Env) -> list[type]:
    found = []
    while isinstance(env, gym.Wrapper):
        found.append(type(env))
        env = env.env
    return found


@pytest.mark.parametrize(
    ("repeat", "limit", "decisions"),
    [(1, None, 200), (3, None, 67), (1, 30, 30), (4, 30, 30), (1, 250, 250)],
)
def test_time_limit_truncates(repeat: int, limit: int | None, decisions: int) -> None:
    """Pendulum is registered with 200 frames and never terminates."""
    env = make(EnvConfig("Pendulum-v1", action_repeat=repeat, time_limit=limit))
    assert episode(env) == (decisions, False, True)
    assert wrappers(env).count(TimeLimit) == 1


def test_termination_stays_termination() -> None:
    assert episode(make(EnvConfig("worldmodel/Counter-v0", kwargs={"length": 4}))) == (4, True, False)


def test_made_environment_can_be_made_again_from_its_spec() -> None:
    env = make(EnvConfig("Pendulum-v1", time_limit=10))
    assert env.spec is not None
    assert episode(gym.make(env.spec)) == (10, False, True)


def test_vector() -> None:
    config = EnvConfig("CartPole-v1", num_envs=3)
    vector = make_vector(config)
    assert vector.num_envs == 3
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert make_vector(config, num_envs=2).num_envs == 2
    with pytest.raises(ValueError, match="num_envs"):
        make_vector(config, num_envs=0)


@pytest.mark.parametrize("name", ["num_envs", "action_repeat", "time_limit"])
def test_numbers_below_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"env.{name} must be at least 1, got 0"):
        EnvConfig(**{name: 0})


def test_limit_in_kwargs() -> None:
    with pytest.raises(ValueError, match="time_limit"):
        EnvConfig(kwargs={"max_episode_steps": 10})


@pytest.mark.parametrize(
    ("env_id", "hint"),
    [
        ("Pendlum-v1", "unknown environment 'Pendlum-v1': did you mean Pendulum-v1"),
        ("cartpole", "did you mean CartPole-v1"),
        ("Pendulum-v0", "Pendulum-v1"),
        ("Pendulum-v9", "Pendulum-v1"),
        ("Qqqq-v0", "no registered id is similar to it"),
        ("worldmodel/Conter-v0", "worldmodel/Counter-v0"),
        ("no spaces allowed", "no spaces allowed"),
        (
            "absent_module:Foo-v0",
            "'absent_module' of environment 'absent_module:Foo-v0' cannot be imported: .*PYTHONPATH",
        ),
        ("json:Foo-v0", "unknown environment 'json:Foo-v0'"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*out of date")
def test_unknown_ids(env_id: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        make(EnvConfig(env_id))


def test_unknown_argument() -> None:
    with pytest.raises(ValueError, match=r"'Pendulum-v1' does not accept kwargs \{'gravity': 1\}"):
        make(EnvConfig("Pendulum-v1", kwargs={"gravity": 1}))


@pytest.mark.parametrize(
    ("env_id", "module", "package"),
    [
        ("ALE/Pong-v5", "ale_py", r"worldmodel\[atari\]"),
        ("atari:pong", "ale_py", r"worldmodel\[atari\]"),
        ("crafter:reward", "crafter", r"worldmodel\[crafter\]"),
        ("dmc:walker_walk", "dm_control", r"worldmodel\[dmc\]"),
        ("MiniGrid-Empty-5x5-v0", "minigrid", r"worldmodel\[minigrid\]"),
        ("BabyAI-GoToObj-v0", "minigrid", r"worldmodel\[minigrid\]"),
        ("dm_control/cartpole-swingup-v0", "shimmy", r"shimmy\[dm-control\]"),
    ],
)
def test_plugin_that_is_not_installed(env_id: str, module: str, package: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"pip install '{package}'"):
        make(EnvConfig(env_id))


def needs_box2d() -> None:
    raise gym.error.DependencyNotInstalled('Box2D is not installed, run `pip install "gymnasium[box2d]"`')


@pytest.mark.parametrize(
    ("env_id", "module", "extra"),
    [("CarRacing-v3", "Box2D", "box2d"), ("LunarLander-v3", "Box2D", "box2d"), ("HalfCheetah-v5", "mujoco", "mujoco")],
)
def test_what_gymnasium_itself_needs_is_named_by_its_extra(
    env_id: str, module: str, extra: str, monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for name in [name for name in sys.modules if name.startswith(("gymnasium.envs.box2d", "gymnasium.envs.mujoco"))]:
        monkeypatch.delitem(sys.modules, name)  # where it has been imported before
    with pytest.raises(ValueError, match=rf"'{env_id}' is not installed: .*pip install 'worldmodel\[{extra}\]'"):
        make(EnvConfig(env_id))


def test_dependency_that_is_not_installed(monkeypatch: Any) -> None:
    name = "NeedsBox2D-v0"
    monkeypatch.setitem(gym.registry, name, gym.envs.registration.EnvSpec(name, entry_point=needs_box2d))
    with pytest.raises(ValueError, match=rf"'{name}' is not installed: .*gymnasium\[box2d\]"):
        make(EnvConfig(name))


def test_entry_point_that_cannot_be_imported(monkeypatch: Any) -> None:
    name = "NeedsAbsent-v0"
    monkeypatch.setitem(gym.registry, name, gym.envs.registration.EnvSpec(name, entry_point="absent_module:Env"))
    with pytest.raises(ValueError, match=f"'{name}' needs a package that is not installed: .*absent_module"):
        make(EnvConfig(name))


def test_module_ids(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    register = "import gymnasium\ngymnasium.register('Mine-v0', entry_point='worldmodel.envs.testing.probes:Counter')\n"
    (tmp_path / "my_good_envs.py").write_text(register)
    (tmp_path / "my_bad_envs.py").write_text("1 / 0\n")
    assert episode(make(EnvConfig("my_good_envs:Mine-v0"))) == (5, True, False)
    with pytest.raises(ValueError, match=r"'my_bad_envs' .* cannot be imported: ZeroDivisionError"):
        make(EnvConfig("my_bad_envs:Mine-v0"))
    del gym.registry["Mine-v0"]


class Pays(gym.Env[Any, Any]):
    """Pays for its steps what a mapping says, in a hall of a size that has to be a tuple."""

    def __init__(self, rewards: dict[int, float], size: tuple[int, int]) -> None:
        self.observation_space, self.action_space = spaces.Box(0, 9, size), spaces.Discrete(2)
        self.rewards, self.size, self.time = rewards, size, 0
        hash(size)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(self.size, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return np.zeros(self.size, np.float32), self.rewards.get(self.time, 0.0), self.time == 4, False, {}


def test_arguments_reach_the_environment_as_they_were_written(tmp_path: Path) -> None:
    """From Python, from the text of a config, and from the config that a run leaves behind."""
    gym.register("test-make/Pays-v0", Pays)
    text = "env:\n  id: test-make/Pays-v0\n  kwargs: {rewards: {1: 10.0, 4: 20.0}, size: !!python/tuple [2, 3]}\n"
    (tmp_path / "config.yaml").write_text(text)
    kwargs = {"rewards": {np.int64(1): 10.0, 4: np.float32(20)}, "size": (2, 3)}
    given_config = load_config({"env": {"id": "test-make/Pays-v0", "kwargs": kwargs}})
    (tmp_path / "left.yaml").write_text(dump_yaml(to_mapping(given_config)))
    for config in (given_config, load_config(tmp_path / "config.yaml"), load_config(tmp_path / "left.yaml")):
        env = make(config.env)
        env.reset(seed=0)
        assert sum(env.step(0)[1] for _ in range(4)) == 30
