"""An environment in a process of its own: the same episodes, and an owner who outlives whatever happens there."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from worldmodel.envs import EnvConfig, EnvironmentFault, ProcessEnv, RepeatableEpisodes, make
from worldmodel.envs.wrappers.process import begin
from worldmodel.training.logging.logger import REPOSITORY

ACTION = np.zeros(1, np.float32)
TIMEOUT = 1.0
PATIENT = 60.0  # where it is not the time that is tested


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie; a moment later, if it is."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
        except FileNotFoundError:
            return False
        time.sleep(0.05)
    return True


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc")


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_the_same_episodes_bit_for_bit(env_id: str) -> None:
    here, there = (make(EnvConfig(env_id, timeout=timeout), training=True) for timeout in (None, PATIENT))
    assert isinstance(there.unwrapped, ProcessEnv)
    assert here.observation_space == there.observation_space and here.action_space == there.action_space
    assert there.unwrapped.spec == gym.make(env_id).spec
    here.action_space.seed(0)
    np.testing.assert_array_equal(here.reset(seed=3)[0], there.reset(seed=3)[0])
    for _ in range(250):
        action = here.action_space.sample()
        (observation, *outcome), (observation2, *outcome2) = here.step(action), there.step(action)
        np.testing.assert_array_equal(observation, observation2)
        assert outcome == outcome2
        if outcome[1] or outcome[2]:
            np.testing.assert_array_equal(here.reset()[0], there.reset()[0])
    assert isinstance(here, RepeatableEpisodes) and isinstance(there, RepeatableEpisodes)
    np.testing.assert_array_equal(there.go_to(here.position()), there.go_to(there.position()))
    there.close()


def test_steps_that_were_begun_before_are_the_same() -> None:
    """In a vector of them, and with others among them that have no process."""
    results = []
    for ahead in (False, True):
        factories = [
            partial(make, EnvConfig(timeout=timeout), 0, training=True) for timeout in (PATIENT, None, PATIENT)
        ]
        envs = SyncVectorEnv(factories, autoreset_mode=AutoresetMode.SAME_STEP)
        found = [envs.reset(seed=4)[0]]
        for step in range(210):
            actions = np.random.default_rng(step).uniform(-2, 2, (3, 1)).astype(np.float32)
            if ahead:
                begin(envs, actions)
                assert [env.unwrapped.begun is not None for env in envs.envs[::2]] == [True, True]  # type: ignore[attr-defined]
            found.append(envs.step(actions)[0])
        envs.close()
        results.append(np.stack(found))
    np.testing.assert_array_equal(*results)


def test_a_step_that_was_begun_and_is_not_wanted(failing: Any) -> None:
    env = ProcessEnv(failing.Failing, PATIENT)
    first, _ = env.reset(seed=1)
    env.begin(ACTION)
    again, _ = env.reset(seed=1)
    np.testing.assert_array_equal(first["x"], again["x"])
    env.begin(ACTION + 1)
    env.begin(ACTION)  # the one before is waited for, so that no answer is taken for another's
    with pytest.raises(ValueError, match=r"was begun, but step\(\) was called with \[1\.\]"):
        env.step(ACTION + 1)
    env.close()


@linux
@pytest.mark.parametrize("how", ["sleep", "kill", "exception"])
def test_what_fails_in_a_step_that_was_begun_is_told_when_it_is_asked_for(how: str, failing: Any) -> None:
    env = ProcessEnv(partial(failing.Failing, how, 1, seeds=[2]), TIMEOUT if how == "sleep" else PATIENT)
    env.reset(seed=2)
    env.begin(ACTION)
    time.sleep(0.2)
    with pytest.raises(EnvironmentFault):
        env.step(ACTION)
    env.begin(ACTION)
    if how == "exception":  # the process answers on
        assert np.isfinite(env.step(ACTION)[1])
    else:
        with pytest.raises(EnvironmentFault, match="closed"):
            env.step(ACTION)
    env.close()


@linux
@pytest.mark.parametrize("at", [0, 3], ids=["reset", "step"])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("sleep", "no answer to {} within 1 s: its process was ended"),
        ("busy", "no answer to {} within 1 s: its process was ended"),
        ("kill", "its process died in {} by SIGKILL"),
        ("exit", "its process died in {} with exit code 3"),
    ],
)
def test_hangs_and_deaths(how: str, said: str, at: int, failing: Any) -> None:
    env = ProcessEnv(partial(failing.Failing, how, at, seeds=[2]), TIMEOUT if how in ("sleep", "busy") else PATIENT)
    pid = env.process.pid
    assert pid is not None
    env.reset(seed=1)
    for _ in range(4):
        env.step(ACTION)
    began = time.monotonic()
    with pytest.raises(EnvironmentFault, match=said.format("step" if at else "reset")):
        env.reset(seed=2)
        for _ in range(3):
            env.step(ACTION)
    assert time.monotonic() - began < 30
    assert not alive(pid)
    with pytest.raises(EnvironmentFault, match="has been closed"):
        env.reset(seed=1)


def test_an_exception_comes_over_and_the_process_goes_on(failing: Any) -> None:
    env = ProcessEnv(partial(failing.Failing, "exception", seeds=[2]), PATIENT)
    env.reset(seed=2)
    env.step(ACTION)
    env.step(ACTION)
    with pytest.raises(EnvironmentFault, match=r"^RuntimeError: the simulator died \(failing.py, line \d+\)$"):
        env.step(ACTION)
    env.reset(seed=1)
    assert env.step(ACTION)[1] == failing.reward_of(1)
    env.close()


def test_what_cannot_be_built_says_why(failing: Any) -> None:
    with pytest.raises(EnvironmentFault, match=r"TypeError: .*unexpected keyword argument 'hwo'"):
        ProcessEnv(partial(failing.Failing, hwo="nan"), PATIENT)


def test_what_of_an_info_comes_over(failing: Any) -> None:
    env = ProcessEnv(partial(failing.Talking), PATIENT)
    _, info = env.reset(seed=1)
    assert sorted(info) == ["array", "number", "text"] and info["array"].tolist() == [1, 2]
    with pytest.raises(EnvironmentFault, match="pickle"):
        env.step(ACTION)
    env.close()


@linux
def test_signals_are_left_to_the_owner(failing: Any) -> None:
    env = ProcessEnv(failing.Failing, PATIENT)
    env.reset(seed=1)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(env.process.pid, number)  # type: ignore[arg-type]
    _, reward, *_ = env.step(ACTION)
    assert np.isfinite(reward) and env.process.is_alive()
    env.close()


@linux
def test_nothing_is_left_in_the_system(failing: Any, tmp_path: Path) -> None:
    """After environments that were closed, forgotten, ended and died."""
    for how in ("", "kill"):  # the fork server and what it needs stay
        ProcessEnv(partial(failing.Failing, how, at=1), PATIENT).close()
    before, pids, closed = len(os.listdir("/proc/self/fd")), [], []
    for turn in range(32):
        env = ProcessEnv(partial(failing.Failing, ("", "kill", "exit", "sleep")[turn % 4], at=1), 0.2)
        pids.append(env.process.pid)
        env.reset(seed=2)
        if turn % 4:
            with pytest.raises(EnvironmentFault):
                env.step(ACTION)
            closed.append(env)
        elif turn % 8:
            env.close()
            closed.append(env)
        del env
    assert not [pid for pid in pids if pid and alive(pid)]
    assert len(os.listdir("/proc/self/fd")) == before


@linux
@pytest.mark.parametrize("how", ["", "kill", "sleep"])
def test_an_environment_may_start_processes_and_they_end_with_it(how: str, failing: Any) -> None:
    """Where it is closed, dies and hangs; its death is noticed although its own process lives on."""
    env = ProcessEnv(partial(failing.Parent, how, 1, seeds=[2]), TIMEOUT if how == "sleep" else PATIENT)
    _, info = env.reset(seed=2)
    assert alive(info["child"])
    if how:
        with pytest.raises(EnvironmentFault, match="SIGKILL" if how == "kill" else "no answer to step within 1 s"):
            env.step(ACTION)
    else:
        env.step(ACTION)
        env.close()
    assert not alive(info["child"])


def test_infos_that_cannot_be_sent_stay_behind(failing: Any) -> None:
    env = ProcessEnv(failing.Odd, PATIENT)
    assert sorted(env.reset(seed=1)[1]) == ["big", "text"]
    with pytest.raises(EnvironmentFault, match=r"^'info' is a NoneType, but must be a dictionary$"):
        env.step(ACTION)
    env.close()


def test_closing_lets_the_environment_close(failing: Any, tmp_path: Path) -> None:
    env = ProcessEnv(partial(failing.Noting, tmp_path / "closed"), PATIENT)
    env.close()
    env.close()
    assert (tmp_path / "closed").read_text() == "closed\n"


OWNER = """
import sys, time
import failing
from functools import partial
from worldmodel.envs import ProcessEnv
import numpy as np
if __name__ == "__main__":
    env = ProcessEnv(partial(failing.Failing, sys.argv[1], 1), 1.0)
    env.reset(seed=2)
    print(env.process.pid, flush=True)
    if sys.argv[2] == "step":
        env.step(np.zeros(1, np.float32))
    elif sys.argv[2] == "wait":
        time.sleep(1000)
"""


@linux
@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("busy", "step"),
        ("", "leave"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("", "wait"), ("sleep", "step")]),
    ],
    ids=lambda value: value or "-",
)
def test_no_process_outlives_its_owner(how: str, what: str, tmp_path: Path) -> None:
    """Killed while the environment waits, while it hangs, and at the end of a program that closed nothing."""
    (tmp_path / "owner.py").write_text(OWNER)
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "broken")])
    command = [sys.executable, str(tmp_path / "owner.py"), how, what]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        if what == "step":
            assert owner.stdout.readline() == b"hangs\n"
        if what == "leave":
            assert owner.wait(timeout=60) == 0
        owner.kill()
    assert not alive(pid)


def test_what_cannot_be_sent_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot be sent .*pickle.* env.timeout to null"):
        make(EnvConfig(kwargs={"g": lambda: 9.8}, timeout=PATIENT), training=True)


def test_a_script_without_a_guard_is_told(tmp_path: Path) -> None:
    """Python runs it again in each process that it starts."""
    script = tmp_path / "script.py"
    script.write_text("from worldmodel.envs import EnvConfig, make\nmake(EnvConfig(timeout=5.0), training=True)\n")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=120)
    last = result.stderr.splitlines()[-1]
    assert result.returncode == 1 and "EnvironmentFault: its process died in start with exit code 1: the reason" in last
    assert '`if __name__ == "__main__"`' in last


def test_a_config_says_seconds() -> None:
    for timeout in (0.0, -1.0, float("nan"), 1e300, float("inf")):
        with pytest.raises(ValueError, match=r"env.timeout must be above 0 and"):
            EnvConfig(timeout=timeout)
    with pytest.raises(ValueError, match=r"env.restarts must be at least 0, got -1"):
        EnvConfig(restarts=-1)


def test_only_environments_of_training_have_a_process() -> None:
    config = EnvConfig(timeout=PATIENT)
    assert not isinstance(make(config).unwrapped, ProcessEnv)
    env: gym.Env[Any, Any] = make(config, training=True)
    assert isinstance(env.unwrapped, ProcessEnv)
    env.close()
